"""The pages hold together: links resolve, files and anchors they name are there."""

import ast
import importlib
import inspect
import os
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not DOCS.exists(), reason="not in a checkout: there are no pages"),
]


def pages() -> list[Path]:
    """Every Markdown file that is kept in the repository."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that mkdocs and code hosts give to headings."""
    found = set()
    for title in re.findall(r"^#+ +(.*)$", prose(page), flags=re.MULTILINE):
        word = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", title).strip().lower())
        found.add(re.sub(r"[\s]", "-", word))
    return found


def test_links_resolve() -> None:
    broken = []
    for page in pages():
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose(page)):
            if "://" in target or target.startswith("mailto:"):
                continue
            path = (page.parent / target).resolve() if target else page
            if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
                broken.append(f"{page.relative_to(ROOT)}: {target}#{anchor}")
    assert not broken, "\n".join(broken)


def test_the_pages_of_the_site_link_into_the_site() -> None:
    """The site is built from docs/ alone, so a link out of it would lead nowhere."""
    outside = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        if page.is_relative_to(DOCS)
        for target in re.findall(r"\]\(([^)#\s]+)", prose(page))
        if "://" not in target and not (page.parent / target).resolve().is_relative_to(DOCS)
    ]
    assert not outside, "\n".join(outside)


def test_pages_that_code_and_pages_name_exist() -> None:
    missing = []
    for path in [
        *pages(),
        *(p for folder in ("geoloc_fast", "train", "bench", "examples", "csrc") for p in files(folder)),
    ]:
        for name in re.findall(r"(?<![\w/.])docs/[\w/]+\.(?:md|jpg|png|svg)", path.read_text()):
            if not (ROOT / name).exists():
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert not missing, "\n".join(missing)


def files(folder: str) -> list[Path]:
    kinds = {".py", ".yaml", ".h", ".cpp", ".cu", ".ipynb"}
    return [path for path in (ROOT / folder).rglob("*") if path.suffix in kinds]


def documented() -> list[str]:
    """The names that the reference shows."""
    return [
        name for page in (DOCS / "reference").glob("*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    ]


def test_the_reference_shows_every_public_name() -> None:
    """Classes and functions of the face, and of every room that has an `__all__`."""
    shown = {id(thing) for name in documented() for _, thing in public(name)}
    missing = []
    for room in ["", *(f".{path.parent.name}" for path in (ROOT / "geoloc_fast").glob("*/__init__.py"))]:
        face = importlib.import_module(f"geoloc_fast{room}")
        for name in getattr(face, "__all__", []):
            thing = getattr(face, name)
            if room != ".testing" and callable(thing) and id(thing) not in shown:
                missing.append(f"{face.__name__}.{name}")
    assert not missing


def test_names_that_guides_mention_exist() -> None:
    """`geoloc_fast.room.name` in the text of a page is a name that can be imported, and has a docstring."""
    lost = []
    for page in pages():
        for name in set(re.findall(r"\bgeoloc_fast(?:\.[A-Za-z_0-9]+)+", re.sub(r"\S*/\S*", "", page.read_text()))):
            thing = None if name.endswith((".safetensors", ".py")) else pydoc.locate(name)
            if thing is None and not name.endswith((".safetensors", ".py")):
                lost.append(f"{page.relative_to(ROOT)}: {name}")
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize("name", documented())
def test_what_the_reference_shows_has_docstrings(name: str) -> None:
    undocumented = [path for path, thing in public(name) if not (inspect.getdoc(thing) or "").strip()]
    assert not undocumented


def public(name: str) -> Iterator[tuple[str, object]]:
    """A name, and what is public in it: a module's `__all__`, a class's own methods and properties."""
    thing = pydoc.locate(name)
    assert thing is not None, name
    if isinstance(thing, ModuleType):
        yield name, thing
        for inner in getattr(thing, "__all__", [n for n, v in vars(thing).items() if own(v, thing) and n[0] != "_"]):
            yield from members(f"{name}.{inner}", getattr(thing, inner))
    else:
        yield from members(name, thing)


def own(value: object, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__


def members(name: str, thing: object) -> Iterator[tuple[str, object]]:
    # A NamedTuple or dataclass without a docstring of its own has one that Python makes: its signature.
    if inspect.isclass(thing) and (thing.__doc__ or "").startswith(f"{thing.__name__}("):
        yield name, None
    if callable(thing):
        yield name, thing
    if inspect.isclass(thing) and thing.__module__.startswith("geoloc_fast"):
        for inner, value in vars(thing).items():
            if inner[0] != "_" and (
                inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
            ):
                yield f"{name}.{inner}", value


def test_the_site_is_built_strictly_and_asks_no_other_host(tmp_path: Path) -> None:
    """`docs/site.py` fails the build if a page would load something from elsewhere."""
    pytest.importorskip("mkdocs", reason="the extra [docs] is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    operators = (tmp_path / "site" / "reference" / "operators.html").read_text()
    assert "Slides every query" in operators and "one-hot" in operators
    assert "geoloc-fast fit-confidence" in (tmp_path / "site" / "reference" / "commands.html").read_text()


def test_every_room_says_where_to_begin() -> None:
    lost = []
    for room in (ROOT / "geoloc_fast").rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(room.read_text())) or ""
        begin = re.search(r"Begin with `(\w+)`", said)
        if room.parent != ROOT / "geoloc_fast" and (begin is None or not (room.parent / f"{begin[1]}.py").exists()):
            lost.append(str(room.parent.relative_to(ROOT)))
    assert not lost, "no `Begin with` that names a module: " + ", ".join(lost)


def test_what_lies_inside_a_numbered_item_is_indented_by_four() -> None:
    """The site ends a numbered list at a table, code or paragraph that is indented by less, and loses its numbers."""
    lost = []
    for page in DOCS.rglob("*.md"):
        lines = page.read_text().splitlines()
        for number, (before, line) in enumerate(pairwise(lines), start=2):
            if not before.strip() and re.match(r" {3}\S", line):
                lost.append(f"{page.relative_to(ROOT)}:{number}: {line.strip()[:40]}")
    assert not lost, "\n".join(lost)


def test_no_line_of_prose_is_longer_than_120() -> None:
    long = []
    for page in pages():
        if page.is_relative_to(ROOT / "bench"):  # what programs write
            continue
        text = re.sub(r"^( *)```.*?^ *```", blank, page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for number, line in enumerate(text.split("\n"), 1):
            kept = (
                line.lstrip().startswith(("|", "![")) or line.startswith("    ") or re.fullmatch(r"`[^`]*`[.:]?", line)
            )
            if len(line) > 120 and not kept:
                long.append(f"{page.relative_to(ROOT)}:{number}")
    assert not long, "python bench/pages.py FILE fills paragraphs anew: " + ", ".join(long)


def blank(found: re.Match[str]) -> str:
    """As many empty lines as were found."""
    return "\n" * found[0].count("\n")
