"""What stops a measurement."""


class CannotMeasure(Exception):
    """The server is not there, or does not answer as it should."""
