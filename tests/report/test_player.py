from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import words_of
from sets import tree, walk

from skelpipe.report.html import write_html
from skelpipe.report.player import SCRIPT, STYLE, player
from skelpipe.report.scene import Clip, Scene, lay_out


def scene(frames: int = 9, bodies: int = 1, **changes: str) -> Scene:
    poses = walk(2, frames, 15, bodies)
    poses[1:, 4:] = 0
    return lay_out(
        Clip(changes.get("key", "key"), changes.get("what", "what"), poses, tree(15), 25)
    )


def story(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json">(.*?)</script>', page, re.S)
    assert found is not None
    loaded: dict[str, object] = json.loads(found.group(1))
    return loaded


def test_a_frame_for_every_frame_at_the_recorded_speed() -> None:
    told = story(player(scene()))
    assert told["fps"] == 25
    assert len(told["frames"]) == len(told["counters"]) == 9
    assert told["counters"][8] == "frame 9 of 9, 0.32 s"
    assert len({json.dumps(frame) for frame in told["frames"]}) == 9


def test_outlines_go_through_the_joints() -> None:
    shown = scene()
    limb, bones, joints = shown.limbs[2], *story(player(shown))["frames"][5][4:6]
    place = shown.xy_VMTJ2[1, 0, 5]
    parent, joint = limb.bones[0]
    assert "M{} {}L{} {}".format(*place[parent], *place[joint]) in bones
    assert bones.count("L") == 3 * len(limb.bones)
    assert "M{} {}h0".format(*place[limb.joints[-1]]) in joints


def test_absent_bodies_have_no_outline() -> None:
    two = story(player(scene(bodies=2)))["frames"]
    # A part that is the root alone has no bones.
    assert [sum(map(bool, frame[:6])) for frame in two] == [5] * 9
    assert [sum(map(bool, frame[6:])) for frame in two] == [5] * 4 + [0] * 5


def test_every_path_has_its_outline_and_the_middle_frame_stands_without_scripts() -> None:
    page = player(scene(bodies=2))
    numbers = [int(number) for number in re.findall(r'data-outline="(\d+)"', page)]
    frames = story(page)["frames"]
    assert set(numbers) == set(range(len(frames[0])))
    assert re.findall(r' d="([^"]*)"', page) == [frames[4][number] for number in numbers]


def test_a_page_of_players_needs_nothing_else(tmp_path: Path) -> None:
    evil = "</script><script>alert('&\"')"
    out = tmp_path / "folder" / "page.html"
    write_html(out, evil, [player(scene(key=evil, what=evil)), SCRIPT], style=STYLE)
    text = out.read_text(encoding="utf-8")
    assert "frame 5 of 9, 0.16 s" in words_of(text)
    assert text.count("<script") == 2
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]


_BROWSER = """
const dom = (fields) => Object.assign({ set: {}, setAttribute(_, d) { this.d = d; } }, fields);
const story = { fps: 10, frames: [["a"], ["b"], ["c"], ["d"]], counters: ["1", "2", "3", "4"] };
const parts = {
  script: { textContent: JSON.stringify(story) }, button: dom(), input: dom(), output: dom(),
};
const path = dom({ dataset: { outline: "0" } });
const place = { querySelector: (name) => parts[name], querySelectorAll: () => [path] };
const document = { querySelectorAll: () => [place] };
const matchMedia = () => ({ matches: REDUCED });
let next; const requestAnimationFrame = (tick) => { next = tick; };
const seen = [];
const at = (time) => { next(time); seen.push(path.d + parts.output.textContent); };
SCRIPT
seen.push(path.d + parts.button.textContent);
at(1000); at(1099); at(1101); at(1250); at(1450);
parts.button.onclick(); seen.push(parts.button.textContent); at(1850);
parts.input.value = "3"; parts.input.oninput(); at(1900);
parts.button.onclick(); at(2000); at(2050); at(2150);
console.log(seen.join(" "));
"""


@pytest.mark.parametrize(
    ("reduced", "expected"),
    [
        # It plays in a loop, stands where it is stopped or put, and goes on from there.
        (False, "apause a1 a1 b2 c3 a1 play a1 d4 d4 d4 a1"),
        # Who wants less motion must start it.
        (True, "aplay a1 a1 a1 a1 a1 pause a1 d4 d4 d4 a1"),
    ],
)
def test_the_script_plays_and_stops(reduced: bool, expected: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run the page's script")
    script = SCRIPT.removeprefix("<script>").removesuffix("</script>")
    code = _BROWSER.replace("REDUCED", str(reduced).lower()).replace("SCRIPT", script)
    found = subprocess.run([node, "-e", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected
