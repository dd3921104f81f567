"""The version of this distribution, alone in a file so that nothing else is imported to read it."""

__version__ = "0.5.0"
