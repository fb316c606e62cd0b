"""`strip_topk` in Triton: tensor cores screen with a proven bound, float64 decides between what is left.

A query moved to each of the W shifts, as spectral planes like those of the bank, is a row of a matrix; its product with
the stored planes is every correlation: W^2 K multiply-adds per pair, in bfloat16 (or tf32) with float32 sums. Nothing
is decoded: a 32-bit word of a bf16 bank is two operands, so even and odd channels are two `tl.dot`.

    rolled  [queries x W][W x words], one matrix for even and one for odd channels
    bank    [W x words][16 lanes] a block

The bound. For a query of norm 1, every correlation c[s] is known to e = epsilon |S|, with epsilon the largest norm of
what rounding took from a moved query (computed), what tf32 takes from both sides (2^-10 each, fp32 banks), and
2^-23 for each term of the float32 sums. Bounds on the score follow as in csrc/include/geoloc_fast/strip_topk.h: with
"correlation" over every shift that may be the best, with "cosine" over all.

score="dot" is the same with every window's norm 1, bounds times |query| at the end, and the slack of the roundings as
a share of |S|. Groups are brought together after each stretch: the best lower bound and the best key of each.

The bank is gone through a stretch at a time, of at most `_PAIRS` pairs: bounds are written, the k-th best lower bound
is found, pairs whose upper bound reaches it are scored exactly, and the k best of those and of what was kept go on.
Scores and positions share one 64-bit key, so that ties go to the lowest row. Memory: 16 bytes a pair of a stretch.

Bytes that must move: the bank once for each 128 / W queries that share a tile (they meet in L2), 24 bytes per pair for
bounds and keys. Operations: 2 W^2 K a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoloc_fast.triton_kernels import INTERPRETED, on_device_of, padded
from geoloc_fast.triton_kernels.azimuth_crop import DOT, choose_window, load_width
from geoloc_fast.triton_kernels.azimuth_crop import block_sizes as score_sizes
from geoloc_fast.triton_kernels.strip_bank import LANES, block_sizes, decoded, fourier_basis, row_of, words_a_plane
from geoloc_fast.triton_kernels.strip_score import score as strip_score
from geoloc_fast.triton_kernels.strip_score import selection

_PAIRS = 1 << 22  # in one stretch
_FEWEST_ROWS = 4096  # of a stretch, however many queries there are
_ROLLED = 1 << 24  # float64 numbers of moved queries made at once
NOTHING = tl.constexpr(-(1 << 63))  # the key of a pair that is out
_SHIFTS = 64  # in one tile
_PROGRAMS = 2048  # of the exact kernel, each with room for a strip


@triton.jit
def strip_topk_screen_kernel(
    even, odd, epsilon, norm, blocks, query_width, alive, lower, upper,
    batch, first_row, rows, columns, words, query_columns, row_stride, skip, slack,
    SELECT: tl.constexpr, BF16: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    Q: tl.constexpr, S: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Bounds on the score of every pair of a tile, by one matrix product a shift; exact scoring follows for what they
    leave."""
    # Tiles of queries follow each other, so that those which read the same rows run at the same time.
    tiles = tl.cdiv(batch, Q)
    program = tl.program_id(0).to(tl.int64)
    b = program % tiles * Q + tl.arange(0, Q)
    local = program // tiles * R + tl.arange(0, R)
    row = local + first_row
    r_in = local < rows
    row = tl.where(r_in, row, first_row)
    # A block of the bank holds LANES rows side by side: `terms` words of planes, then the energy of each column.
    terms = columns * words
    base = row // LANES * ((tl.cast(terms, tl.int64) + columns) * LANES) + row % LANES
    energies = (blocks + tl.cast(terms, tl.int64) * LANES + base).to(tl.pointer_type(tl.float32), bitcast=True)
    whole = tl.zeros([R], tl.float32)
    for j in range(columns):
        whole += tl.load(energies + j * LANES)
    known = (whole > 8.3e-25) & (whole < 1.2e33)  # 2^-80, 2^110: what the bound holds for
    width = tl.full([Q], 0, tl.int64) + query_columns
    if query_width is not None:
        given = tl.load(query_width + b, mask=b < batch, other=0)
        width = tl.minimum(tl.maximum(given, 0), query_columns)
    of_query = tl.load(epsilon + b, mask=b < batch, other=0.0)
    error = of_query[:, None] * tl.sqrt(tl.where(known, whole, 0.0))[None, :]
    infinity = float("inf")
    top = tl.full([Q, R], -infinity, tl.float32)
    low = tl.full([Q, R], -infinity, tl.float32)
    high = tl.full([Q, R], -infinity, tl.float32)
    # The rows of the product are pairs (query, shift): Q queries at S shifts.
    m = tl.arange(0, Q * S)
    m_query = program % tiles * Q + m // S
    for first in range(0, columns, S):
        m_shift = first + m % S
        m_in = (m_query < batch) & (m_shift < columns)
        m_at = (m_query * columns + m_shift) * terms
        total = tl.zeros([Q * S, R], tl.float32)
        for t0 in range(0, terms, T):
            t = t0 + tl.arange(0, T)
            t_in = t < terms
            bits = tl.load(blocks + base[None, :] + t.to(tl.int64)[:, None] * LANES, mask=t_in[:, None], other=0)
            a = tl.load(even + m_at[:, None] + t[None, :], mask=m_in[:, None] & t_in[None, :], other=0.0)
            if BF16:
                c = bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
                total = tl.dot(a.to(OPERAND), c.to(OPERAND), total)
                a = tl.load(odd + m_at[:, None] + t[None, :], mask=m_in[:, None] & t_in[None, :], other=0.0)
                c = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
                total = tl.dot(a.to(OPERAND), c.to(OPERAND), total)
            else:
                total = tl.dot(a, bits.to(tl.float32, bitcast=True), total, input_precision=PRECISION)
        c = tl.reshape(total, [Q, S, R])
        shift = first + tl.arange(0, S)
        energy = tl.zeros([Q, S, R], tl.float32)
        for x in range(0 if SELECT == DOT else query_columns):
            column = (shift + x) % columns
            e = tl.load(energies[None, :] + column[:, None] * LANES)
            energy += tl.where((x < width)[:, None, None], e[None, :, :], 0.0)
        e = error[:, None, :]
        if SELECT == DOT:
            here_low = c - e
            here_high = c + e
        else:
            filled = energy > 0
            inverse = tl.where(filled, 1.0 / tl.sqrt(tl.where(filled, energy, 1.0)), 0.0)
            here_low = (c - e) * inverse - slack
            here_high = (c + e) * inverse + slack
            # Near the share of energy below which a window counts as empty, it may be either.
            least = (whole * 1e-6)[None, None, :]
            here_low = tl.where(energy > least * 1.1, here_low, tl.minimum(here_low, 0.0))
            here_high = tl.where(energy > least * 1.1, here_high, tl.maximum(here_high, 0.0))
            here_low = tl.where(energy < least * 0.9, 0.0, here_low)
            here_high = tl.where(energy < least * 0.9, 0.0, here_high)
        exists = (shift < columns)[None, :, None]
        if SELECT == 0:
            c = tl.where(exists, c, -infinity)
            new_top = tl.maximum(top, tl.max(c, 1))
            # Shifts that may have the largest correlation: c is known to e, and so is the largest so far. The score
            # lies between the smallest and the largest that one of them may have.
            possible = c >= new_top[:, None, :] - 2.0 * e
            here_low = tl.min(tl.where(possible, here_low, infinity), 1)
            here_high = tl.max(tl.where(possible, here_high, -infinity), 1)
            # What was possible so far stays so while the best has not left it behind.
            stays = top >= new_top - 2.0 * error
            low = tl.where(stays, tl.minimum(low, here_low), here_low)
            high = tl.where(stays, tl.maximum(high, here_high), here_high)
            top = new_top
        else:
            low = tl.maximum(low, tl.max(tl.where(exists, here_low, -infinity), 1))
            high = tl.maximum(high, tl.max(tl.where(exists, here_high, -infinity), 1))
    if SELECT == DOT:
        of_norm = tl.load(norm + b, mask=b < batch, other=0.0)[:, None]
        low = low * of_norm
        high = high * of_norm
    certain = known[None, :] & (low == low) & (high == high)
    low = tl.where(certain, low, -infinity)
    high = tl.where(certain, high, infinity)
    wanted = (of_query == of_query)[:, None] & r_in[None, :]
    if alive is not None:
        wanted = wanted & (tl.load(alive + row, mask=r_in, other=0) != 0)[None, :]
    out = b[:, None] * row_stride + skip + local[None, :]
    inside = (b < batch)[:, None] & r_in[None, :]
    tl.store(lower + out, tl.where(wanted, low, -infinity), mask=inside)
    tl.store(upper + out, tl.where(wanted, high, -infinity), mask=inside)


@triton.jit
def strip_topk_exact_kernel(
    query, blocks, basis, query_width, threshold, upper, keys, room,
    batch, first_row, rows, values, columns, words, query_columns, row_stride, skip,
    SELECT: tl.constexpr, BF16: tl.constexpr, PAIRS: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    DECODED: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """keys[b, skip + row]: score and position of the pairs whose upper bound reaches the threshold.

    A program looks at PAIRS pairs of one query at a time and works on those that are left one after the other: few are.
    Key: the score's bits, put in the order of integers, above 2^32 - 1 - position, so that of equal scores the lowest
    position is the largest key.
    """
    program = tl.program_id(0)
    tiles = tl.cdiv(rows, PAIRS)
    lane = tl.arange(0, PAIRS)
    strip = room + program.to(tl.int64) * values * columns
    j = tl.arange(0, W)
    for task in range(program, tiles * batch, tl.num_programs(0)):
        b = tl.cast(task, tl.int64) // tiles
        local = tl.cast(task, tl.int64) % tiles * PAIRS + lane
        inside = local < rows
        out = b * row_stride + skip
        bound = tl.load(upper + out + local, mask=inside, other=-float("inf"))
        open_pairs = inside & (bound >= tl.load(threshold + b)) & (bound > -float("inf"))
        key = tl.full([PAIRS], NOTHING, tl.int64)
        width = load_width(query_width, b, query_columns)
        for _ in range(tl.sum(open_pairs.to(tl.int32), 0)):
            first = tl.min(tl.where(open_pairs, lane, PAIRS), 0)
            open_pairs = open_pairs & (lane != first)
            position = tl.cast(task, tl.int64) % tiles * PAIRS + first
            stored, _ = row_of(blocks, position + first_row, columns, words)
            # All threads of the program share the room of one strip: first nobody reads it any more, then it is whole.
            tl.debug_barrier()
            for k0 in range(0, values, DECODED):
                numbers = decoded(stored, basis, k0, values, columns, words, BF16, DECODED, W)
                k = k0 + tl.arange(0, DECODED)
                exists = (k < values)[:, None] & (j < columns)[None, :]
                tl.store(strip + k[:, None] * columns + j[None, :], numbers.to(tl.float32), mask=exists)
            tl.debug_barrier()
            score, _at, _energy, _broken = choose_window(
                query + b * values * query_columns, strip, None, 0, None, 1.0, width, columns, values, 1,
                query_columns, 0, 1, columns, 0, 1, SELECT, S, K,
            )  # fmt: skip
            bits = (score.to(tl.float32) + 0.0).to(tl.int32, bitcast=True)
            ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
            own = tl.where(score == score, (ordered << 32) | (0xFFFFFFFF - (position + skip)), NOTHING)
            key = tl.where(lane == first, own, key)
        tl.store(keys + out + local, key, mask=local < rows)


def _rolled(query: Tensor, query_width: Tensor | None, columns: int, bf16: bool) -> tuple[Tensor, ...]:
    """Every query of norm 1 moved to every shift, as planes [B, W, W planes x words] of even and of odd channels, the
    norm of what rounding took at most, float64 [B], NaN for a query that is not finite, and its own norm, float64 [B].
    """
    _, channels, height, padded_width = query.shape
    wide = query.flatten(1, 2).double()
    if query_width is not None:
        exists = torch.arange(padded_width, device=query.device) < query_width[:, None, None]
        wide = torch.where(exists, wide, 0.0)
    norm = wide.square().sum((1, 2)).sqrt()
    broken = ~norm.isfinite()
    wide = torch.where(broken[:, None, None], 0.0, wide)
    wide = wide / torch.where(broken | (norm == 0), 1.0, norm)[:, None, None]
    wide = torch.nn.functional.pad(wide, (0, columns - padded_width, 0, channels * height % 2 if bf16 else 0))
    n = torch.arange(columns, device=query.device)
    moved = wide[:, :, (n - n[:, None]) % columns]  # [B, K, shift, column]
    planes = (moved @ fourier_basis(columns, query.device).T).permute(0, 2, 3, 1)  # [B, shift, plane, K]
    kept = planes.to(torch.bfloat16 if bf16 else torch.float32)
    lost = (kept.double() - planes).square().sum((2, 3)).amax(1).sqrt()
    even = kept[..., ::2] if bf16 else kept
    odd = kept[..., 1::2] if bf16 else kept
    return even.contiguous(), odd.contiguous(), torch.where(broken, torch.nan, lost), norm


def topk(
    query: Tensor,
    blocks: Tensor,
    shape: Sequence[int],
    bf16: bool,
    k: int,
    query_width: Tensor | None,
    select: str,
    alive: Tensor | None,
    kind: str,
    group: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best rows: bounds for all, exact scores for those that may be among the best."""
    _, channels, height, columns = shape
    query = query.float().contiguous()
    query_width = None if query_width is None else query_width.contiguous()
    alive = None if alive is None else alive.contiguous()
    at_once = max(1, _ROLLED // (columns * columns * channels * height))
    index = query.new_full((query.shape[0], k), -1, dtype=torch.int64)
    number = None if group is None or len(group) == 0 else _numbered(group)
    with on_device_of(query):
        for first in range(0, query.shape[0], at_once):
            part = slice(first, first + at_once)
            width = None if query_width is None else query_width[part]
            index[part] = _rows(query[part], blocks, shape, bf16, k, width, selection(select, kind), alive, number)
        score, shift = strip_score(query, blocks, shape, bf16, index, query_width, select, kind)
    return score, index, shift


def _numbered(group: Tensor) -> Tensor:
    """int64 [R]: groups as 0, 1, 2, ..."""
    return torch.nn.functional.pad((group[1:] != group[:-1]).cumsum(0), (1, 0))


def _by_group(value: Tensor, kept: Tensor, rows: Tensor, k: int, nothing: float | int) -> Tensor:
    """[B, k + stretch]: the largest `value` of each group, whose column `kept` [B, k] and `rows` [n] name."""
    best = torch.full_like(value, nothing).scatter_reduce_(1, kept, value[:, :k], "amax")
    return best.scatter_reduce_(1, rows.expand(value.shape[0], -1), value[:, k : k + len(rows)], "amax")


def _rows(
    query: Tensor,
    blocks: Tensor,
    shape: Sequence[int],
    bf16: bool,
    k: int,
    query_width: Tensor | None,
    select: int,
    alive: Tensor | None,
    number: Tensor | None,
) -> Tensor:
    """The k best rows of each query, int64 [B, k]; -1 where there are fewer.

    `lower`, `upper` and `keys` have k columns for what was kept so far, then one for each row of the stretch; a
    position is such a column. `number` is the group of each row: of a group, only the best row counts.
    """
    count, channels, height, columns = shape
    batch, values = query.shape[0], channels * height
    words = words_a_plane(values, bf16)
    even, odd, lost, norm = _rolled(query, query_width, columns, bf16)
    tensor_float = not bf16 and torch.version.cuda is not None
    epsilon = (1.01 * (lost + 2.0**-23 * (columns * values + 16) + (2.0**-9 if tensor_float else 0)) + 2.0**-22).float()
    slack = 2.0**-24 * (64 + query.shape[3])
    of_norm = None
    if select == DOT.value:
        usual = ((norm > 2.0**-100) & (norm < 2.0**100)) | (norm == 0)  # else every pair is scored
        epsilon, of_norm = (epsilon + slack).where(usual | norm.isnan(), torch.inf), norm.where(usual, 1.0).float()
    stretch = min(max(_PAIRS // batch, _FEWEST_ROWS), max(count, 1))
    lower = query.new_full((batch, k + stretch), -torch.inf)
    upper = torch.empty_like(lower)
    keys = torch.full(lower.shape, NOTHING.value, dtype=torch.int64, device=query.device)
    index = torch.full((batch, k), -1, dtype=torch.int64, device=query.device)
    place = torch.arange(k, device=query.device)
    shifts = padded(columns, 1, _SHIFTS)
    queries = padded(batch, max(1, 16 // shifts), max(1, 128 // shifts))
    rows_a_tile = 64
    pairs = padded(stretch, 16, 256)
    programs = min(_PROGRAMS, batch * triton.cdiv(stretch, pairs))
    room = query.new_empty((programs, values * columns))
    basis = fourier_basis(columns, query.device)
    bits = blocks.view(torch.int32)
    exact_sizes = score_sizes(values, columns)
    decode_sizes = block_sizes(values, columns)
    for first in range(0, count, stretch):
        rows = min(stretch, count - first)
        if rows < stretch:
            lower[:, k + rows :], keys[:, k + rows :] = -torch.inf, NOTHING.value
        strip_topk_screen_kernel[(triton.cdiv(batch, queries) * triton.cdiv(rows, rows_a_tile),)](
            even, odd, epsilon, of_norm, bits, query_width, alive, lower, upper,
            batch, first, rows, columns, words, query.shape[3], k + stretch, k, slack,
            SELECT=select, BF16=bf16, OPERAND=tl.float32 if INTERPRETED else tl.bfloat16,
            PRECISION="tf32" if tensor_float else "ieee",
            Q=queries, S=shifts, R=rows_a_tile, T=32, num_warps=8, num_stages=3,
        )  # fmt: skip
        best_lower = lower
        if number is not None:
            here = number[first : first + rows] - number[first]
            before = number[index.clamp(min=0)] - number[first]  # 0: the group goes on in this stretch
            # Columns of `_by_group`: groups that begin in this stretch by number, those that were kept after them.
            columns_of = torch.where(before == 0, 0, stretch + place), here
            best_lower = _by_group(lower, *columns_of, k, -torch.inf)
        threshold = best_lower.topk(k).values[:, -1].contiguous()
        strip_topk_exact_kernel[(programs,)](
            query, bits, basis, query_width, threshold, upper, keys, room,
            batch, first, rows, values, columns, words, query.shape[3], k + stretch, k,
            SELECT=select, BF16=bf16, PAIRS=pairs, S=exact_sizes["S"], K=exact_sizes["K"],
            DECODED=decode_sizes["K"], W=decode_sizes["W"], num_warps=4,
        )  # fmt: skip
        best = (keys if number is None else _by_group(keys, *columns_of, k, NOTHING.value)).topk(k).values
        position = 0xFFFFFFFF - (best & 0xFFFFFFFF)
        found = best > NOTHING.value
        old = index.gather(1, position.clamp(0, k - 1))
        index = torch.where(found, torch.where(position < k, old, position - k + first), -1)
        ordered = best >> 32
        keys[:, :k] = torch.where(found, (ordered << 32) | (0xFFFFFFFF - place), NOTHING.value)
        score = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(torch.int32).view(torch.float32)
        lower[:, :k] = torch.where(found, score, -torch.inf)
    return index
