"""A scene drawn with Pillow, in its own fine units."""

from __future__ import annotations

from functools import cache

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from .colours import GREY
from .scene import FINE, FOOTER, MARGIN, Scene

INK, FAINT, PAPER, PANEL = "#1D2329", "#5B6570", "#FFFFFF", "#F3F5F7"
BONE, DOT, RIM = 7 * FINE // 2, 5 * FINE // 2, FINE  # width of a bone; radius and rim of a joint

_LETTERS = 300  # of a text; no line holds more
_TITLE = 26 * FINE  # where the title's letters stand
_WORD, _GAP = 14 * FINE, 12 * FINE  # a legend's name begins so far right of its mark; between two


def paper(scene: Scene) -> Image.Image:
    """What is the same in all frames: texts, grounds, floors, the scale bar and the legend."""
    sheet = Image.new("RGB", (scene.width, scene.height), PAPER)
    pen = ImageDraw.Draw(sheet)
    _title(pen, scene)
    for view in scene.views:
        pen.rectangle((view.left, view.top, view.right, view.bottom), PANEL)
        place = (view.left + 2 * FINE, view.top - 6 * FINE)
        pen.text(place, view.caption, FAINT, _font(12), anchor="ls")
        if view.floor is not None:
            ends = (view.left + 6 * FINE, view.floor, view.right - 6 * FINE, view.floor)
            pen.line(ends, GREY, FINE)
    _legend(pen, scene, _scale_bar(pen, scene))
    return sheet


def draw_frame(pen: ImageDraw.ImageDraw, scene: Scene, frame: int) -> None:
    """Draw the bodies of a frame, and its number."""
    right = scene.width - MARGIN
    pen.text((right, _TITLE), scene.counter(frame), FAINT, _font(13), anchor="rs")
    for xy_MJ2 in scene.xy_VMTJ2[:, :, frame]:
        for limb in scene.limbs:
            if not scene.present_MT[limb.body, frame]:
                continue
            points = [(x, y) for x, y in xy_MJ2[limb.body].tolist()]
            for start, end in limb.bones:
                pen.line([points[start], points[end]], limb.colour, BONE)
            for joint in limb.joints:
                _dot(pen, *points[joint], limb.dots, limb.colour)


def _title(pen: ImageDraw.ImageDraw, scene: Scene) -> None:
    bold, normal = _font(16, bold=True), _font(14)
    counter = _font(13).getlength(scene.counter(scene.frames - 1))
    room = scene.width - 2 * MARGIN - counter - 16 * FINE
    name = _shortened(scene.clip.key, bold, room)
    pen.text((MARGIN, _TITLE), name, INK, bold, anchor="ls")
    taken = bold.getlength(name) + 10 * FINE
    what = _shortened(scene.clip.what, normal, room - taken)
    pen.text((MARGIN + taken, _TITLE), what, INK, normal, anchor="ls")


def _scale_bar(pen: ImageDraw.ImageDraw, scene: Scene) -> float:
    """Draw the bar at the right; returns where room for other things ends."""
    right, base = scene.width - MARGIN, scene.height - _base()
    if scene.bar is None:
        return right
    length, label = scene.bar
    end = right - _font(12).getlength(label) - 6 * FINE
    pen.text((right, base), label, FAINT, _font(12), anchor="rs")
    pen.line((end - length, base - 4 * FINE, end, base - 4 * FINE), FAINT, 2 * FINE)
    return end - length - 16 * FINE


def _legend(pen: ImageDraw.ImageDraw, scene: Scene, right: float) -> None:
    """Marks and names from the left on, as many as there is room for."""
    left, base = float(MARGIN), scene.height - _base()
    for long_name, shade, dot in scene.legend:
        name = _shortened(long_name, _font(12), right)
        wide = _WORD + _font(12).getlength(name)
        if left + wide > right:
            pen.text((left, base), "…", FAINT, _font(12), anchor="ls")
            return
        middle = base - 4 * FINE
        pen.line((left, middle, left + 10 * FINE, middle), shade, BONE)
        _dot(pen, round(left) + 5 * FINE, middle, dot, shade)
        pen.text((left + _WORD, base), name, INK, _font(12), anchor="ls")
        left += wide + _GAP


def _base() -> int:
    """How far above the picture's end the letters of the legend stand."""
    return FOOTER * 3 // 8


def _dot(pen: ImageDraw.ImageDraw, x: int, y: int, inside: str, rim: str) -> None:
    pen.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), inside, rim, RIM)


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """A text on one line, cut where there is no more room."""
    text = " ".join(text[:_LETTERS].split())
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…" if text else ""


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of a size in pixels, which comes with Matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size * FINE)
