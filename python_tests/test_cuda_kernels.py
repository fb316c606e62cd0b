"""What the CUDA compiler made of the kernels. Needs the CUDA module, and no GPU."""

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
    assert {f"strip_topk_screen_kernel<{columns}, 1, 1>" for columns in (1, 16, 64)} <= {k.name for k in tuned}
    assert {kernel.name: kernel.spills for kernel in tuned if kernel.spills} == {}


def test_the_search_uses_tensor_cores_and_wide_copies() -> None:
    search = [kernel for kernel in kernels("sm_90") if kernel.name.startswith("strip_topk_screen_kernel")]
    assert len(search) == 8
    for kernel in search:
        assert kernel.count("HMMA") > 0, kernel.name
        assert kernel.count(r"LDGSTS[.A-Z]*[.]128") > 0, kernel.name
        assert kernel.registers <= 255 and kernel.shared <= 48 << 10
