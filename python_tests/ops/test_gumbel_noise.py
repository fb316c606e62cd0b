"""gumbel_noise: the generator against published answers, kernel against reference, values against the law."""

import math

import pytest
import torch

from geoloc_fast.ops import gumbel_noise as op
from geoloc_fast.reference import gumbel_noise as reference
from geoloc_fast.testing import assert_close, available_isas, force_isa, observe_calls, poisoned_outputs

SEED = torch.tensor(0x0123456789ABCDEF)


def test_philox_known_answer() -> None:
    """The first known-answer vector of Random123's philox4x32-10: counter and key 0."""
    words = reference.philox(torch.zeros(1, dtype=torch.int64), torch.tensor(0))
    assert [int(word) for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_reference_product() -> None:
    a = torch.tensor([0, 1, 0xFFFFFFFF, 0x80000000, 0x12345678])
    high, low = reference._product(a, 0xD2511F53)
    for value, h, w in zip(a.tolist(), high.tolist(), low.tolist(), strict=True):
        assert (h << 32) | w == value * 0xD2511F53


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 100_003])
def test_kernel(isa: str, count: int) -> None:
    with force_isa(isa), observe_calls() as calls, poisoned_outputs():
        found = op.draw(SEED, [count], torch.float32)
    assert calls == [("gumbel_noise", "cpu", "")]
    assert_close(found, reference.gumbel_noise(SEED, count, torch.float64), "float32")


def test_same_values_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        draws = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            draws.append(op.draw(SEED, [333, 77], torch.float32))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])


def test_law() -> None:
    """Mean, variance and distribution function of the standard Gumbel law; blocks and seeds uncorrelated."""
    n = 1 << 20
    noise = op.draw(SEED, [n], torch.float32).double()
    assert abs(float(noise.mean()) - 0.5772156649) < 5 * math.pi / math.sqrt(6 * n)
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.02
    ordered = noise.sort().values
    law = (-(-ordered).exp()).exp()
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert float((law - steps).abs().max()) < 1.95 / math.sqrt(n)  # Kolmogorov: once in a thousand
    lagged = torch.corrcoef(torch.stack([noise[:-64], noise[64:]]))[0, 1]
    assert abs(float(lagged)) < 5 / math.sqrt(n)
    other = op.draw(SEED + 1, [n], torch.float32).double()
    assert abs(float(torch.corrcoef(torch.stack([noise, other]))[0, 1])) < 5 / math.sqrt(n)


def test_float64_is_the_reference() -> None:
    with observe_calls() as calls:
        found = op.draw(SEED, [3, 5], torch.float64)
    assert calls == [("gumbel_noise", "reference", "")] and found.shape == (3, 5) and found.dtype == torch.float64


def test_opcheck() -> None:
    torch.library.opcheck(
        op.draw.overload,
        (SEED, [3, 5], torch.float32),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
