"""Reef: an object-detection server for Google's Coral Edge TPU."""

__version__ = "0.1.0"
