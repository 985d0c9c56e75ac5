"""A scene as an animated GIF."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import pairwise
from math import ceil

from PIL import Image, ImageColor, ImageDraw

from skelpipe.errors import UserError

from .colours import GREY
from .drawing import FAINT, INK, PANEL, PAPER, draw_frame, paper
from .scene import FINE, Scene

LONGEST = 1200  # frames; Pillow keeps all of a GIF in memory until it is written
FASTEST = 50  # frames a second; viewers slow a GIF down that claims more

_SHADES = 8  # of a colour at its smoothed edge


def gif_bytes(scene: Scene) -> bytes:
    """The whole animation, at the clip's own speed; above 50 frames a second some are left out.

    Raises:
        UserError: it has more frames than a GIF should.
    """
    step = ceil(scene.clip.fps / FASTEST)
    numbers = range(0, scene.frames, step)
    if len(numbers) > LONGEST:
        raise UserError(
            f"{scene.clip.key} is too long for a GIF",
            found=f"{len(numbers):,} frames",
            expected=f"at most {LONGEST:,}",
            remedy="write HTML, which has no limit: --out FILE.html",
        )
    # Durations are whole hundredths of a second, rounded so that they add up.
    ends = [round(100 * number / scene.clip.fps) for number in (*numbers, numbers[-1] + step)]
    palette = _palette(scene)
    pictures = (
        picture.quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in pictures_of(scene, numbers)
    )
    stream = BytesIO()
    next(pictures).save(
        stream,
        "GIF",
        save_all=True,
        append_images=pictures,
        duration=[10 * max(end - start, 1) for start, end in pairwise(ends)],
        loop=0,
        optimize=False,
    )
    return stream.getvalue()


def pictures_of(scene: Scene, frames: Iterable[int]) -> Iterator[Image.Image]:
    """Pictures of some frames, counted from 0, in RGB."""
    still = paper(scene)
    for frame in frames:
        fine = still.copy()
        draw_frame(ImageDraw.Draw(fine), scene, frame)
        yield fine.reduce(FINE)  # which smooths the edges


def _palette(scene: Scene) -> Image.Image:
    """The colours of a scene, and what their smoothed edges are made of."""
    drawn = [INK, FAINT, GREY]
    drawn += [shade for limb in scene.limbs for shade in (limb.colour, limb.dots)]
    drawn += [shade for _, *shades in scene.legend for shade in shades]
    grounds = [ImageColor.getrgb(ground) for ground in (PAPER, PANEL)]
    solid = [rgb for rgb in map(ImageColor.getrgb, dict.fromkeys(drawn)) if rgb not in grounds][
        :254
    ]  # of very many bodies the last look like others
    steps = min((256 - len(grounds)) // len(solid), _SHADES)
    edges = [
        tuple(
            round(dark + (light - dark) * step / steps)
            for dark, light in zip(rgb, grounds[1], strict=True)
        )
        for step in range(steps)
        for rgb in solid
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for rgb in (*grounds, *edges) for part in rgb])
    return palette
