"""A scene as SVG that a few lines of script move: play, pause, and a slider over the frames.

Only the outlines of bones and joints change from frame to frame. They are computed here: the script
does no more than put them in place. Without scripts the middle frame stands still.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from html import escape
from io import BytesIO

from .drawing import BONE, DOT, RIM, paper
from .scene import FINE, Scene

STYLE = """
.player { margin: 1rem 0 1.8rem; }
.player svg { display: block; width: 100%; height: auto; background: #fff; border-radius: 8px; }
.player div { max-width: 62rem; display: flex; gap: .8rem; align-items: center; margin-top: .4rem; }
.player button { min-width: 4.5rem; font: inherit; padding: .15rem .6rem; }
.player input { flex: 1; min-width: 3rem; }
.player output { min-width: 13rem; font-variant-numeric: tabular-nums; }
"""

SCRIPT = """<script>
for (const player of document.querySelectorAll(".player")) {
  const { fps, frames, counters } = JSON.parse(player.querySelector("script").textContent);
  const paths = player.querySelectorAll("path"), counter = player.querySelector("output");
  const button = player.querySelector("button"), slider = player.querySelector("input");
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let shown = -1, began = null;
  const show = (frame) => {
    if (frame === shown) return;
    for (const path of paths) path.setAttribute("d", frames[frame][path.dataset.outline]);
    counter.textContent = counters[frame];
    slider.value = shown = frame;
  };
  const turn = (on) => {
    playing = on;
    began = null;
    button.textContent = playing ? "pause" : "play";
  };
  const tick = (now) => {
    if (playing) {
      began ??= now - 1000 * shown / fps;
      show(Math.floor((now - began) / 1000 * fps) % frames.length);
    }
    requestAnimationFrame(tick);
  };
  button.onclick = () => turn(!playing);
  slider.oninput = () => { turn(false); show(Number(slider.value)); };
  turn(playing);
  show(0);
  requestAnimationFrame(tick);
}
</script>"""


def player(scene: Scene) -> str:
    """The HTML of one animation. Its page needs `STYLE`, and `SCRIPT` after the last animation."""
    frames = [list(_outlines(scene, frame)) for frame in range(scene.frames)]
    middle = scene.frames // 2
    moving = "".join(
        f'<path data-outline="{number}" d="{frames[middle][number]}" {stroke}/>'
        for number, stroke in _strokes(scene)
    )
    story = {
        "fps": scene.clip.fps,
        "frames": frames,
        "counters": [scene.counter(frame) for frame in range(scene.frames)],
    }
    title = ", ".join(filter(None, (scene.clip.key, scene.clip.what)))
    return (
        f'<div class="player"><svg viewBox="0 0 {scene.width} {scene.height}" role="img" '
        f'aria-label="{escape(title)}" fill="none" stroke-linecap="round" '
        f'style="max-width: {scene.width // FINE}px">'
        f'<image width="{scene.width}" height="{scene.height}" href="{_paper_uri(scene)}"/>'
        f"{moving}</svg><div>"
        f'<button type="button">play</button><input type="range" aria-label="frame" min="0" '
        f'max="{scene.frames - 1}" value="0"><output>{scene.counter(middle)}</output></div>'
        f'<script type="application/json">{json.dumps(story, separators=(",", ":"))}</script></div>'
    )


def _outlines(scene: Scene, frame: int) -> Iterator[str]:
    """SVG outlines of each limb in all views: of its bones, then of its joints.

    A joint is a line of no length, whose round ends make a dot.
    """
    for limb in scene.limbs:
        bones = joints = ""
        if scene.present_MT[limb.body, frame]:
            for xy_J2 in scene.xy_VMTJ2[:, limb.body, frame].tolist():
                place = [f"{x} {y}" for x, y in xy_J2]
                bones += "".join(f"M{place[start]}L{place[end]}" for start, end in limb.bones)
                joints += "".join(f"M{place[joint]}h0" for joint in limb.joints)
        yield bones
        yield joints


def _strokes(scene: Scene) -> Iterator[tuple[int, str]]:
    """What is drawn, one upon the other: (number of the outline, how)."""
    for number, limb in enumerate(scene.limbs):
        yield 2 * number, f'stroke="{limb.colour}" stroke-width="{BONE}"'
        yield 2 * number + 1, f'stroke="{limb.colour}" stroke-width="{2 * DOT}"'
        if limb.dots != limb.colour:
            yield 2 * number + 1, f'stroke="{limb.dots}" stroke-width="{2 * (DOT - RIM)}"'


def _paper_uri(scene: Scene) -> str:
    stream = BytesIO()
    paper(scene).quantize(64).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
