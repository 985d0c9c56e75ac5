from __future__ import annotations

from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageSequence
from sets import tree, walk

from skelpipe.errors import UserError
from skelpipe.report.gif import LONGEST, gif_bytes, pictures_of
from skelpipe.report.scene import Clip, lay_out


def clip(frames: int, joints: int = 17, bodies: int = 1, fps: float = 30) -> Clip:
    return Clip("key", "what", walk(1, frames, joints, bodies), tree(joints), fps)


def opened(clip: Clip) -> tuple[list[Image.Image], list[int]]:
    """Frames of a clip's GIF, and how long each stands, in milliseconds."""
    with Image.open(BytesIO(gif_bytes(lay_out(clip)))) as gif:
        assert gif.info["loop"] == 0
        shown = [
            (frame.convert("RGB"), frame.info["duration"]) for frame in ImageSequence.Iterator(gif)
        ]
    return [picture for picture, _ in shown], [duration for _, duration in shown]


def count_of(picture: Image.Image, colour: str) -> int:
    return int((np.array(picture) == ImageColor.getrgb(colour)).all(-1).sum())


@pytest.mark.parametrize(("joints", "bodies"), [(15, 2), (17, 1), (20, 1)])
def test_a_frame_for_every_frame_at_the_recorded_speed(joints: int, bodies: int) -> None:
    pictures, durations = opened(clip(31, joints, bodies))
    assert len(pictures) == 31
    assert sum(durations) == 1030  # 31 frames at 30 a second, in hundredths of a second
    assert set(durations) == {30, 40}


def test_every_frame_differs_from_the_one_before_in_the_picture_not_the_number_alone() -> None:
    pictures, _ = opened(clip(12))
    below = [np.array(picture)[60:] for picture in pictures]
    assert all((now != before).any() for before, now in pairwise(below))


def test_frames_that_no_viewer_would_show_are_left_out() -> None:
    pictures, durations = opened(clip(120, fps=120))
    assert (len(pictures), sum(durations)) == (40, 1000)


def test_an_absent_body_is_not_drawn() -> None:
    two = clip(4, 15, 2)
    two.poses_MTJC[1, 2:] = 0
    scene = lay_out(two)
    shades = {limb.colour for limb in scene.limbs if limb.body == 1}
    pictures, _ = opened(two)
    legend = scene.height // 2 - 34
    seen = [
        sum(count_of(picture.crop((0, 60, picture.width, legend)), shade) for shade in shades)
        for picture in pictures
    ]
    assert min(seen[:2]) > 100
    assert max(seen[2:]) == 0


def test_colours_survive_the_palette() -> None:
    many = Clip("key", "", walk(0, 1, 15, 30), tree(15), 30, bodies=tuple(map(str, range(30))))
    for chosen in (clip(1, 15, 2), many):
        scene = lay_out(chosen)
        ((drawn,), _), (fine,) = opened(chosen), pictures_of(scene, [0])
        for shade in {limb.colour for limb in scene.limbs}:
            assert count_of(drawn, shade) >= count_of(fine, shade) > 0
        assert (np.array(drawn)[:5] == 255).all()  # the paper is white


def test_long_texts_are_cut_and_run_into_nothing() -> None:
    name = "Wählt 一\n" * 4000
    short, long = (
        next(pictures_of(lay_out(Clip(key, what, walk(1, 3, 17), tree(17), 30)), [1]))
        for key, what in (("key", ""), (name, name))
    )
    assert short.size == long.size
    counter = (short.width - 160, 0, short.width, 40)
    assert (np.array(short.crop(counter)) == np.array(long.crop(counter))).all()


def test_what_would_not_fit_into_memory_is_refused() -> None:
    with pytest.raises(UserError, match=r"too long for a GIF[^$]*\.html"):
        gif_bytes(lay_out(clip(LONGEST + 1)))


def test_the_same_bytes_again() -> None:
    assert gif_bytes(lay_out(clip(5))) == gif_bytes(lay_out(clip(5)))
