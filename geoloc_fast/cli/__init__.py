"""The command `geoloc-fast`, with one file per group of commands.

This room may use every other room, and no room uses it. Commands read options, call the package and print; the work
itself is done elsewhere. Begin with `run`.
"""

import os
import sys


def main() -> None:
    """Runs the command; if only the operators are installed, says what to install."""
    # A network is a hundred short parallel regions. By default torch's threads spin at the end of each, and beside
    # another busy process they spin away the core that their partner waits for. Torch reads this once, when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from geoloc_fast.cli.run import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("geoloc_fast"):
            raise
        print(f"geoloc-fast: {error.name} is not installed; pip install 'geoloc_fast[all]' brings it", file=sys.stderr)
        sys.exit(1)
    run()
