"""What nvcc made of the CUDA kernels: registers, stack, shared memory and instructions, read from the built module.

`python -m geoloc_fast.testing.cuda_kernels > bench/results/cuda_kernels.md` writes the report; it needs cuobjdump and
nvdisasm, of a CUDA toolkit or of the triton package, and no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from geoloc_fast import _native

# What is not tuned: lengths of no kind, with tables and recursion, and packing, which happens once.
GENERAL = re.compile(r"strip_\w+_kernel<0>|strip_pack_kernel")

# Template arguments as the linker writes them; a later S3_ or so repeats the last type spelt out.
_TYPES = {"13__nv_bfloat16": "bf16", "6__half": "half", "h": "uint8", "f": "float"}
_ARGUMENT = re.compile(r"L(?:[ibln]|NS_?\w*?E)(\d+)E|(13__nv_bfloat16|6__half|S\w*_|[hf])")


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: what it takes of the GPU, and its machine code."""

    name: str  # strip_topk_screen_kernel<16, 1, 1>
    architecture: str  # sm_90
    registers: int
    stack: int  # bytes per thread, of the ABI and of arrays and spilled values
    shared: int  # static bytes per block
    code: str  # SASS

    @property
    def tuned(self) -> bool:
        return not GENERAL.search(self.name)

    @property
    def spills(self) -> int:
        """Instructions that write registers to memory or read them back."""
        return self.count("STL") + self.count("LDL")

    def count(self, instruction: str) -> int:
        return len(re.findall(rf"\b{instruction}", self.code))


def _program(code: str) -> tuple[list[str], list[list[int]]]:
    """Instructions, and for each those that may come next. Where a warp splits up (BRA.DIV) it is taken not to."""
    found = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", code, re.MULTILINE)
    text = [instruction for _, instruction in found]
    place = {int(address, 16): at for at, (address, _) in enumerate(found)}
    after: list[list[int]] = []
    joins: dict[str, int] = {}  # where those go on that wait at a barrier
    for at, instruction in enumerate(text):
        guarded = instruction.startswith("@")
        name, _, operands = (instruction.split(None, 1)[1] if guarded else instruction).partition(" ")
        operands = operands.strip()
        address = re.search(r"0x([0-9a-f]+)$", operands)
        to = place.get(int(address[1], 16), -1) if address else -1
        follows = [at + 1] if at + 1 < len(text) else []
        if name.startswith("BSSY"):
            joins[operands.split(",")[0]] = to
        if name.startswith("BSYNC") and operands in joins:
            follows = [joins[operands], *(follows if guarded else [])]
        elif name.startswith("BRA") and not name.startswith("BRA.DIV") and to >= 0:
            follows = [to, *(follows if guarded or operands.startswith(("P", "!P", "UP", "!UP")) else [])]
        elif name.startswith(("EXIT", "RET")) and not guarded:
            follows = []
        after.append(follows)
    return text, after


def round_trip(code: str, past: str) -> list[str]:
    """The instructions of one turn of a loop in which nothing unusual happens: from the first that matches `past` by
    all others of its loop that do, in their order in the code, and back to it, each time the shortest way."""
    text, after = _program(code)
    # What comes after is where a warp goes that has split up.
    end = next((at for at, instruction in enumerate(text) if "WARPSYNC.COLLECTIVE" in instruction), len(text))
    matching = [at for at in range(end) if re.search(past, text[at])]
    ways = {here: _reached(after, here) for here in matching}
    first = matching[0]
    stops = [at for at in matching if at in ways[first] and first in ways[at]]
    if not stops:
        raise ValueError(f"no way on from {text[first]!r} and back to it")
    turn: list[str] = []
    for here, goal in zip(stops, [*stops[1:], first], strict=True):
        if goal not in ways[here]:
            raise ValueError(f"no way on from {text[here]!r} to {text[goal]!r}, which match {past!r}")
        steps, at = [goal], ways[here][goal]
        while at != here:
            steps.append(at)
            at = ways[here][at]
        turn += [text[step] for step in reversed(steps)]
    return turn


def _reached(after: list[list[int]], here: int) -> dict[int, int]:
    """Where one can get from an instruction, each with the one before it on a shortest way."""
    came: dict[int, int] = {}
    queue = deque([here])
    while queue:
        at = queue.popleft()
        for following in after[at]:
            if following not in came:
                came[following] = at
                queue.append(following)
    return came


def _tool(name: str) -> str | None:
    folders = [os.environ.get("CUDA_PATH", "/usr/local/cuda") + "/bin"]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


def problem() -> str:
    """Empty if the kernels can be looked at here, else the reason."""
    if _native.native_cuda is None:
        return _native.cuda_problem
    for name in ("cuobjdump", "nvdisasm"):
        if _tool(name) is None:
            return f"no {name} on the PATH, in the CUDA toolkit or in the triton package"
    return ""


def _readable(mangled: str) -> str:
    found = re.search(r"\d+((?:azimuth|gumbel|polar|strip)\w*?_kernel)(?:I(.*?)EE?v)?", mangled)
    if not found:
        return mangled
    arguments: list[str] = []
    for number, kind in _ARGUMENT.findall(found[2] or ""):
        arguments.append(number or _TYPES.get(kind) or arguments[-1])
    return f"{found[1]}<{', '.join(arguments)}>" if arguments else found[1]


def _run(*arguments: str) -> str:
    tool, disassembler = _tool("cuobjdump"), _tool("nvdisasm")
    assert tool is not None and disassembler is not None, problem()
    path = os.pathsep.join([os.path.dirname(disassembler), os.environ.get("PATH", "")])
    module = str(_native.native_cuda.__file__)  # type: ignore[union-attr]
    return subprocess.run(
        [tool, *arguments, module], check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    ).stdout


def kernels(architecture: str) -> list[Kernel]:
    """Every kernel of the module that is machine code for `architecture`."""
    usage = {
        name: {field: int(value) for field, value in re.findall(r"(\w+):(\d+)", line)}
        for name, line in re.findall(r"Function (\w+):\n\s*(.*)", _run("-arch", architecture, "-res-usage"))
    }
    found = []
    for part in re.split(r"\n\s+Function : ", _run("-arch", architecture, "-sass"))[1:]:
        name = part.split(None, 1)[0]
        use = usage[name]
        found.append(Kernel(_readable(name), architecture, use["REG"], use["STACK"], use["SHARED"], part))
    return sorted(found, key=lambda kernel: kernel.name)


def main() -> None:
    """Prints the report on every CUDA kernel."""
    if problem():
        raise SystemExit(problem())
    print("# What nvcc made of the CUDA kernels\n")
    print(f"By nvcc {_native.native_cuda.nvcc}: `python -m geoloc_fast.testing.cuda_kernels`. ", end="")  # type: ignore[union-attr]
    print("Bytes of stack a thread and of static shared memory a block; what a launch asks for besides is decided in")
    print("`csrc/cuda/*_heuristics.h`. Spills, tensor-core instructions, 16-byte copies: places in the machine code.")
    print("General kernels, for lengths without a transform of their own, may spill; no other kernel may.\n")
    print("| kernel | | registers | stack | static shared | spills | tensor-core instructions | 16-byte copies |")
    print("|---|---|---|---|---|---|---|---|")
    for architecture in ("sm_80", "sm_90"):
        for kernel in kernels(architecture):
            print(
                f"| `{kernel.name}`{'' if kernel.tuned else ' (general)'} | {architecture} | {kernel.registers} "
                f"| {kernel.stack} | {kernel.shared} | {kernel.spills} | {kernel.count('HMMA')} "
                f"| {kernel.count(r'LDG(STS)?[.A-Z]*[.]128')} |"
            )


if __name__ == "__main__":
    main()
