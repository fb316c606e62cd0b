"""What every backend promises, checked on any device: each operator against the reference in float64 on the CPU.

Used for Triton in its interpreter and for every backend on a GPU. Each check returns the plans that ran.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geoloc_fast.azimuth import azimuth_crop, azimuth_match
from geoloc_fast.ops import gumbel_noise
from geoloc_fast.ops.choose import force_backend, observe_calls
from geoloc_fast.ops.strip_bank import CUDA_SEARCHED_COLUMNS
from geoloc_fast.polar import polar_resample
from geoloc_fast.retrieval import StripBank, strip_curve, strip_score, strip_topk
from geoloc_fast.testing.inputs import random_strips
from geoloc_fast.testing.tolerance import TOLERANCE, assert_close

Calls = list[tuple[str, str, str]]
SELECTIONS = ("correlation", "cosine", "gumbel")


def _numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _noise(*shape: int) -> Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return -(-(uniform.clamp(1e-12, 1 - 1e-12)).log()).log().float()


def _widths(batch: int, columns: int) -> Tensor:
    return torch.tensor([1 + (3 * b + columns - 1) % columns for b in range(batch)])


def _on(device: torch.device, arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def _only(backend: str, calls: Calls) -> Calls:
    assert calls and {call[1] for call in calls} == {backend}, f"expected {backend} alone to run, got {calls}"
    return calls


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gradients_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The "gradient" family, and one rounding to the dtype of a gradient narrower than float32."""
    assert actual.keys() == expected.keys()
    family = TOLERANCE["gradient"]
    for name, grad in actual.items():
        e = expected[name]
        rounding = 0.0 if grad.dtype == torch.float32 else TOLERANCE[_dtype_name(grad.dtype)].relative
        excess = (grad.double().cpu() - e).abs() / (family.absolute + (family.relative + rounding) * e.abs())
        worst = float(excess.nan_to_num(torch.inf).max()) if excess.numel() else 0.0
        assert worst <= 1, f"gradient of {name}: {worst} times what is allowed"


def check_polar(
    backend: str, device: torch.device, images_dtype: torch.dtype, dtype: torch.dtype, *, usual: bool, size: int = 23
) -> Calls:
    """`usual`: the defaults, channels last. Else every argument given, contiguous images."""
    images = 255 * torch.rand((2, 3, size, size + 2), generator=torch.Generator().manual_seed(1))
    images = images.to(images_dtype)
    arguments: dict[str, Any] = {"mean": (120.0, 110.0, 100.0), "std": (60.0, 50.0, 40.0)}
    if not usual:
        arguments = {
            "column0_deg": 33.0,
            "radius": "outer",
            "center": torch.tensor([[size / 3, 9.0], [-2.0, size + 1.0]], dtype=torch.float64),
            "max_radius": torch.tensor([9.5, 14.0], dtype=torch.float64),
            "heading_deg": torch.tensor([-7000.0, 91.0], dtype=torch.float64),
            "border": "replicate",
        }
    shape = (max(3, size // 3), max(5, size))
    wide = dtype if dtype == torch.uint8 else torch.float64
    with force_backend("reference"):
        expected = polar_resample(images.double(), shape, dtype=wide, **arguments)
    given = images.to(device, memory_format=torch.channels_last if usual else torch.contiguous_format)
    with force_backend(backend), observe_calls() as calls:
        found = polar_resample(given, shape, dtype=dtype, **_on(device, arguments))
    if dtype == torch.uint8:
        assert_close(found.cpu(), expected, "grey_uint8")
    elif images_dtype == torch.uint8:
        # Half a grey level before normalisation, and one rounding to the output.
        allowed = 0.5 / (40.0 if usual else 1.0) + expected.abs() * TOLERANCE[_dtype_name(dtype)].relative
        assert float(((found.cpu().double() - expected).abs() / allowed).max()) <= 1
    else:
        # Float images: the product of a rounded coordinate with the steps between random neighbours.
        allowed = 0.05 + expected.abs() * TOLERANCE[_dtype_name(dtype)].relative
        assert float(((found.cpu().double() - expected).abs() / allowed).max()) <= 1
    return _only(backend, calls)


def check_polar_backward(backend: str, device: torch.device, dtype: torch.dtype) -> Calls:
    """Gradients of `polar_resample` on a backend against the reference; returns what ran."""

    def gradient(images: Tensor, device: torch.device) -> Tensor:
        leaf = images.to(device).requires_grad_()
        out = polar_resample(leaf, (6, 20), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
        weight = _numbers(*out.shape, seed=3).bfloat16().to(out)
        (out * weight).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    images = _numbers(2, 3, 17, 19, seed=2)
    with force_backend("reference"):
        expected = gradient(images.double(), torch.device("cpu"))
    with force_backend(backend), observe_calls() as calls:
        found = gradient(images.to(dtype), device)
    family, rounding = TOLERANCE["gradient"], TOLERANCE[_dtype_name(dtype)].relative
    # Coordinates may be float32: what a weight differs by is some 1e-6 of the size of the image.
    allowed = 5 * family.absolute + (family.relative + rounding) * expected.abs()
    assert float(((found.cpu().double() - expected).abs() / allowed).max()) <= 1
    return _only(backend, calls)


def _match(
    form: Callable[..., Any], query: Tensor, strips: Tensor, arguments: dict[str, Any], scale: float | None
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The outputs of azimuth_match or azimuth_crop, and the gradients of a weighted sum of them."""
    q, s = query.clone().requires_grad_(), strips.clone().requires_grad_()
    leaves = {"query": q, "strips": s}
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    if scale is not None:
        leaves["scale"] = torch.tensor(scale, dtype=wide, device=query.device, requires_grad=True)
        arguments = {**arguments, "scale": leaves["scale"], "tau": 0.7}
    out = form(q, s, **arguments)
    total = query.new_zeros((), dtype=wide)
    for part in out:
        if part.dtype.is_floating_point:
            weight = torch.linspace(-1, 2, part.numel(), dtype=torch.float64).reshape(part.shape).bfloat16()
            total = total + (part.nan_to_num().to(wide) * weight.to(part.device, wide)).sum()
    total.backward()
    return tuple(part.detach() for part in out), {n: leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}


def check_match(
    backend: str,
    device: torch.device,
    select: str,
    dtype: torch.dtype = torch.float32,
    *,
    columns: int = 16,
    query_columns: int = 5,
    mixed: bool = False,
    references: int = 35,
    inputs: tuple[Tensor, Tensor] | None = None,
) -> Calls:
    """Shifts without exception, scores and gradients of `azimuth_match`; `inputs` are a query and strips to try."""
    query = random_strips(5, 3, 2, query_columns, seed=columns) if inputs is None else inputs[0]
    strips = random_strips(references, 3, 2, columns, seed=columns + 1) if inputs is None else inputs[1]
    query, strips = query.to(dtype), strips.to(dtype)
    arguments: dict[str, Any] = {"select": select}
    if mixed:
        arguments["query_width"] = _widths(query.shape[0], query.shape[3])
    if select == "gumbel":
        arguments["noise"] = _noise(query.shape[0], strips.shape[0], strips.shape[3])
    scale = 5.0 if select == "gumbel" else None
    with force_backend("reference"):
        expected, gradients = _match(azimuth_match, query.double(), strips.double(), arguments, scale)
    with force_backend(backend), observe_calls() as calls:
        found, actual = _match(azimuth_match, query.to(device), strips.to(device), _on(device, arguments), scale)
    assert torch.equal(found[1].cpu(), expected[1])
    assert_close(found[0].cpu(), expected[0], "float32")
    _gradients_close(actual, gradients)
    return _only(backend, calls)


def check_crop(
    backend: str,
    device: torch.device,
    select: str,
    dtype: torch.dtype = torch.float32,
    *,
    columns: int = 16,
    query_columns: int = 5,
    mixed: bool = False,
    inputs: tuple[Tensor, Tensor] | None = None,
) -> Calls:
    """`azimuth_crop` on a backend, forward and backward, against the reference; returns what ran."""
    query = random_strips(6, 3, 2, query_columns, seed=columns) if inputs is None else inputs[0]
    strips = random_strips(6, 3, 2, columns, seed=columns + 1) if inputs is None else inputs[1]
    query, strips = query.to(dtype), strips.to(dtype)
    arguments: dict[str, Any] = {"select": select}
    if mixed:
        arguments["query_width"] = _widths(query.shape[0], query.shape[3])
    if select == "gumbel":
        arguments["noise"] = _noise(query.shape[0], strips.shape[3])
    scale = 5.0 if select == "gumbel" else None
    with force_backend("reference"):
        expected, gradients = _match(azimuth_crop, query.double(), strips.double(), arguments, scale)
    with force_backend(backend), observe_calls() as calls:
        found, actual = _match(azimuth_crop, query.to(device), strips.to(device), _on(device, arguments), scale)
    assert torch.equal(found[2].cpu(), expected[2])
    assert found[0].dtype == dtype
    assert_close(found[0].cpu(), expected[0], _dtype_name(dtype))
    assert_close(found[1].cpu(), expected[1], "float32")
    _gradients_close(actual, gradients)
    return _only(backend, calls)


def check_bank(
    backend: str,
    device: torch.device,
    dtype: str,
    select: str,
    *,
    shape: tuple[int, int, int, int] = (70, 3, 2, 16),
    query_columns: int = 5,
    batch: int = 3,
    k: int = 7,
    mixed: bool = False,
    alive: bool = False,
    kind: str = "cosine",
    group: int = 0,
    strips: Tensor | None = None,
) -> Calls:
    """Packs the same bytes as the reference, unpacks, scores, draws curves and searches: the same ids, shifts, scores.

    `kind` is that of the score. With `group`, groups have 1 to that many rows.

    Where the backend refuses to search strips of so many columns, as CUDA does but for a few, it must say so.
    """
    strips = random_strips(*shape, seed=shape[3]) if strips is None else strips
    query = random_strips(batch, *strips.shape[1:3], query_columns, seed=5)
    query[: min(batch, len(strips))] += 0.5 * strips[:batch, :, :, :query_columns].nan_to_num(0.0, 0.0, 0.0)
    arguments: dict[str, Any] = {"select": select, "score": kind}
    if mixed:
        arguments["query_width"] = _widths(batch, query_columns)
    if kind == "dot":
        query = query * torch.logspace(-2, 2, batch)[:, None, None, None]
    living: dict[str, Any] = {"alive": torch.arange(len(strips)) % 3 != 0} if alive else {}
    if group > 0:
        number = torch.arange(len(strips))
        living["group"] = (number % (group * (group + 1) // 2) == 0).cumsum(0) * group + number // group
    index = (torch.arange(batch * 4).view(batch, 4) * 5) % (len(strips) + 1) - 1
    with force_backend("reference"):
        bank = StripBank.pack(strips, dtype=dtype)
        expected = strip_topk(query, bank, k, **arguments, **living)
        expected_score = strip_score(query, bank, index, **arguments)
        expected_curve = strip_curve(query, bank, index, query_width=arguments.get("query_width"))
        stored = bank.unpack()
    with force_backend(backend), observe_calls() as calls:
        packed = StripBank.pack(strips.to(device), dtype=dtype)
        there = StripBank(bank.buffer.to(device))
        unpacked = there.unpack()
        given = _on(device, arguments)
        found_score = strip_score(query.to(device), there, index.to(device), **given)
        curve = strip_curve(query.to(device), there, index.to(device), query_width=given.get("query_width"))
        try:
            found = strip_topk(query.to(device), there, k, **given, **_on(device, living))
            refused = ""
        except RuntimeError as error:
            refused = str(error)
            if "the search has kernels for" not in refused:
                raise
    assert bool(refused) == (backend == "cuda" and strips.shape[3] not in CUDA_SEARCHED_COLUMNS), refused
    assert packed.buffer.shape == bank.buffer.shape
    if bool(strips.isfinite().all()):  # NaN has many bytes
        # A sum that lies halfway between two numbers rounds either way, by the order of its terms.
        same = (packed.buffer.cpu() == bank.buffer).double().mean()
        assert float(same) > 0.99, f"{1 - float(same):.2%} of the bytes differ"
    torch.testing.assert_close(unpacked.cpu(), stored, rtol=2e-7, atol=1e-30, equal_nan=True)
    assert torch.equal(found_score.shift.cpu(), expected_score.shift)
    assert_close(found_score.score.cpu(), expected_score.score, "float32")
    assert_close(curve.cpu(), expected_curve, "float32")
    if not refused:
        assert torch.equal(found.index.cpu(), expected.index)
        assert torch.equal(found.shift.cpu(), expected.shift)
        assert_close(found.score.cpu(), expected.score, "float32")
    return _only(backend, calls)


def check_noise(backend: str, device: torch.device, count: int) -> Calls:
    """Gumbel noise on a backend is that of the reference for the same seed; returns what ran."""
    seed = torch.tensor(0x123456789ABCDEF)
    with force_backend("reference"):
        expected = gumbel_noise.draw(seed, [count], torch.float64)
    with force_backend(backend), observe_calls() as calls:
        found = gumbel_noise.draw(seed.to(device), [count], torch.float32)
    assert_close(found.cpu(), expected, "float32")
    return _only(backend, calls)
