"""The command line, a file for each family of commands."""

from .commands import app, main

__all__ = ["app", "main"]
