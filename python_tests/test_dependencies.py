"""Which room may know which: read from the imports and includes themselves."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "geoloc_fast"
CSRC = ROOT / "csrc"

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not CSRC.is_dir(), reason="not in a checkout: there are no sources to read"),
]

# Floors from the ground up; a room may use the rooms of lower floors and itself, nothing beside or above.
FLOORS = [
    {"_native", "errors", "files", "progress", "geo", "reference", "triton_kernels"},
    {"ops"},
    {"operators"},
    {"layers", "images", "testing"},
    {"models", "index"},
    {"data"},
    {"locate"},
    {"region", "city"},
    {"evaluation"},
    {"training"},
    {"cluster", "serve", "demo"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
OPERATOR_FILES = {"polar", "azimuth", "retrieval", "signature", "__init__"}


def room_of(module: str) -> str:
    """The room of `geoloc_fast.<module>`; the public operators share one."""
    first = module.split(".")[0]
    return "operators" if first in OPERATOR_FILES or first == "" else first


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, below `geoloc_fast`."""
    found = set()
    tree = ast.parse(path.read_text())
    if path == PACKAGE / "__init__.py":  # the face, which knows its rooms by name and imports them when asked
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "geoloc_fast":
                found |= {
                    f"{alias.name}"
                    if (PACKAGE / f"{alias.name}.py").exists() or (PACKAGE / alias.name).is_dir()
                    else ""
                    for alias in node.names
                }
            elif node.module and node.module.startswith("geoloc_fast."):
                found.add(node.module.removeprefix("geoloc_fast."))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "geoloc_fast":
                    found.add(alias.name.removeprefix("geoloc_fast").removeprefix("."))
    return found


def test_every_import_follows_the_plan() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        room = room_of(module)
        assert room in FLOOR, f"{path}: a room that the plan does not know"
        for name in imports(path):
            other = room_of(name)
            if other != room and FLOOR[other] >= FLOOR[room]:
                wrong.append(f"{module} imports {name or 'geoloc_fast'}")
    assert not wrong, "\n".join(wrong)


def test_reference_imports_torch_only() -> None:
    for path in (PACKAGE / "reference").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in {"torch", "geoloc_fast"} or top in sys.stdlib_module_names, f"{path}: {name}"


def test_one_module_imports_ray() -> None:
    having = [path for path in PACKAGE.rglob("*.py") if re.search(r"^\s*(from|import) ray\b", path.read_text(), re.M)]
    assert having == [PACKAGE / "cluster" / "on_ray.py"]


def test_package_never_imports_its_users() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (train|bench|python_tests)\b", path.read_text(), re.M), path


@pytest.mark.parametrize("folder", ["include", "common", "cpu", "cuda", "bindings", "tests"])
def test_native_core_includes(folder: str) -> None:
    allowed = {
        "include": {"geoloc_fast"},
        "common": {"geoloc_fast", "common"},
        "cpu": {"geoloc_fast", "common", "cpu"},
        "cuda": {"geoloc_fast", "common", "cuda"},
        "bindings": {"geoloc_fast", "bindings", "cpu"},  # cpu/isa.h: which instruction set
        "tests": {"geoloc_fast", "common", "cpu", "cuda", "tests"},
    }[folder]
    for path in (CSRC / folder).rglob("*.*"):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        for name in re.findall(r'#include\s*[<"]([^>"]+)[>"]', path.read_text()):
            top = name.split("/")[0]
            assert top not in {"torch", "ATen", "c10"}, f"{path}: {name}"
            assert top != "pybind11" or folder == "bindings", f"{path}: {name}"
            if top in {"geoloc_fast", "common", "cpu", "cuda", "bindings", "tests"}:
                assert top in allowed, f"{path}: {name}"


def test_kernel_sources_bring_no_inline_code_along() -> None:
    """They are compiled once per instruction set; a standard template would be shared between the builds."""
    allowed = {"cmath", "cstdint", "cstring", "cstddef", "immintrin.h", "cfloat"}
    for path in (CSRC / "cpu").glob("*_kernel.cpp"):
        for name in re.findall(r"#include\s*<([^>]+)>", path.read_text()):
            assert name in allowed, f"{path}: <{name}>"


def test_import_is_light() -> None:
    heavy = ("cv2", "bokeh", "timm", "triton", "typer", "torchvision", "PIL", "pyarrow", "ray")
    code = f"import sys, geoloc_fast; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.split() == []


def test_the_face_gives_the_system_when_asked() -> None:
    code = (
        "import sys, geoloc_fast as g\n"
        "assert 'geoloc_fast.locate.locator' not in sys.modules\n"
        "assert all(hasattr(g, name) for name in g.__all__)\n"
        "from geoloc_fast import Answer, Locator, Manifest, Photo, PlaceIndex, load_model\n"
        "assert set(g.__all__) <= set(dir(g)) and not hasattr(g, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_without_extras_the_operators_work_and_the_rest_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'cv2', 'PIL', 'pyarrow', 'safetensors', 'timm', 'tqdm', 'typer', 'bokeh'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name.split('.')[0])\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import torch, geoloc_fast as g\n"
        "g.strip_topk(torch.ones(1, 1, 1, 2), g.StripBank.pack(torch.ones(3, 1, 1, 4)), 2)\n"
        "try:\n"
        "    g.Locator\n"
        "except ImportError as error:\n"
        "    assert 'geoloc_fast[system]' in str(error)\n"
        "else:\n"
        "    raise AssertionError\n"
        "from geoloc_fast.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 1 and done.stderr == (
        "geoloc-fast: typer is not installed; pip install 'geoloc_fast[all]' brings it\n"
    )
