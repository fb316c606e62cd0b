"""The recipes of docs/guide/drop_in.md, before and after: the code of the page as it is printed, each part timed.

The sizes are the page's, small enough to be read; what they grow to is in the other files here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "drop_in.md"
SECTIONS: dict[str, list[str]] = {
    title: re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for title, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
}


@pytest.mark.parametrize("part", ["before", "after"])
@pytest.mark.parametrize("title", SECTIONS)
def test_drop_in(benchmark: Any, title: str, part: str) -> None:
    given, before, after = SECTIONS[title]
    names: dict[str, Any] = {}
    exec(compile(given, str(PAGE), "exec"), names)
    code = compile(before if part == "before" else after, str(PAGE), "exec")
    benchmark.group = f"drop-in: {title[0].lower()}{title[1:]}"
    benchmark.extra_info["entry"] = "geoloc_fast" if part == "after" else "before"
    benchmark.pedantic(lambda: exec(code, names), rounds=15, warmup_rounds=2)
