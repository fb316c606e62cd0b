"""Hooks of mkdocs: the page of commands is what `--help` prints, and no page loads anything from another host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

MARKER = "<!-- every command's help -->"
LOADED = re.compile(
    r"""<(?:script|img|iframe|link|source)\b[^>]*?(?:src|href)=["']?(https?:)?//[^"'\s>]+""", re.IGNORECASE
)


def commands() -> str:
    """Every command and group with its help, as Markdown."""
    import typer
    from typer.testing import CliRunner

    from geoloc_fast.cli.run import app

    pages: list[str] = []

    def add(words: list[str], command: Any) -> None:
        done = CliRunner().invoke(app, [*words, "--help"], prog_name="geoloc-fast", env={"COLUMNS": "100"})
        if done.exit_code:
            raise RuntimeError(f"geoloc-fast {' '.join(words)} --help: {done.output}")
        title = " ".join(["geoloc-fast", *words])
        pages.append(f"## {title}\n\n```\n{done.output.strip()}\n```\n")
        for name, inner in getattr(command, "commands", {}).items():
            add([*words, name], inner)

    add([], typer.main.get_command(app))
    return "\n".join(pages)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called with every page before it is rendered."""
    return markdown.replace(MARKER, commands()) if MARKER in markdown else markdown


def on_post_build(config: Any, **_: Any) -> None:
    """Called when all is written: fails if a page would ask another host for something."""
    for page in Path(config.site_dir).rglob("*.html"):
        for found in LOADED.finditer(page.read_text()):
            raise RuntimeError(f"{page}: loads from elsewhere: {found[0]}")
