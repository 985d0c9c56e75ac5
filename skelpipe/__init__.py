"""skelpipe: self-supervised skeleton-based action recognition, raw archive in, table row out."""

__version__ = "0.1.0"
