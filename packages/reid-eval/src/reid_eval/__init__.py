"""Measure person re-identification and person-image generation."""

__version__ = "0.1.0"
