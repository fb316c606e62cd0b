"""`azimuth_match` in Triton. Formulas: csrc/include/geoloc_fast/azimuth_match.h.

Layout: items packed column by column in float32, broken ones as zeros, each scaled by a power of two so that its
largest value is near 1.

    queries [Wq][B][K]     columns that do not exist are 0
    strips  [W][R][K]
    prefix  [2W+1][R]      float64 sums of column energies, twice round: a window's energy is a difference

One program takes a tile of queries and a tile of strips, and for one shift after the other sums a `tl.dot` over the
columns of the query: W w K multiply-adds per pair, nothing kept but the best shift. Two steps follow:

- A pair whose best shift is not certain in float32, or whose window is thin, gets shift -1, and a second kernel
  decides it in float64 from the tensors as given (`choose_window`). So every shift is that of float64 arithmetic.
- For training with "gumbel" the correlations are kept [B, W, R] and turned into slopes in place. The product of two
  windows is a sum along a diagonal of the strip's column Gram matrix, whose prefix sums are made for a stretch of
  strips at a time.

The backward is two more sums of dots, over strips and over queries, with weight = d loss / d correlation a shift.

Bytes that must move: the packed inputs, 12 a pair, with "gumbel" 4 W of noise and 4 W of slope more. Operations:
2 W w K a pair and pass, three passes in training, in float32 (dots of 16-bit inputs go through tf32, which holds them
exactly).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoloc_fast.triton_kernels import on_device_of, padded
from geoloc_fast.triton_kernels.azimuth_crop import (
    MIN_ENERGY_SHARE,
    SELECTION,
    block_sizes,
    choose_window,
    load_width,
)

_TERMS = 1024  # summed in a row in float32, before they join a second sum
_GRAM_NUMBERS = 1 << 25  # of the prefix sums of Gram matrices held at once
_PAIRS = 128  # pairs a program of the kernels that look at one pair a lane
_THIN = tl.constexpr(1 / 64)  # of the strip's energy: below, a window's score is summed in float64


@triton.jit
def azimuth_match_kernel(
    query, strips, query_energy, strip_energy, query_unit, strip_unit, prefix, query_width, noise, scale,
    score, shift, correlations,
    batch, references, values, query_columns, columns, noise_b, noise_r, noise_s, tau, error,
    SELECT: tl.constexpr, PRECISION: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    IN_A_ROW: tl.constexpr,
):  # fmt: skip
    """One program a tile of Q queries and R strips: all shifts as one matrix product, then the choice."""
    tiles = tl.cdiv(batch, Q)
    program = tl.program_id(0).to(tl.int64)
    b = program % tiles * Q + tl.arange(0, Q)
    r = program // tiles * R + tl.arange(0, R)
    b_in = b < batch
    r_in = r < references
    pair_in = b_in[:, None] & r_in[None, :]
    width = tl.full([Q], 0, tl.int64) + query_columns
    if query_width is not None:
        given = tl.load(query_width + b, mask=b_in, other=0)
        width = tl.minimum(tl.maximum(given, 0), query_columns)
    of_query = tl.load(query_energy + b, mask=b_in, other=0.0)
    of_strip = tl.load(strip_energy + r, mask=r_in, other=0.0)
    broken = (of_query != of_query)[:, None] | (of_strip != of_strip)[None, :]
    margin = error * tl.sqrt(of_query)[:, None] * tl.sqrt(of_strip)[None, :]
    margin = tl.where(broken, 0.0, margin.to(tl.float32))
    if SELECT == 2:
        of_b = tl.load(query_unit + b, mask=b_in, other=1.0)
        of_r = tl.load(strip_unit + r, mask=r_in, other=1.0)
        gain = tl.load(scale).to(tl.float32) / tau * of_b[:, None] * of_r[None, :]
    infinity = float("inf")
    best = tl.full([Q, R], -infinity, tl.float32)
    best_margin = tl.zeros([Q, R], tl.float32)
    rival = tl.full([Q, R], -infinity, tl.float32)
    best_cosine = tl.zeros([Q, R], tl.float32)
    best_share = tl.zeros([Q, R], tl.float32)
    chosen = tl.zeros([Q, R], tl.int32)
    doubtful = tl.zeros([Q, R], tl.int32)
    steps = tl.cdiv(values, K)
    query_plane = tl.cast(batch, tl.int64) * values
    strip_plane = tl.cast(references, tl.int64) * values
    for s in range(columns):
        correlation = tl.zeros([Q, R], tl.float32)
        for first in range(0, query_columns * steps, IN_A_ROW):
            part = tl.zeros([Q, R], tl.float32)
            for step in range(first, tl.minimum(first + IN_A_ROW, query_columns * steps)):
                x = step // steps
                k = step % steps * K + tl.arange(0, K)
                a = tl.load(
                    query + query_plane * x + b[:, None] * values + k[None, :],
                    mask=b_in[:, None] & (k < values)[None, :], other=0.0,
                )  # fmt: skip
                c = tl.load(
                    strips + strip_plane * ((s + x) % columns) + r[None, :] * values + k[:, None],
                    mask=r_in[None, :] & (k < values)[:, None], other=0.0,
                )  # fmt: skip
                part = tl.dot(a, c, part, input_precision=PRECISION)
            correlation += part
        begin = tl.load(prefix + tl.cast(references, tl.int64) * s + r, mask=r_in, other=0.0)
        end = tl.load(prefix + (s + width)[:, None] * references + r[None, :], mask=pair_in, other=0.0)
        energy = end - begin[None, :]
        usable = (energy > of_strip[None, :] * MIN_ENERGY_SHARE) & (of_query > 0)[:, None]
        inverse = tl.where(usable, 1.0 / tl.sqrt(tl.where(usable, energy * of_query[:, None], 1.0)), 0.0)
        cosine = correlation * inverse.to(tl.float32)
        if SELECT == 0:
            value = correlation
            value_margin = margin
        elif SELECT == 1:
            value = cosine
            value_margin = margin * inverse.to(tl.float32) + 1e-6
        else:
            drawn = tl.load(
                noise + b[:, None] * noise_b + r[None, :] * noise_r + tl.cast(noise_s, tl.int64) * s,
                mask=pair_in, other=0.0,
            ).to(tl.float32)  # fmt: skip
            value = gain * correlation + drawn / tau
            value_margin = tl.abs(gain) * margin + 1e-6 * (tl.abs(gain * correlation) + tl.abs(drawn / tau))
            doubtful = doubtful | (tl.abs(value) < infinity).to(tl.int32) ^ 1
        if correlations is not None:
            out = correlations + (b[:, None] * columns + s) * references + r[None, :]
            tl.store(out, correlation, mask=pair_in)
        # `rival` is the most that any shift but the best may have. If it reaches the least that the best may have,
        # float32 cannot tell which is the best.
        better = value > best
        rival = tl.maximum(rival, tl.where(better, best + best_margin, value + value_margin))
        best_margin = tl.where(better, value_margin, best_margin)
        best = tl.where(better, value, best)
        best_cosine = tl.where(better, cosine, best_cosine)
        best_share = tl.where(better, (energy / of_strip[None, :]).to(tl.float32), best_share)
        chosen = tl.where(better, s, chosen)
    doubtful = doubtful | (rival >= best - best_margin).to(tl.int32) | (best_share < _THIN).to(tl.int32)
    # Nothing to decide where there is nothing but zeros: the first shift, score 0.
    if SELECT != 2:
        doubtful = doubtful & ((of_query > 0)[:, None] & (of_strip > 0)[None, :]).to(tl.int32)
    chosen = tl.where(broken, 0, tl.where(doubtful > 0, -1, chosen))
    out = b[:, None] * references + r[None, :]
    tl.store(score + out, tl.where(broken, float("nan"), best_cosine), mask=pair_in)
    tl.store(shift + out, chosen.to(tl.int64), mask=pair_in)


@triton.jit
def azimuth_match_decide_kernel(
    query, strips, query_width, noise, scale, score, shift,
    references, values, height, query_columns, columns,
    query_b, query_c, query_h, query_x, strip_r, strip_c, strip_h, strip_x, noise_b, noise_r, noise_s, tau,
    SELECT: tl.constexpr, PAIRS: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Score and shift, in float64, of the pairs whose shift is -1."""
    tiles = tl.cdiv(references, PAIRS)
    program = tl.program_id(0).to(tl.int64)
    b = program // tiles
    lane = tl.arange(0, PAIRS)
    r = program % tiles * PAIRS + lane
    width = load_width(query_width, b, query_columns)
    open_pairs = tl.load(shift + b * references + r, mask=r < references, other=0) < 0
    # One open pair after the other: `choose_window` takes the whole program for one.
    for _ in range(tl.sum(open_pairs.to(tl.int32), 0)):
        first = tl.min(tl.where(open_pairs, lane, PAIRS), 0)
        open_pairs = open_pairs & (lane != first)
        item = program % tiles * PAIRS + first
        drawn = None if noise is None else noise + b * noise_b + item * noise_r
        best, at, _energy, _broken = choose_window(
            query + b * query_b, strips + item * strip_r, drawn, noise_s, scale, tau, width, columns, values, height,
            query_c, query_h, query_x, strip_c, strip_h, strip_x, SELECT, S, K,
        )  # fmt: skip
        tl.store(score + b * references + item, best.to(tl.float32))
        tl.store(shift + b * references + item, at.to(tl.int64))


@triton.jit
def azimuth_match_slope_kernel(
    slope, scale_slope, score, shift, query_energy, query_unit, strip_unit, gram, query_width, noise, scale,
    first_reference, references, all_references, query_columns, columns, noise_b, noise_r, noise_s, tau,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """Correlations become slopes p_s (y_s - sum_t p_t y_t), for `references` strips from `first_reference` on, of which
    `gram` [references, 2W+1, W] holds prefix sums: gram[r, i, d] = sum over j < i of <column j, column j + d>."""
    tiles = tl.cdiv(references, PAIRS)
    program = tl.program_id(0).to(tl.int64)
    b = program // tiles
    local = program % tiles * PAIRS + tl.arange(0, PAIRS)
    inside = local < references
    r = local + first_reference
    width = load_width(query_width, b, query_columns)
    pair = b * all_references + r
    at = tl.load(shift + pair, mask=inside, other=0)
    value = tl.load(score + pair, mask=inside, other=0.0)
    broken = value != value
    value = tl.where(broken, 0.0, value)
    begin = gram + (local * (2 * columns + 1) + at) * columns
    end = begin + width * columns
    energy = tl.load(end, mask=inside, other=0.0) - tl.load(begin, mask=inside, other=0.0)
    whole = tl.load(gram + (local * (2 * columns + 1) + columns) * columns, mask=inside, other=0.0)
    of_query = tl.load(query_energy + b)
    of_query = tl.where(of_query == of_query, of_query, 0.0)
    usable = (energy > whole * MIN_ENERGY_SHARE) & (energy * of_query > 0) & (broken == 0)
    of_window = tl.where(usable, 1.0 / tl.where(usable, energy, 1.0), 0.0)
    inverse = tl.where(usable, 1.0 / tl.sqrt(tl.where(usable, energy * of_query, 1.0)), 0.0).to(tl.float32)
    unit = tl.load(query_unit + b) * tl.load(strip_unit + r, mask=inside, other=1.0)
    gain = tl.load(scale).to(tl.float32) / tau * unit
    here = slope + b * columns * all_references + r
    drawn = noise + b * noise_b + r * noise_r
    # Three passes over the shifts: the highest logit, the sums of the softmax, the slopes.
    highest = tl.full([PAIRS], -float("inf"), tl.float32)
    for s in range(columns):
        correlation = tl.load(here + tl.cast(all_references, tl.int64) * s, mask=inside, other=0.0)
        logit = gain * correlation
        logit += tl.load(drawn + tl.cast(noise_s, tl.int64) * s, mask=inside, other=0.0).to(tl.float32) / tau
        highest = tl.maximum(highest, logit)
    total = tl.zeros([PAIRS], tl.float32)
    mean = tl.zeros([PAIRS], tl.float32)
    for s in range(columns):
        correlation = tl.load(here + tl.cast(all_references, tl.int64) * s, mask=inside, other=0.0)
        logit = gain * correlation
        logit += tl.load(drawn + tl.cast(noise_s, tl.int64) * s, mask=inside, other=0.0).to(tl.float32) / tau
        d = (s - at + columns) % columns
        shared = tl.load(end + d, mask=inside, other=0.0) - tl.load(begin + d, mask=inside, other=0.0)
        y = correlation * inverse - value * (shared * of_window).to(tl.float32)
        p = tl.exp(logit - highest)
        total += p
        mean += p * y
    mean = mean / total
    of_scale = tl.zeros([PAIRS], tl.float32)
    for s in range(columns):
        place = here + tl.cast(all_references, tl.int64) * s
        correlation = tl.load(place, mask=inside, other=0.0)
        logit = gain * correlation
        logit += tl.load(drawn + tl.cast(noise_s, tl.int64) * s, mask=inside, other=0.0).to(tl.float32) / tau
        d = (s - at + columns) % columns
        shared = tl.load(end + d, mask=inside, other=0.0) - tl.load(begin + d, mask=inside, other=0.0)
        y = correlation * inverse - value * (shared * of_window).to(tl.float32)
        result = tl.where(usable, tl.exp(logit - highest) / total * (y - mean), 0.0)
        of_scale += tl.where(usable, result * correlation, 0.0)
        tl.store(place, result, mask=inside)
    tl.store(scale_slope + pair, of_scale * unit / tau, mask=inside)


@triton.jit
def azimuth_match_grad_query_kernel(
    strips, shift, slope, of_slope, of_chosen, out, batch, references, values, columns,
    Q: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out[x, b, k] = sum over r, s of weight[b, s, r] strips[s + x, r, k],
    weight[b, s, r] = of_slope[b, r] slope[b, s, r] + of_chosen[b, r] [s = shift]."""
    x = tl.program_id(2)
    b = tl.program_id(0).to(tl.int64) * Q + tl.arange(0, Q)
    k = (tl.program_id(1) * K + tl.arange(0, K)).to(tl.int64)
    total = tl.zeros([Q, K], tl.float32)
    strip_plane = tl.cast(references, tl.int64) * values
    for first in range(0, references, R):
        r = (first + tl.arange(0, R)).to(tl.int64)
        pair_in = (b < batch)[:, None] & (r < references)[None, :]
        pair = b[:, None] * references + r[None, :]
        at = tl.load(shift + pair, mask=pair_in, other=0)
        chosen = tl.load(of_chosen + pair, mask=pair_in, other=0.0)
        if slope is not None:
            steep = tl.load(of_slope + pair, mask=pair_in, other=0.0)
        part = tl.zeros([Q, K], tl.float32)
        for s in range(columns):
            weight = tl.where(at == s, chosen, 0.0)
            if slope is not None:
                here = slope + (b[:, None] * columns + s) * references + r[None, :]
                weight += steep * tl.load(here, mask=pair_in, other=0.0)
            column = tl.load(
                strips + strip_plane * ((s + x) % columns) + r[:, None] * values + k[None, :],
                mask=(r < references)[:, None] & (k < values)[None, :], other=0.0,
            )  # fmt: skip
            part = tl.dot(weight, column, part, input_precision="ieee")
        total += part
    place = out + (tl.cast(batch, tl.int64) * x + b[:, None]) * values + k[None, :]
    tl.store(place, total, mask=(b < batch)[:, None] & (k < values)[None, :])


@triton.jit
def azimuth_match_grad_strips_kernel(
    query, strips, shift, slope, of_slope, of_chosen, of_strip, query_width, out,
    batch, references, values, query_columns, columns, Q: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out[j, r, k] = sum over b, x of weight[b, j - x, r] query[x, b, k]
    - strips[j, r, k] sum over b of of_strip[b, r] [j in the chosen window]."""
    j = tl.program_id(2)
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    k = (tl.program_id(1) * K + tl.arange(0, K)).to(tl.int64)
    total = tl.zeros([R, K], tl.float32)
    shrink = tl.zeros([R], tl.float32)
    query_plane = tl.cast(batch, tl.int64) * values
    for first in range(0, batch, Q):
        b = (first + tl.arange(0, Q)).to(tl.int64)
        pair_in = (r < references)[:, None] & (b < batch)[None, :]
        pair = b[None, :] * references + r[:, None]
        at = tl.load(shift + pair, mask=pair_in, other=0)
        chosen = tl.load(of_chosen + pair, mask=pair_in, other=0.0)
        if slope is not None:
            steep = tl.load(of_slope + pair, mask=pair_in, other=0.0)
        width = tl.full([Q], 0, tl.int64) + query_columns
        if query_width is not None:
            given = tl.load(query_width + b, mask=b < batch, other=0)
            width = tl.minimum(tl.maximum(given, 0), query_columns)
        covered = (j - at + columns) % columns < width[None, :]
        shrink += tl.sum(tl.where(covered, tl.load(of_strip + pair, mask=pair_in, other=0.0), 0.0), 1)
        part = tl.zeros([R, K], tl.float32)
        for x in range(query_columns):
            s = (j - x + columns) % columns
            weight = tl.where(at == s, chosen, 0.0)
            if slope is not None:
                here = slope + (b[None, :] * columns + s) * references + r[:, None]
                weight += steep * tl.load(here, mask=pair_in, other=0.0)
            column = tl.load(
                query + query_plane * x + b[:, None] * values + k[None, :],
                mask=(b < batch)[:, None] & (k < values)[None, :], other=0.0,
            )  # fmt: skip
            part = tl.dot(weight, column, part, input_precision="ieee")
        total += part
    place = (tl.cast(references, tl.int64) * j + r[:, None]) * values + k[None, :]
    inside = (r < references)[:, None] & (k < values)[None, :]
    total -= tl.load(strips + place, mask=inside, other=0.0) * shrink[:, None]
    tl.store(out + place, total, mask=inside)


class Packed(NamedTuple):
    """Queries or strips as the kernels read them."""

    values: Tensor  # float32 [columns, N, K]
    wide: Tensor  # the same numbers, float64 [N, K, columns]
    unit: Tensor  # float32 [N], what the packed values are to be multiplied with
    energy: Tensor  # float64 [N], of the packed item; NaN where it is broken


def _pack(items: Tensor, width: Tensor | None) -> Packed:
    """[N, C, H, columns] as the kernels read it; columns beyond `width` are zero."""
    wide = items.flatten(1, 2).double()
    if width is not None:
        wide = torch.where(torch.arange(wide.shape[2], device=wide.device) < width[:, None, None], wide, 0.0)
    largest = wide.abs().amax((1, 2))
    broken = ~largest.isfinite()
    unit = torch.frexp(torch.where(broken | (largest == 0), 1.0, largest)).exponent.double().exp2()
    wide = torch.where(broken[:, None, None], 0.0, wide) / unit[:, None, None]
    energy = torch.where(broken, torch.nan, wide.square().sum((1, 2)))
    return Packed(wide.permute(2, 0, 1).float().contiguous(), wide, unit.float(), energy)


def _twice_round(columns: Tensor) -> Tensor:
    """Prefix sums [..., 2W+1] of [..., W] repeated."""
    return torch.nn.functional.pad(torch.cat([columns, columns], -1).cumsum(-1), (1, 0))


def _gram_prefix(wide: Tensor) -> Tensor:
    """[R, 2W+1, W]: entry (i, d) is the sum over j < i of <column j, column j + d>, columns taken modulo W."""
    columns = wide.shape[2]
    gram = wide.mT @ wide
    n = torch.arange(columns, device=wide.device)
    diagonals = gram.gather(2, ((n[:, None] + n) % columns).expand_as(gram))
    return _twice_round(diagonals.mT).mT.contiguous()


def _precision(query: Tensor, strips: Tensor) -> str:
    narrow = query.dtype.itemsize == 2 and strips.dtype.itemsize == 2
    return "tf32" if narrow and torch.version.cuda else "ieee"


def forward(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
    with_slope: bool = False,
) -> tuple[Tensor, ...]:
    """score and shift, and with `with_slope` also d score / d logit [B, W, R] and d score / d scale [B, R]."""
    batch, channels, height, query_columns = query.shape
    references, columns, values = strips.shape[0], strips.shape[3], channels * height
    score = query.new_empty((batch, references), dtype=torch.float32)
    shift = query.new_empty((batch, references), dtype=torch.int64)
    query_width = None if query_width is None else query_width.contiguous()
    slope = query.new_empty((batch, columns, references), dtype=torch.float32) if with_slope else None
    scale_slope = torch.empty_like(score) if with_slope else None
    if batch and references:
        with on_device_of(query):
            q, s = _pack(query, query_width), _pack(strips, None)
            prefix = _twice_round(s.wide.square().sum(1)).T.contiguous()
            tile_q, tile_r, tile_k = padded(batch, 16, 64), padded(references, 16, 64), padded(values, 16, 32)
            in_a_row = _TERMS // tile_k
            terms = query_columns * triton.cdiv(values, tile_k) * tile_k
            error = (min(terms, _TERMS) + terms / _TERMS + 16) * 2.0**-23
            noise_strides = (0, 0, 0) if noise is None else noise.stride()
            azimuth_match_kernel[(triton.cdiv(batch, tile_q) * triton.cdiv(references, tile_r),)](
                q.values, s.values, q.energy, s.energy, q.unit, s.unit, prefix, query_width, noise, scale,
                score, shift, slope, batch, references, values, query_columns, columns, *noise_strides, tau, error,
                SELECT=SELECTION[select], PRECISION=_precision(query, strips), Q=tile_q, R=tile_r, K=tile_k,
                IN_A_ROW=in_a_row, num_warps=8, num_stages=3,
            )  # fmt: skip
            pairs = padded(references, 16, _PAIRS)
            azimuth_match_decide_kernel[(batch * triton.cdiv(references, pairs),)](
                query, strips, query_width, noise, scale, score, shift,
                references, values, height, query_columns, columns, *query.stride(), *strips.stride(),
                *noise_strides, tau, SELECT=SELECTION[select], PAIRS=pairs, **block_sizes(values, columns),
            )  # fmt: skip
            if slope is not None:
                at_once = max(1, _GRAM_NUMBERS // (columns * (2 * columns + 1)))
                for first in range(0, references, at_once):
                    gram = _gram_prefix(s.wide[first : first + at_once])
                    pairs = padded(gram.shape[0], 16, _PAIRS)
                    azimuth_match_slope_kernel[(batch * triton.cdiv(gram.shape[0], pairs),)](
                        slope, scale_slope, score, shift, q.energy, q.unit, s.unit, gram, query_width, noise, scale,
                        first, gram.shape[0], references, query_columns, columns, *noise_strides, tau,
                        PAIRS=pairs, num_warps=4,
                    )  # fmt: skip
    return (score, shift) if slope is None or scale_slope is None else (score, shift, slope, scale_slope)


def backward(
    grad_score: Tensor,
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    scale: Tensor | None,
    tau: float,
    score: Tensor,
    shift: Tensor,
    slope: Tensor | None,
    scale_slope: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, strips and scale."""
    batch, channels, height, query_columns = query.shape
    references, columns, values = strips.shape[0], strips.shape[3], channels * height
    grad_scale = query.new_zeros((), dtype=torch.float32 if scale is None else scale.dtype)
    query_width = None if query_width is None else query_width.contiguous()
    if batch == 0 or references == 0:
        return torch.zeros_like(query), torch.zeros_like(strips), grad_scale
    with on_device_of(query):
        q, s = _pack(query, query_width), _pack(strips, None)
        # A pair with NaN or Inf in it has no gradient; an empty window's score is the constant 0.
        broken = score.isnan()
        g = torch.where(broken, 0.0, grad_score.double())
        known = torch.where(broken, 0.0, score.double())
        prefix = _twice_round(s.wide.square().sum(1)).T.contiguous()
        width = query_columns if query_width is None else query_width.clamp(0, query_columns)[:, None]
        energy = prefix.gather(0, shift + width) - prefix.gather(0, shift)
        usable = (energy > MIN_ENERGY_SHARE.value * s.energy) & (q.energy > 0)[:, None]
        energy = torch.where(usable, energy, torch.inf)
        query_energy = torch.where(q.energy > 0, q.energy, torch.inf)
        of_chosen = (g * (query_energy[:, None] * energy).rsqrt()).float()
        of_strip = (g * known / energy).float()
        of_slope = None
        if slope is not None and scale is not None and scale_slope is not None:
            of_slope = (g * (scale.double() / tau) * q.unit.double()[:, None] * s.unit.double()).float()
            grad_scale = (g * scale_slope).sum().to(scale.dtype)
        grad_query = query.new_empty((query_columns, batch, values), dtype=torch.float32)
        grad_strips = query.new_empty((columns, references, values), dtype=torch.float32)
        tile_q, tile_r, tile_k = padded(batch, 16, 32), padded(references, 16, 32), padded(values, 16, 64)
        k_tiles = triton.cdiv(values, tile_k)
        azimuth_match_grad_query_kernel[(triton.cdiv(batch, tile_q), k_tiles, query_columns)](
            s.values, shift, slope, of_slope, of_chosen, grad_query, batch, references, values, columns,
            Q=tile_q, R=tile_r, K=tile_k, num_warps=4, num_stages=3,
        )  # fmt: skip
        azimuth_match_grad_strips_kernel[(triton.cdiv(references, tile_r), k_tiles, columns)](
            q.values, s.values, shift, slope, of_slope, of_chosen, of_strip, query_width, grad_strips,
            batch, references, values, query_columns, columns,
            Q=tile_q, R=tile_r, K=tile_k, num_warps=4, num_stages=3,
        )  # fmt: skip
        own = (g * known).sum(1) / query_energy
        grad_query = (grad_query - q.values * own[:, None].float()) / q.unit[:, None]
        if query_width is not None:
            column = torch.arange(query_columns, device=query.device)
            grad_query = torch.where((column[:, None] < query_width)[..., None], grad_query, 0.0)
        grad_strips = grad_strips / s.unit[:, None]
    return (
        grad_query.permute(1, 2, 0).to(query.dtype).contiguous().view(query.shape),
        grad_strips.permute(1, 2, 0).to(strips.dtype).contiguous().view(strips.shape),
        grad_scale,
    )
