"""The command line, a file for each family of commands."""

from .root import app, main

__all__ = ["app", "main"]
