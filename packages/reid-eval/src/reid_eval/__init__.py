"""Measure person re-identification and person-image generation."""

__version__ = "0.2.0"
