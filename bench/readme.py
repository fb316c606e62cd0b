"""Writes what the README shows: runs its first command and puts the output in place, and takes its picture.

    python bench/readme.py

The figures of the models are copied from docs/reference/model_card.md, the picture is of the page that
`geoloc-fast locate --report` writes. The picture needs Chromium and playwright. bench/report.py writes the table of
speeds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pages import wrapped

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
CARD = ROOT / "docs" / "reference" / "model_card.md"
PICTURE = ROOT / "docs" / "pictures" / "answer.jpg"
FIGURES = ("<!-- figures: from docs/reference/model_card.md -->", "<!-- end of figures -->")
OUTPUT = r"```\nSynthetic city .*?```"
WIDTH, CANDIDATES = 1000, 2


def command(*words: str, folder: Path) -> str:
    """What `geoloc-fast WORDS` prints, run in a folder."""
    code = "from geoloc_fast.cli import main\nif __name__ == '__main__':\n    main()"
    script = folder / "geoloc_fast_command.py"
    script.write_text(code)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script.name, *words], cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"geoloc-fast {' '.join(words)}: exit code {done.returncode}")
    return done.stdout


def figures(text: str, path: Path) -> str:
    """What stands between the marks."""
    begin, end = FIGURES
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{path}: expected one {begin} and one {end}")
    return text.split(begin)[1].split(end)[0]


def with_figures(text: str) -> str:
    """The README with the card's figures; links of the card are made the README's."""
    card = wrapped(re.sub(r"\]\(\.\./(\w+)/", r"](docs/\1/", figures(CARD.read_text(), CARD)))
    before, after = text.split(FIGURES[0])[0], text.split(FIGURES[1])[1]
    return before + FIGURES[0] + card + FIGURES[1] + after


def picture(page: Path) -> None:
    """The page's first photo with its plan and first candidates."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 3000})
        tab.goto(page.absolute().as_uri())
        card = tab.locator("article").first.bounding_box()
        last = tab.locator("article").first.locator("figure").nth(1 + CANDIDATES).bounding_box()
        assert card is not None and last is not None
        card["height"] = last["y"] + last["height"] + 8 - card["y"]
        tab.screenshot(path=PICTURE, type="jpeg", quality=82, clip={**card})
        browser.close()


def main() -> None:
    folder = ROOT / "build" / "readme"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    printed = command("demo", folder=folder)
    (photo,) = re.findall(r"geoloc-fast locate (\S+)", printed)
    text = with_figures(README.read_text())
    text = re.sub(OUTPUT, lambda _: f"```\n{printed.strip()}\n```", text, flags=re.DOTALL)
    text = re.sub(r"(geoloc-fast locate )demo/\S+", lambda found: found[1] + photo, text)
    README.write_text(text)
    command(
        "locate", photo, "--index", "demo/index", "--region", "demo/region", "--report", "answers.html", folder=folder
    )
    picture(folder / "answers.html")
    print(f"written to README.md and {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
