"""The Triton kernels in Triton's interpreter, on CPU tensors. Run by test_triton.py in a process of its own, since
TRITON_INTERPRET must be set before the kernels are defined; or by hand:

    TRITON_INTERPRET=1 pytest python_tests/ops/triton_cases.py
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from geoloc_fast import StripBank, azimuth_match, build_info, strip_topk
from geoloc_fast.ops import azimuth_crop as crop_op
from geoloc_fast.ops import azimuth_match as match_op
from geoloc_fast.ops import strip_bank as bank_op
from geoloc_fast.testing import contracts, force_backend, poisoned_outputs, random_strips
from geoloc_fast.triton_kernels import azimuth_crop as crop_kernels
from geoloc_fast.triton_kernels import azimuth_match as match_kernels
from geoloc_fast.triton_kernels import polar_resample as polar_kernels
from geoloc_fast.triton_kernels import strip_score as score_kernels
from geoloc_fast.triton_kernels import strip_topk as topk_kernels

CPU = torch.device("cpu")
SELECTIONS = contracts.SELECTIONS
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small inputs take several stretches of a bank, several Gram matrices and several sums in a row."""
    monkeypatch.setattr(topk_kernels, "_PAIRS", 1)
    monkeypatch.setattr(topk_kernels, "_FEWEST_ROWS", 32)
    monkeypatch.setattr(match_kernels, "_GRAM_NUMBERS", 20 * 16 * 33)
    monkeypatch.setattr(match_kernels, "_TERMS", 32)


def test_build_info_says_interpreted() -> None:
    triton = build_info()["backends"]["triton"]
    assert triton["available"] and triton["interpreted"] and triton["version"]


@pytest.mark.parametrize("usual", [True, False])
@pytest.mark.parametrize(
    ("images", "dtype"),
    [
        (torch.uint8, torch.uint8),
        (torch.uint8, torch.float32),
        (torch.uint8, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_polar_resample(images: torch.dtype, dtype: torch.dtype, usual: bool) -> None:
    with poisoned_outputs():
        contracts.check_polar("triton", CPU, images, dtype, usual=usual)


@pytest.mark.parametrize("dtype", FLOATS)
def test_polar_resample_backward(dtype: torch.dtype) -> None:
    contracts.check_polar_backward("triton", CPU, dtype)


def test_polar_rounds_halves_to_even() -> None:
    images = torch.tensor([0.5, 1.5, 2.5, 254.5, 300.0, -3.0, math.nan]).view(1, 7, 1, 1)
    out = polar_kernels.forward(images, 1, 1, 0.0, False, None, None, None, True, [], torch.uint8)
    assert out.flatten().tolist() == [0, 2, 2, 254, 255, 0, 0]


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize(
    ("columns", "query_columns", "mixed"), [(1, 1, False), (7, 3, False), (7, 3, True), (20, 13, True)]
)
def test_azimuth_match(columns: int, query_columns: int, select: str, mixed: bool) -> None:
    with poisoned_outputs():
        contracts.check_match("triton", CPU, select, columns=columns, query_columns=query_columns, mixed=mixed)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_azimuth_match_of_narrow_types(dtype: torch.dtype, select: str) -> None:
    contracts.check_match("triton", CPU, select, dtype, columns=5, query_columns=3, mixed=True, references=18)


@pytest.mark.parametrize("select", SELECTIONS)
def test_azimuth_match_in_several_tiles(select: str) -> None:
    inputs = random_strips(70, 20, 2, 3), random_strips(67, 20, 2, 4, seed=1)
    contracts.check_match("triton", CPU, select, inputs=inputs)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize(
    ("columns", "query_columns", "mixed"), [(1, 1, False), (7, 3, True), (16, 16, False), (20, 5, True)]
)
def test_azimuth_crop(columns: int, query_columns: int, select: str, mixed: bool) -> None:
    with poisoned_outputs():
        contracts.check_crop("triton", CPU, select, columns=columns, query_columns=query_columns, mixed=mixed)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_azimuth_crop_of_narrow_types(dtype: torch.dtype, select: str) -> None:
    contracts.check_crop("triton", CPU, select, dtype, mixed=True)


def difficult(references: int, columns: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Near ties of a few float32 roundings, exact ties, empty and nearly empty windows, extremes, NaN and Inf."""
    half = random_strips(references, 2, 2, columns)
    nearly = half * (1 + 2e-7 * torch.randn(half.shape, generator=torch.Generator().manual_seed(3)))
    strips = torch.cat([half, nearly], -1).contiguous()
    strips[1] = strips[1, :, :, :1]
    strips[2] = 0
    strips[3, :, :, 2:10] = 0
    strips[4, :, :, 2:10] *= 3e-4
    strips[5] *= 1e-30
    strips[6] *= 1e15
    strips[7, 0, 1, 3] = math.nan
    strips[8, 1, 0, 2] = math.inf
    query = random_strips(references, 2, 2, 4, seed=1)
    query[3:5] = strips[3:5, :, :, 4:8]
    query[9] = 0
    query[10, 0, 0, 0] = -math.inf
    query[11] *= 1e20
    return query, strips


@pytest.mark.parametrize("select", SELECTIONS[:2])
def test_difficult_pairs(select: str) -> None:
    query, strips = difficult(16)
    arguments: dict[str, Any] = {"select": select, "query_width": 1 + torch.arange(16) % 4}
    with force_backend("reference"):
        expected = azimuth_match(query.double(), strips.double(), **arguments)
    with force_backend("triton"):
        found = azimuth_match(query, strips, **arguments)
    assert torch.equal(found.shift, expected.shift)
    assert torch.equal(found.score.isnan(), expected.score.isnan())
    assert float((found.score - expected.score).nan_to_num().abs().max()) < 1e-6


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("check", [contracts.check_match, contracts.check_crop])
def test_broken_items_have_no_gradient_and_harm_nobody(check: Any, select: str) -> None:
    query, strips = random_strips(12, 2, 2, 4), random_strips(12, 2, 2, 8, seed=1)
    query[3, 0, 0, 1] = math.nan
    strips[5, 1, 1, 7] = -math.inf
    strips[6] = 0
    check("triton", CPU, select, inputs=(query, strips), mixed=True)


@pytest.mark.parametrize("select", SELECTIONS[:2])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "query_columns"),
    [((70, 5, 1, 1), 1), ((35, 3, 1, 7), 3), ((34, 2, 2, 16), 3)],
)
def test_bank(shape: tuple[int, int, int, int], query_columns: int, dtype: str, select: str) -> None:
    with poisoned_outputs():
        contracts.check_bank(
            "triton", CPU, dtype, select, shape=shape, query_columns=query_columns, mixed=True, alive=shape[3] == 16
        )


@pytest.mark.parametrize(
    ("shape", "query_columns", "dtype", "kind", "group"),
    [
        ((40, 5, 1, 1), 1, "bf16", "dot", 0),
        ((36, 2, 1, 7), 3, "fp32", "dot", 5),  # groups that go on from one stretch of the bank to the next
        ((34, 2, 2, 16), 3, "bf16", "cosine", 3),
    ],
)
def test_dot_and_groups(
    shape: tuple[int, int, int, int], query_columns: int, dtype: str, kind: str, group: int
) -> None:
    with poisoned_outputs():
        contracts.check_bank(
            "triton", CPU, dtype, "correlation", shape=shape, query_columns=query_columns, kind=kind, group=group,
            mixed=True, alive=group == 3,
        )  # fmt: skip


def test_groups_of_equal_strips_and_queries_of_every_size() -> None:
    strips = random_strips(2, 2, 1, 4).repeat_interleave(8, 0)
    bank = StripBank.pack(strips)
    group = torch.arange(16) // 3
    query = strips[[0, 15, 0, 0], :, :, :3] * torch.tensor([1.0, 3.0, 1e-36, 0.0])[:, None, None, None]
    for score in ("cosine", "dot"):
        with force_backend("triton"):
            found = strip_topk(query, bank, 8, score=score, group=group)
        with force_backend("reference"):
            expected = strip_topk(query, bank, 8, score=score, group=group)
        assert torch.equal(found.index, expected.index) and torch.equal(found.shift, expected.shift)
        assert (found.index[:, 6:] == -1).all() and (found.index[:, :6] >= 0).all()


def test_search_beyond_one_block_of_shifts_and_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    contracts.check_bank("triton", CPU, "fp32", "cosine", shape=(18, 1, 1, 16), query_columns=3, batch=17, k=1)
    monkeypatch.setattr(topk_kernels, "_SHIFTS", 8)
    contracts.check_bank("triton", CPU, "bf16", "correlation", shape=(35, 1, 1, 12), query_columns=3, batch=2, k=1)
    contracts.check_bank("triton", CPU, "fp32", "cosine", shape=(17, 1, 1, 12), query_columns=12, batch=2, k=3)


@pytest.mark.parametrize(("dtype", "select"), [("fp32", "cosine"), ("bf16", "correlation")])
def test_difficult_banks(dtype: str, select: str) -> None:
    """Duplicates, strips that repeat, zeros, tiny and huge ones, near ties, empty windows, NaN and Inf."""
    strips = difficult(16)[1]
    strips = torch.cat([strips, strips[9:12], strips[9:12], strips[:9]])
    strips[20] = strips[20, :, :, :8].repeat(1, 1, 2)
    contracts.check_bank("triton", CPU, dtype, select, strips=strips, k=12, query_columns=4)


def test_empty() -> None:
    with force_backend("triton"):
        for batch, references in ((0, 3), (3, 0), (0, 0)):
            query, strips = torch.zeros(batch, 2, 2, 3), torch.zeros(references, 2, 2, 4)
            assert azimuth_match(query, strips).score.shape == (batch, references)
    contracts.check_bank("triton", CPU, "bf16", "cosine", strips=torch.zeros(1, 2, 2, 4), query_columns=2, k=3)


@pytest.mark.parametrize("count", [1, 63, 64, 1500])
def test_gumbel_noise(count: int) -> None:
    contracts.check_noise("triton", CPU, count)


def test_opcheck() -> None:
    query, strips, scale = random_strips(2, 2, 1, 3), random_strips(3, 2, 1, 4, seed=1), torch.tensor(2.0)
    noise, width = torch.zeros(2, 3, 4), torch.tensor([3, 2])
    gumbel = (query, strips, width, scale, 1.0, noise)
    with force_backend("triton"):
        score, shift, slope, scale_slope = match_op.forward_with_slope(*gumbel)
        pair = (query, strips[:2], width, "gumbel", scale, 1.0, noise[:, 0])
        crop, crop_score, crop_shift = crop_op.forward(*pair)
        blocks = bank_op.pack(strips, "bf16")
        bank = (blocks, [3, 2, 1, 4], "bf16")
        for op, arguments in (
            (match_op.forward, (query, strips, width, "cosine", None, 1.0, None)),
            (match_op.forward_with_slope, gumbel),
            (
                match_op.backward,
                (torch.ones(2, 3), *gumbel[:3], "gumbel", *gumbel[3:], score, shift, slope, scale_slope),
            ),
            (crop_op.forward, pair),
            (crop_op.backward, (torch.ones_like(crop), torch.ones(2), *pair, crop_score, crop_shift)),
            (bank_op.pack, (strips, "fp32")),
            (bank_op.unpack, (*bank, torch.tensor([2, 0]))),
            (bank_op.score, (query, *bank, torch.tensor([[0, -1], [2, 1]]), None, "correlation")),
            (bank_op.score, (query, *bank, torch.tensor([[0, -1], [2, 1]]), None, "correlation", "dot")),
            (bank_op.curve, (query, *bank, torch.tensor([[0, -1], [2, 1]]), width)),
            (bank_op.topk, (query, *bank, 2, width, "cosine", None)),
            (bank_op.topk, (query, *bank, 2, width, "cosine", None, "dot", torch.tensor([4, 4, 9]))),
        ):
            torch.library.opcheck(op.overload, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("name", "check"),
    [
        (
            "first column of a window",
            lambda: contracts.check_match("triton", CPU, "correlation", columns=5, query_columns=3),
        ),
        ("energy of a window", lambda: contracts.check_match("triton", CPU, "cosine", columns=5, query_columns=3)),
        ("norm of a bound", lambda: contracts.check_bank("triton", CPU, "fp32", "cosine", shape=(60, 1, 1, 8), k=3)),
        (
            "norm of a query",
            lambda: contracts.check_bank("triton", CPU, "fp32", "cosine", shape=(60, 1, 1, 8), k=3, kind="dot"),
        ),
        ("a curve", lambda: contracts.check_bank("triton", CPU, "fp32", "cosine", shape=(20, 1, 1, 8), k=3)),
    ],
)
def test_a_broken_kernel_is_caught(name: str, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same checks fail when a line of a kernel is changed."""
    module, kernel, line, changed = {
        "first column of a window": (
            match_kernels,
            "azimuth_match_kernel",
            "strip_plane * ((s + x) % columns) + r[None, :]",
            "strip_plane * ((s + x + 1) % columns) + r[None, :]",
        ),
        "energy of a window": (
            match_kernels,
            "azimuth_match_kernel",
            "(s + width)[:, None] * references",
            "(s + width - 1)[:, None] * references",
        ),
        "norm of a bound": (
            topk_kernels,
            "strip_topk_screen_kernel",
            "column = (shift + x) % columns",
            "column = (shift + x + 1) % columns",
        ),
        "norm of a query": (topk_kernels, "strip_topk_screen_kernel", "low = low * of_norm", "low = low + of_norm"),
        "a curve": (
            score_kernels,
            "strip_curve_kernel",
            "cosine.to(tl.float32), mask=shift < columns",
            "correlation.to(tl.float32), mask=shift < columns",
        ),
    }[name]
    check()
    source = inspect_source(module)
    assert source.count(line) == 1
    monkeypatch.setattr(module, kernel, changed_module(module, source.replace(line, changed), kernel))
    with pytest.raises(AssertionError):
        check()


def inspect_source(module: Any) -> str:
    with open(module.__file__) as file:
        return file.read()


def changed_module(module: Any, source: str, kernel: str) -> Any:
    """`kernel` of a copy of `module` with another source. Triton reads sources from files."""
    import importlib.util
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / f"{module.__name__.rsplit('.', 1)[1]}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("changed", path)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return getattr(copy, kernel)


def test_crop_blocks_follow_the_sizes() -> None:
    assert crop_kernels.block_sizes(64, 16) == {"S": 16, "K": 64, "num_warps": 4}
    assert crop_kernels.block_sizes(3, 1) == {"S": 1, "K": 16, "num_warps": 4}
