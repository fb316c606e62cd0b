"""Prose of Markdown pages in lines of at most 118 columns.

    python bench/pages.py README.md docs/guide/locate.md

Tables, code, headings, pictures and comments stay as they are; a code span is never broken.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

WIDTH = 118
_ITEM = re.compile(r"\s*(?:[-*]|\d+\.)\s+")
_KEPT = (":::", "#", "|", "<!--", "![", ">")


def wrapped(page: str) -> str:
    """The page with its paragraphs and list items filled anew."""
    out: list[str] = []
    paragraph: list[str] = []
    in_code = False

    def flush() -> None:
        if not paragraph:
            return
        item = _ITEM.match(paragraph[0])
        lead = item[0] if item else re.match(r"\s*", paragraph[0])[0]  # type: ignore[index]
        text = " ".join([paragraph[0][len(lead) :], *(line.strip() for line in paragraph[1:])])
        text = re.sub(r"`[^`]*`", lambda span: span[0].replace(" ", "\0"), text)
        lines = textwrap.wrap(
            text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead),
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        out.extend(line.replace("\0", " ") for line in lines)
        paragraph.clear()

    for line in page.split("\n"):
        bare = line.lstrip()
        if bare.startswith("```"):
            in_code = not in_code
        block_of_code = line.startswith("    ") and not paragraph and not _ITEM.match(line)
        if in_code or bare.startswith(("```", *_KEPT)) or not bare or block_of_code:
            flush()
            out.append(line)
            continue
        if _ITEM.match(line):
            flush()
        paragraph.append(line)
    flush()
    return "\n".join(out)


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(wrapped(path.read_text()))


if __name__ == "__main__":
    main()
