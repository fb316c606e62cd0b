"""The command `geoloc-fast`, a file a group of commands. Begin with `main`."""

from geoloc_fast.cli.main import main

__all__ = ["main"]
