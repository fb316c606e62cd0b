"""The pages hold together: links resolve, files and anchors they name are there."""

import re
import subprocess
from pathlib import Path

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
