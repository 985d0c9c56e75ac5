"""skelpipe: self-supervised skeleton-based action recognition, raw archive in, table row out.

In Python: `skelpipe.open_set` opens a prepared set, `skelpipe.load_encoder` a pre-trained encoder.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skelpipe.api.encoders import FeatureEncoder, load_encoder
    from skelpipe.api.sets import PreparedSet, Sample, Samples, open_set

__version__ = "0.1.0"
__all__ = [
    "FeatureEncoder",
    "PreparedSet",
    "Sample",
    "Samples",
    "__version__",
    "load_encoder",
    "open_set",
]

_PLACES = {
    "FeatureEncoder": "skelpipe.api.encoders",
    "PreparedSet": "skelpipe.api.sets",
    "Sample": "skelpipe.api.sets",
    "Samples": "skelpipe.api.sets",
    "load_encoder": "skelpipe.api.encoders",
    "open_set": "skelpipe.api.sets",
}


def __getattr__(name: str) -> Any:
    """What is in `__all__`, imported when it is first used: torch takes a second."""
    if name not in _PLACES:
        raise AttributeError(f"module 'skelpipe' has no attribute '{name}'")
    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
