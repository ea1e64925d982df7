"""Recognise people: datasets, networks, training, feature extraction."""

__version__ = "0.2.0"
