"""Generate people: DG-Net training, swapped pictures, offline images."""

__version__ = "0.2.0"
