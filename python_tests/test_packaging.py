"""What is released: one version, a lock that covers what is asked for, workflows that run what is there."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import geoloc_fast

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 reads no TOML by itself")

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not in a checkout: nothing is released from here"),
]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_in_one_place(project: dict[str, Any]) -> None:
    assert "version" not in project and project["dynamic"] == ["version"]
    text = (ROOT / "geoloc_fast" / "_native.py").read_text()
    assert re.findall(r'^__version__ = "(.*)"$', text, re.M) == [geoloc_fast.__version__]


def test_the_changelog_has_the_version_or_says_unreleased() -> None:
    first = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert first == "Unreleased" or first.startswith(geoloc_fast.__version__)


def test_the_lock_covers_what_the_project_asks_for(project: dict[str, Any]) -> None:
    """`make lock` writes it anew; every line of it has hashes."""
    requirements = pytest.importorskip("packaging.requirements")
    lock = (ROOT / ".ci" / "lock.txt").read_text()
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9.-]+)(?:\[[^]]*\])?==([^ \\;]+)", lock, re.M):
        locked.setdefault(name, []).append(version)
    assert lock.count("--hash=sha256:") > len(locked)
    for text in [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]:
        wanted = requirements.Requirement(text)
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if name != "geoloc-fast":
            assert name in locked, f"{text} is not in .ci/lock.txt: make lock"
            assert all(wanted.specifier.contains(version) for version in locked[name]), (text, locked[name])


def test_a_release_has_the_notes_of_its_version_and_wheels_of_both_kinds(tmp_path: Path) -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text())["jobs"]
    (command,) = (step["run"] for step in jobs["release"]["steps"] if "gh release create" in step.get("run", ""))
    (notes,) = re.findall(r"^awk .*$", command, re.M)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0\n\n- new\n\n## 0.1.0\n\n- first\n- last\n")
    for version, lines in {"0.2.0": ["- new"], "0.1.0": ["- first", "- last"], "0.3.0": []}.items():
        subprocess.run(["sh", "-c", f"version={version}; {notes}"], cwd=tmp_path, check=True)
        assert [line for line in (tmp_path / "notes.md").read_text().splitlines() if line] == lines
    (mark,) = (step["run"] for step in jobs["cuda"]["steps"] if step.get("run", "").startswith("sed"))
    file = tmp_path / "geoloc_fast" / "_native.py"
    file.parent.mkdir()
    file.write_text((ROOT / "geoloc_fast" / "_native.py").read_text())
    subprocess.run(["sh", "-c", mark], cwd=tmp_path, check=True)
    assert f'__version__ = "{geoloc_fast.__version__}+cuda"' in file.read_text()


def test_operators_need_torch_and_numpy_alone(project: dict[str, Any]) -> None:
    assert sorted(re.split("[><=]", line)[0] for line in project["dependencies"]) == ["numpy", "torch"]


def test_workflows_run_what_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            assert "timeout-minutes" in job or job.get("needs")
            for command in (step.get("run", "") for step in job["steps"]):
                for target in re.findall(r"^make ([a-z-]+)", command, re.M):
                    assert target in targets, (path.name, command)
                for file in re.findall(r"(?:^|/)(\.ci/\w+|python_tests/\w+\.py)", command):
                    assert (ROOT / file).exists(), (path.name, command)


def test_forms_and_citation_are_yaml() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text()), path
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == "Apache-2.0" and len(citation["references"]) == 3
    assert citation["references"][0]["doi"] == "10.1016/j.isprsjprs.2025.09.024"


def test_the_source_distribution_has_what_a_build_needs(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core", reason="the extra [dev] is not installed")
    code = f"import scikit_build_core.build as b; print(b.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[-1] for name in tar.getnames()}
    assert {"pyproject.toml", "CMakeLists.txt", "csrc/CMakeLists.txt", "LICENSE", "NOTICE", "README.md"} <= names
    assert "geoloc_fast/_native.py" in names and not any(name.endswith(".so") for name in names)
    assert not any(name.startswith(("docs/", "python_tests/", "bench/")) for name in names), sorted(names)


def test_the_installed_version_is_this_one() -> None:
    try:
        installed = importlib.metadata.version("geoloc_fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("geoloc_fast is not installed, only on the path")
    assert installed == geoloc_fast.__version__
