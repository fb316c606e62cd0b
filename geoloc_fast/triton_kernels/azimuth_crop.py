"""`azimuth_crop` in Triton, and the exact comparison of one query with one strip that `azimuth_match` decides by.

One program per pair. Everything is summed in float64 over the tensors as they are given, in an order that is the same
for every shift, so equal windows tie exactly: a pair is W w K multiply-adds on 4 (W + 2 w) K bytes, and a batch has few
pairs. The backward is a kernel for the products of every window, a softmax of W numbers a pair in torch, and a kernel
for the gradients; formula in csrc/include/geoloc_fast/azimuth_crop.h.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoloc_fast.triton_kernels import on_device_of, padded
from geoloc_fast.triton_kernels.rounding import rounded

SELECTION = {"correlation": 0, "cosine": 1, "gumbel": 2}
MIN_ENERGY_SHARE = tl.constexpr(1e-6)
DOT = tl.constexpr(3)  # of SELECT


@triton.jit
def load_width(query_width, b, query_columns):
    """How many columns of query b exist."""
    if query_width is None:
        width = query_columns
    else:
        width = tl.minimum(tl.maximum(tl.load(query_width + b), 0), query_columns).to(tl.int32)
    return width


@triton.jit
def value_offset(k, height, stride_c, stride_h):
    """Of value k = (c, h) in an item."""
    return k // height * stride_c + k % height * stride_h


@triton.jit
def energy_of(item, columns, values, height, stride_c, stride_h, stride_x, S: tl.constexpr, K: tl.constexpr):
    """Sum of squares of the first `columns` columns, float64; not finite where the item is not."""
    total = tl.zeros([S, K], tl.float64)
    for first_x in range(0, columns, S):
        x = (first_x + tl.arange(0, S)).to(tl.int64)
        for first_k in range(0, values, K):
            k = (first_k + tl.arange(0, K)).to(tl.int64)
            at = value_offset(k, height, stride_c, stride_h)[None, :] + x[:, None] * stride_x
            value = tl.load(item + at, mask=(k < values)[None, :] & (x < columns)[:, None], other=0.0).to(tl.float64)
            total += value * value
    return tl.sum(tl.sum(total, 1), 0)


@triton.jit
def compare_windows(
    query, strip, shift, width, columns, values, height,
    query_c, query_h, query_x, strip_c, strip_h, strip_x, S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """float64 correlation with, and energy of, the windows at `shift` [S]."""
    correlation = tl.zeros([S, K], tl.float64)
    energy = tl.zeros([S, K], tl.float64)
    for x in range(width):
        column = ((shift + x) % columns).to(tl.int64)
        for first in range(0, values, K):
            k = (first + tl.arange(0, K)).to(tl.int64)
            inside = k < values
            a = tl.load(query + value_offset(k, height, query_c, query_h) + x * query_x, mask=inside, other=0.0)
            at = value_offset(k, height, strip_c, strip_h)[None, :] + column[:, None] * strip_x
            value = tl.load(strip + at, mask=inside[None, :], other=0.0).to(tl.float64)
            correlation += a.to(tl.float64)[None, :] * value
            energy += value * value
    return tl.sum(correlation, 1), tl.sum(energy, 1)


@triton.jit
def choose_window(
    query, strip, noise, noise_stride, scale, tau, width, columns, values, height,
    query_c, query_h, query_x, strip_c, strip_h, strip_x, SELECT: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """score (float64), shift, energy of the chosen window (0 where it counts as empty), and whether the pair is broken:
    NaN or Inf in it, or logits of which no softmax is defined. SELECT as in SELECTION, or DOT: the correlation decides
    and is the score."""
    query_energy = energy_of(query, width, values, height, query_c, query_h, query_x, S, K)
    strip_energy = energy_of(strip, columns, values, height, strip_c, strip_h, strip_x, S, K)
    infinity = float("inf")
    broken = (query_energy < infinity) & (strip_energy < infinity)
    broken = broken == 0
    least = tl.where(query_energy > 0, strip_energy * MIN_ENERGY_SHARE, infinity)
    best = tl.full((), -infinity, tl.float64)
    score = tl.full((), 0.0, tl.float64)
    best_energy = tl.full((), 0.0, tl.float64)
    chosen = tl.full((), 0, tl.int32)
    for first in range(0, columns, S):
        shift = first + tl.arange(0, S)
        exists = shift < columns
        correlation, energy = compare_windows(
            query, strip, shift, width, columns, values, height,
            query_c, query_h, query_x, strip_c, strip_h, strip_x, S, K,
        )  # fmt: skip
        usable = energy > least
        cosine = tl.where(usable, correlation / tl.sqrt(tl.where(usable, query_energy * energy, 1.0)), 0.0)
        if SELECT == 0 or SELECT == DOT:
            value = correlation
        elif SELECT == 1:
            value = cosine
        else:
            drawn = tl.load(noise + shift * tl.cast(noise_stride, tl.int64), mask=exists, other=0.0).to(tl.float64)
            value = (tl.load(scale).to(tl.float64) * correlation + drawn) / tau
            undefined = exists & ((value != value) | (value == infinity))
            broken = broken | (tl.max(undefined.to(tl.int32), 0) > 0)
        value = tl.where(exists & (value == value), value, -infinity)
        highest = tl.max(value, 0)
        if highest > best:
            at = tl.min(tl.where(value == highest, shift, columns), 0)
            best = highest
            chosen = at
            score = tl.sum(tl.where(shift == at, correlation if SELECT == DOT else cosine, 0.0), 0)
            best_energy = tl.sum(tl.where(shift == at, energy, 0.0), 0)
    if SELECT == 2:
        broken = broken | (best == -infinity)
    best_energy = tl.where(best_energy > strip_energy * MIN_ENERGY_SHARE, best_energy, 0.0)
    score = tl.where(broken, float("nan"), score)
    chosen = tl.where(broken, 0, chosen)
    return score, chosen, best_energy, broken


@triton.jit
def azimuth_crop_kernel(
    query, strips, query_width, noise, scale, crop, score, shift,
    values, height, query_columns, columns, query_b, query_c, query_h, query_x, strip_b, strip_c, strip_h, strip_x,
    noise_b, noise_s, tau, SELECT: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One program per query: chooses the window, then writes crop, score and shift."""
    b = tl.program_id(0).to(tl.int64)
    width = load_width(query_width, b, query_columns)
    strip = strips + b * strip_b
    best, at, energy, broken = choose_window(
        query + b * query_b, strip, None if noise is None else noise + b * noise_b, noise_s, scale, tau, width,
        columns, values, height, query_c, query_h, query_x, strip_c, strip_h, strip_x, SELECT, S, K,
    )  # fmt: skip
    tl.store(score + b, best.to(tl.float32))
    tl.store(shift + b, at.to(tl.int64))
    filled = tl.where(energy > 0, width, 0)
    inverse = tl.where(broken, float("nan"), 1.0 / tl.sqrt(tl.where(energy > 0, energy, 1.0)))
    for first_k in range(0, values, K):
        k = (first_k + tl.arange(0, K)).to(tl.int64)
        for first_x in range(0, query_columns, S):
            x = (first_x + tl.arange(0, S)).to(tl.int64)
            offset = value_offset(k, height, strip_c, strip_h)[:, None] + ((at + x) % columns)[None, :] * strip_x
            exists = (k < values)[:, None] & (x < filled)[None, :]
            value = tl.load(strip + offset, mask=exists, other=0.0).to(tl.float64) * inverse
            value = rounded(value.to(tl.float32), crop.dtype.element_ty)
            out = (b * values + k[:, None]) * query_columns + x[None, :]
            tl.store(crop + out, value, mask=(k < values)[:, None] & (x < query_columns)[None, :])


@triton.jit
def azimuth_crop_products_kernel(
    grad_crop, query, strips, query_width, shift, products, energies,
    values, height, query_columns, columns, query_b, query_c, query_h, query_x, strip_b, strip_c, strip_h, strip_x,
    S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """products [B, 3, W] of every window with the query, grad_crop and the chosen window; energies [B, 2] of query and
    strip."""
    b = tl.program_id(0).to(tl.int64)
    width = load_width(query_width, b, query_columns)
    at = tl.load(shift + b)
    strip = strips + b * strip_b
    source = query + b * query_b
    s = tl.program_id(1) * S + tl.arange(0, S)
    with_query = tl.zeros([S, K], tl.float64)
    with_grad = tl.zeros([S, K], tl.float64)
    with_window = tl.zeros([S, K], tl.float64)
    for x in range(width):
        column = ((s + x) % columns).to(tl.int64)
        for first in range(0, values, K):
            k = (first + tl.arange(0, K)).to(tl.int64)
            inside = k < values
            here = value_offset(k, height, strip_c, strip_h)
            value = tl.load(strip + here[None, :] + column[:, None] * strip_x, mask=inside[None, :], other=0.0)
            value = value.to(tl.float64)
            a = tl.load(source + value_offset(k, height, query_c, query_h) + x * query_x, mask=inside, other=0.0)
            g = tl.load(grad_crop + (b * values + k) * query_columns + x, mask=inside, other=0.0)
            w = tl.load(strip + here + (at + x) % columns * strip_x, mask=inside, other=0.0)
            with_query += a.to(tl.float64)[None, :] * value
            with_grad += g.to(tl.float64)[None, :] * value
            with_window += w.to(tl.float64)[None, :] * value
    out = products + b * 3 * columns + s
    tl.store(out, tl.sum(with_query, 1), mask=s < columns)
    tl.store(out + columns, tl.sum(with_grad, 1), mask=s < columns)
    tl.store(out + 2 * columns, tl.sum(with_window, 1), mask=s < columns)
    if tl.program_id(1) == 0:
        tl.store(energies + 2 * b, energy_of(source, width, values, height, query_c, query_h, query_x, S, K))
        tl.store(energies + 2 * b + 1, energy_of(strip, columns, values, height, strip_c, strip_h, strip_x, S, K))


@triton.jit
def azimuth_crop_backward_kernel(
    grad_crop, query, strips, query_width, score, shift, weight, factors, grad_query, grad_strips,
    values, height, query_columns, columns, query_b, query_c, query_h, query_x, strip_b, strip_c, strip_h, strip_x,
    S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """grad_query = f0 window + f1 query + sum_s weight_s window_s,
    grad_strip at the window = f2 grad_crop + f0 query + f3 window, and sum_s weight_s (query moved to s). Of a broken
    pair nothing is read."""
    b = tl.program_id(0).to(tl.int64)
    width = load_width(query_width, b, query_columns)
    at = tl.load(shift + b)
    strip = strips + b * strip_b
    source = query + b * query_b
    f0 = tl.load(factors + 4 * b)
    f1 = tl.load(factors + 4 * b + 1)
    f2 = tl.load(factors + 4 * b + 2)
    f3 = tl.load(factors + 4 * b + 3)
    k = (tl.program_id(1) * K + tl.arange(0, K)).to(tl.int64)
    within = (k < values)[:, None]
    known = tl.load(score + b)
    inside = (k < tl.where(known == known, values, 0))[:, None]
    of_query = value_offset(k, height, query_c, query_h)[:, None]
    of_strip = value_offset(k, height, strip_c, strip_h)[:, None]
    of_grad = (b * values + k)[:, None] * query_columns
    for first in range(0, query_columns, S):
        x = (first + tl.arange(0, S)).to(tl.int64)[None, :]
        exists = inside & (x < width)
        total = f0 * tl.load(strip + of_strip + (at + x) % columns * strip_x, mask=exists, other=0.0).to(tl.float64)
        total += f1 * tl.load(source + of_query + x * query_x, mask=exists, other=0.0).to(tl.float64)
        if weight is not None:
            for s in range(columns):
                value = tl.load(strip + of_strip + (s + x) % columns * strip_x, mask=exists, other=0.0)
                total += tl.load(weight + b * columns + s) * value.to(tl.float64)
        out = grad_query + of_grad + x
        tl.store(out, tl.where(exists, total, 0.0).to(tl.float32), mask=within & (x < query_columns))
    for first in range(0, columns, S):
        j = (first + tl.arange(0, S)).to(tl.int64)[None, :]
        x = (j - at + columns) % columns
        exists = inside & (j < columns) & (x < width)
        total = f2 * tl.load(grad_crop + of_grad + x, mask=exists, other=0.0).to(tl.float64)
        total += f0 * tl.load(source + of_query + x * query_x, mask=exists, other=0.0).to(tl.float64)
        total += f3 * tl.load(strip + of_strip + j * strip_x, mask=exists, other=0.0).to(tl.float64)
        if weight is not None:
            for s in range(columns):
                x = (j - s + columns) % columns
                exists = inside & (j < columns) & (x < width)
                value = tl.load(source + of_query + x * query_x, mask=exists, other=0.0)
                total += tl.load(weight + b * columns + s) * value.to(tl.float64)
        out = grad_strips + (b * values + k)[:, None] * columns + j
        tl.store(out, total.to(tl.float32), mask=within & (j < columns))


def block_sizes(values: int, columns: int) -> dict[str, int]:
    """Shifts (or columns) and values a step: 1024 float64 numbers a program, four warps."""
    k = padded(values, 16, 64)
    return {"S": padded(columns, 1, 1024 // k), "K": k, "num_warps": 4}


def forward(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop, score and shift: launches the kernel for every query."""
    batch, channels, height, query_columns = query.shape
    columns, values = strips.shape[3], channels * height
    query_width = None if query_width is None else query_width.contiguous()
    crop = query.new_empty(query.shape)
    score = query.new_empty((batch,), dtype=torch.float32)
    shift = query.new_empty((batch,), dtype=torch.int64)
    if batch:
        with on_device_of(query):
            azimuth_crop_kernel[(batch,)](
                query, strips, query_width, noise, scale, crop, score, shift,
                values, height, query_columns, columns, *query.stride(), *strips.stride(),
                *((0, 0) if noise is None else noise.stride()), tau,
                SELECT=SELECTION[select], **block_sizes(values, columns),
            )  # fmt: skip
    return crop, score, shift


def backward(
    grad_crop: Tensor,
    grad_score: Tensor,
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
    score: Tensor,
    shift: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, strips and scale."""
    batch, channels, height, query_columns = query.shape
    columns, values = strips.shape[3], channels * height
    query_width = None if query_width is None else query_width.contiguous()
    grad_query = query.new_empty(query.shape, dtype=torch.float32)
    grad_strips = strips.new_empty(strips.shape, dtype=torch.float32)
    grad_scale = query.new_zeros((), dtype=torch.float32 if scale is None else scale.dtype)
    if batch == 0:
        return grad_query.to(query.dtype), grad_strips.to(strips.dtype), grad_scale
    blocks = block_sizes(values, columns)
    grad_crop = grad_crop.contiguous()
    sizes = values, height, query_columns, columns, *query.stride(), *strips.stride()
    with on_device_of(query):
        products = query.new_empty((batch, 3, columns), dtype=torch.float64)
        energies = query.new_empty((batch, 2), dtype=torch.float64)
        azimuth_crop_products_kernel[(batch, triton.cdiv(columns, blocks["S"]))](
            grad_crop, query, strips, query_width, shift, products, energies, *sizes, **blocks
        )  # fmt: skip
        broken = score.isnan()
        products = torch.where(broken[:, None, None], 0.0, products)
        factors = _factors(products, energies, shift, torch.where(broken, 0.0, grad_score))
        weight = None
        if select == "gumbel":
            assert scale is not None and noise is not None
            with_query, with_grad, with_window = products.unbind(1)
            logits = torch.where(broken[:, None], 0.0, (scale.double() * with_query + noise.double()) / tau)
            soft = logits.softmax(1)
            of_window = factors[:, :1] * with_query + factors[:, 2:3] * with_grad + factors[:, 3:] * with_window
            slope = soft * (of_window - (soft * of_window).sum(1, keepdim=True)) / tau
            weight = slope * scale.double()
            grad_scale = (slope * with_query).sum().to(scale.dtype)
        azimuth_crop_backward_kernel[(batch, triton.cdiv(values, blocks["K"]))](
            grad_crop, query, strips, query_width, score, shift, weight, factors, grad_query, grad_strips,
            *sizes, **blocks,
        )  # fmt: skip
    return grad_query.to(query.dtype), grad_strips.to(strips.dtype), grad_scale


def _factors(products: Tensor, energies: Tensor, shift: Tensor, grad_score: Tensor) -> Tensor:
    """f0 .. f3 of `azimuth_crop_backward_kernel`, float64 [B, 4]; 0 for an empty window or query."""
    correlation, with_grad, energy = products.gather(2, shift[:, None, None].expand(-1, 3, 1))[..., 0].unbind(1)
    query_energy, strip_energy = energies.unbind(1)
    usable = energy > MIN_ENERGY_SHARE.value * strip_energy
    of_window = torch.where(usable, energy, torch.inf).rsqrt()  # 1 / |window|
    of_query = torch.where(query_energy > 0, query_energy, torch.inf).rsqrt()
    g = grad_score.double()
    score = correlation * of_window * of_query
    factors = [
        g * of_window * of_query,
        -g * score * of_query.square(),
        of_window,
        -(with_grad * of_window + g * score) * of_window.square(),
    ]
    return torch.stack(factors, 1)
