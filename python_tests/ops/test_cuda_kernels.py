"""What the CUDA compiler made of the kernels. Needs the CUDA module, and no GPU."""

import re
from collections import Counter
from functools import cache

import pytest

from geoloc_fast.testing import cuda_kernels
from geoloc_fast.testing.cuda_kernels import Kernel

pytestmark = pytest.mark.skipif(bool(cuda_kernels.problem()), reason=cuda_kernels.problem() or "-")


@cache
def kernels(architecture: str) -> list[Kernel]:
    found = cuda_kernels.kernels(architecture)
    assert found, f"no machine code for {architecture}"
    return found


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_no_tuned_kernel_spills(architecture: str) -> None:
    tuned = [kernel for kernel in kernels(architecture) if kernel.tuned]
    operators = {kernel.name.split("_kernel")[0] for kernel in tuned}
    assert {"azimuth_match", "azimuth_crop", "azimuth_crop_backward", "gumbel_noise", "polar_resample"} <= operators
    screens = {f"strip_topk_screen_kernel<{form}>" for form in ("1, 1, 1, 0", "16, 1, 1, 32", "64, 1, 1, 32")}
    assert screens <= {kernel.name for kernel in tuned}
    assert {kernel.name: kernel.spills for kernel in tuned if kernel.spills} == {}


def test_the_search_uses_tensor_cores_and_wide_copies() -> None:
    search = [kernel for kernel in kernels("sm_90") if kernel.name.startswith("strip_topk_screen_kernel")]
    assert len(search) == 10
    for kernel in search:
        assert kernel.count("HMMA") > 0, kernel.name
        assert kernel.count(r"LDGSTS[.A-Z]*[.]128") > 0, kernel.name
        assert kernel.registers <= 255 and kernel.shared <= 48 << 10


# What a pair of the screening loop is looked at by: products, window norms, the vote on whether it may belong.
LOOKED_AT = r"HMMA|MUFU[.]RSQ|VOTE[.]ANY P"
SLOW = r"MUFU[.]RCP|\bI2F|\bF2I|\bD(ADD|MUL|FMA|SETP)\b|\bSTL|\bLDL|^CALL"  # division, float64, memory of a thread


def test_the_screening_loop_keeps_to_its_budget() -> None:
    """A warp's turn at W = 16 and K = 64 in bf16: 16 strips and 8 queries, none of which may belong to an answer."""
    kernel = next(k for k in kernels("sm_90") if k.name == "strip_topk_screen_kernel<16, 1, 1, 32>")
    turn = cuda_kernels.round_trip(kernel.code, LOOKED_AT)
    assert sum("HMMA" in instruction for instruction in turn) == 120
    assert sum("VOTE.ANY P" in instruction for instruction in turn) == 4
    assert len(turn) < 1700, Counter(instruction.split()[0] for instruction in turn).most_common(12)
    assert [instruction for instruction in turn if re.search(SLOW, instruction)] == []


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_no_tuned_loop_divides_or_computes_in_float64(architecture: str) -> None:
    """The loops that a kernel spends its time in, found by what they do there."""
    loops = {
        # On sm_80 the way past the norms leads through a call for warps that have split up.
        "strip_topk_screen_kernel<16, 1, 1, 32>": LOOKED_AT if architecture == "sm_90" else "HMMA",
        "strip_topk_screen_kernel<16, 1, 1, 0>": "HMMA",
        "strip_topk_screen_kernel<16, 1, 0, 0>": "HMMA",
        "strip_topk_screen_kernel<64, 1, 1, 32>": "HMMA",
        "strip_topk_screen_kernel<64, 1, 0, 0>": "HMMA",
        "strip_topk_screen_kernel<1, 1, 1, 0>": "HMMA",
        "strip_topk_screen_kernel<1, 8, 1, 0>": "HMMA",
    }
    found = {kernel.name: kernel for kernel in kernels(architecture) if kernel.name in loops}
    assert set(found) == set(loops)
    for name, past in loops.items():
        turn = cuda_kernels.round_trip(found[name].code, past)
        assert [instruction for instruction in turn if re.search(SLOW, instruction)] == [], name


def test_the_way_round_a_loop_is_the_shortest_that_passes_all() -> None:
    lines = ["MOV R0, 1", "HMMA R0", "@P0 BRA 0x50", "MUFU.RCP R1", "DADD R2", "HMMA R3", "@P1 BRA 0x10", "EXIT"]
    code = "\n".join(f"        /*{16 * at:04x}*/    {line} ;" for at, line in enumerate(lines))
    assert cuda_kernels.round_trip(code, "HMMA") == ["@P0 BRA 0x50", "HMMA R3", "@P1 BRA 0x10", "HMMA R0"]
    assert cuda_kernels.round_trip(code, "HMMA|DADD") == [
        "@P0 BRA 0x50", "MUFU.RCP R1", "DADD R2", "HMMA R3", "@P1 BRA 0x10", "HMMA R0"
    ]  # fmt: skip
    # What lies before or after the loop is no part of it; what is in no loop has no turn.
    assert cuda_kernels.round_trip(code, "HMMA|EXIT") == cuda_kernels.round_trip(code, "HMMA")
    with pytest.raises(ValueError, match="no way on from"):
        cuda_kernels.round_trip(code, "MOV|EXIT")
