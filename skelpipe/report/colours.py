"""Colours of figures: Okabe and Ito's, which colour-blind readers can tell apart."""

from __future__ import annotations

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
GREY = "#9AA0A6"


def colour(number: int) -> str:
    """The colour of the thing of that number, from 0; they begin again after the last."""
    return COLOURS[number % len(COLOURS)]


def tint(hexadecimal: str, share: float) -> str:
    """A colour mixed with white; ``share`` is that of white."""
    parts = (int(hexadecimal[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02X}" for part in parts)
