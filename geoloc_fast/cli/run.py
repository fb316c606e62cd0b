"""The command `geoloc-fast`. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 it failed (of several photos or places: some), 2 a wrong argument, 3 an index is damaged,
130 interrupted.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from geoloc_fast.cli import cluster, evaluate, index, locate, region, serve
from geoloc_fast.cli.app import app
from geoloc_fast.errors import GeolocError

__all__ = ["app", "run"]

# typer brings its own click in newer releases and the click package in older ones; both derive from this.
_ClickException: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


GROUPS = (region, index, locate, evaluate, serve, cluster)  # imported for the commands they add


@app.command()
def info() -> None:
    """Show what was built and what runs here, as JSON.

    Example: geoloc-fast info
    """
    from geoloc_fast import build_info

    typer.echo(json.dumps(build_info(), indent=1))


def run() -> None:
    """Runs the command; an error is one line on stderr, not a traceback."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
    except typer.Exit as error:
        code = error.exit_code
    except _ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "geoloc-fast"
        message = " ".join(error.format_message().split())
        print(f"{command}: {message} (see {command} --help)", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (GeolocError, OSError, ValueError, TypeError, RuntimeError) as error:
        # Problems of a manifest are a list, and stay one.
        text = str(error) if hasattr(error, "problems") else " ".join(str(error).split())
        if "torchvision::nms" in text:  # what an import of torchvision says that was built for another torch
            text += ": torch and torchvision are of different builds; install both from the same index"
        print(f"geoloc-fast: {text}", file=sys.stderr)
        code = error.exit_code if isinstance(error, GeolocError) else 1
    if code == 130:  # also what typer itself makes of Ctrl-C
        print("geoloc-fast: interrupted; no incomplete file was left", file=sys.stderr)
    sys.exit(code or 0)
