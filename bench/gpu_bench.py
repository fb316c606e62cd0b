"""The cases of `bench/gpu.py bench`, one group a process: python gpu_bench.py GROUP cuda|cpu SECONDS

Prints a line of JSON for each entry as it is done. Before an entry is timed its result is compared with float64 or with
the exact scores of its own rows; times are medians over device events. The group `profile` says what each kernel of a
search takes. On a CPU the sizes are tiny and the times mean nothing: it shows that the script runs.

Peers, each also under torch.compile where that changes anything:

- polar: grid_sample with a grid made beforehand, conversion and normalisation around it;
- match: correlation by FFT or conv2d with the mixed window's energy from the column Gram matrix, and windows tiled and
  gathered as the published code does it;
- search: one bfloat16 matrix product of rolled queries with strips a stretch at a time, window norm, maximum over
  shifts, topk; and a product per frequency of spectra kept ready.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from geoloc_fast import StripBank, azimuth_match, polar_resample, strip_curve, strip_score, strip_topk
from geoloc_fast.reference.strip_bank import HEADER_BYTES, BankLayout
from geoloc_fast.testing import force_backend, observe_calls

SCALE = 1 / 0.07
DEVICE = torch.device("cpu")
DEADLINE = math.inf

Entry = Callable[[], Any]


def median_s(run: Entry) -> float:
    """Of 10 calls, or as many as fit in two seconds, after two that are thrown away."""
    run()
    wait()
    begun = time.perf_counter()
    run()
    wait()
    calls = max(3, min(10, int(2 / max(time.perf_counter() - begun, 1e-6))))
    if DEVICE.type == "cpu":
        times = []
        for _ in range(calls):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * calls)]
    for n in range(calls):
        events[2 * n].record()
        run()
        events[2 * n + 1].record()
    wait()
    return statistics.median(events[2 * n].elapsed_time(events[2 * n + 1]) / 1e3 for n in range(calls))


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def measure(case: str, entry: str, run: Entry, check: Callable[[Any], float] | None, **facts: Any) -> None:
    """One row. `check` gives the largest error of a result; a peer that cannot run is a row that says why."""
    row: dict[str, Any] = {"case": case, "entry": entry, **facts}
    if time.monotonic() > DEADLINE:
        print(json.dumps({**row, "outcome": "out of time"}), flush=True)
        return
    try:
        if check is not None:
            row["max_error"] = check(run())
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        row["median_s"] = median_s(run)
        if DEVICE.type == "cuda":
            row["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        row["outcome"] = "passed"
    except torch.cuda.OutOfMemoryError as error:
        row |= {"outcome": "out of memory", "why": str(error)[:200]}
    except Exception as error:
        refused = "cannot run" in str(error)
        row |= {"outcome": "not here" if refused else "failed", "why": f"{type(error).__name__}: {error}"[:400]}
    print(json.dumps(row), flush=True)


def ours() -> tuple[str, ...]:
    return ("cuda", "triton") if DEVICE.type == "cuda" else ("cpu",)


def on(backend: str, run: Entry) -> Entry:
    def forced() -> Any:
        with force_backend(backend):
            return run()

    return forced


def compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()  # a function is compiled for eight shapes at most, and runs as it is beyond that
    return torch.compile(run, dynamic=False) if DEVICE.type == "cuda" else run


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    strips = torch.randn(shape, generator=generator, device=DEVICE)
    return strips / strips.flatten(1).norm(dim=1)[:, None, None, None]


# --- the card --------------------------------------------------------------------------------------------------------


def limits(tiny: bool) -> None:
    size = 1 << (20 if tiny else 30)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    measure("copy", "torch copy_", lambda: target.copy_(source), None, bytes=2 * size)
    n = 256 if tiny else 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = torch.randn(n, n, device=DEVICE).to(dtype), torch.randn(n, n, device=DEVICE).to(dtype)
        measure(f"matrix product, {name}", "torch matmul", lambda a=a, b=b: a @ b, None, flops=2 * n**3)  # type: ignore[misc]


# --- polar_resample --------------------------------------------------------------------------------------------------


def polar(tiny: bool) -> None:
    batch, size, rows, cols = (2, 64, 16, 32) if tiny else (256, 512, 128, 512)
    mean, std = (124.0, 116.0, 104.0), (58.0, 57.0, 57.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    images = images.to(DEVICE, memory_format=torch.channels_last)
    with force_backend("reference"):
        exact = polar_resample(images[:2].double(), (rows, cols), mean=mean, std=std, dtype=torch.float64)
    r = size / 2 * (rows - 1 - torch.arange(rows, device=DEVICE, dtype=torch.float64)) / rows
    theta = math.pi + 2 * math.pi * torch.arange(cols, device=DEVICE, dtype=torch.float64) / cols
    row, col = size / 2 - r[:, None] * theta.cos(), size / 2 + r[:, None] * theta.sin()
    grid = torch.stack([2 * col / (size - 1) - 1, 2 * row / (size - 1) - 1], -1).float().expand(batch, -1, -1, -1)
    m = torch.tensor(mean, device=DEVICE)[:, None, None]
    s = torch.tensor(std, device=DEVICE)[:, None, None]

    def grid_sample(images: Tensor) -> Tensor:
        sampled = torch.nn.functional.grid_sample(images.float(), grid, align_corners=True)
        return ((sampled - m) / s).bfloat16()

    def check(out: Tensor) -> float:
        error = float((out[:2].double() - exact).abs().max())
        assert error < 0.05, error
        return error

    moved = batch * (math.pi / 4 * size * size * 3 + rows * cols * 3 * 2)
    case = f"polar_resample, B={batch}, uint8 {size}x{size} to bf16 {rows}x{cols}"
    for backend in ours():
        run = on(backend, lambda: polar_resample(images, (rows, cols), mean=mean, std=std, dtype=torch.bfloat16))
        measure(case, f"geoloc_fast {backend}", run, check, bytes=moved)
    measure(case, "grid_sample pipeline", lambda: grid_sample(images), check)
    fast = compiled(grid_sample)
    measure(case, "grid_sample pipeline, compiled", lambda: fast(images), check)


# --- azimuth_match ---------------------------------------------------------------------------------------------------


def straight_through(correlation: Tensor, noise: Tensor) -> Tensor:
    soft = (SCALE * correlation + noise).softmax(-1)
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())


def shifted(columns: int, width: int) -> Tensor:
    """[W, Wq]: the columns of the window at each shift."""
    steps = torch.arange(columns, device=DEVICE)
    return (steps[:, None] + torch.arange(width, device=DEVICE)) % columns


def by_gather(query: Tensor, strips: Tensor, noise: Tensor) -> Tensor:
    every = strips[..., shifted(strips.shape[3], query.shape[3])]
    choice = straight_through(torch.einsum("bchx,rchsx->brs", query, every), noise)
    mixed = torch.einsum("brs,rchsx->brchx", choice, every)
    product = torch.einsum("brchx,bchx->br", mixed, query)
    return product / (mixed.square().sum((2, 3, 4)).sqrt() * query.flatten(1).norm(dim=1)[:, None])


def from_correlation(correlation: Tensor, query: Tensor, strips: Tensor, noise: Tensor) -> Tensor:
    """The mixed window's energy is a quadratic form in diagonal sums of the column Gram matrix."""
    choice = straight_through(correlation, noise)
    columns = strips.flatten(1, 2)
    gram = columns.mT @ columns
    index = shifted(strips.shape[3], query.shape[3])
    of_windows = gram[:, index[:, None, :], index[None, :, :]].sum(-1)
    energy = (torch.bmm(choice.transpose(0, 1), of_windows).transpose(0, 1) * choice).sum(-1)
    return (choice * correlation).sum(-1) / (energy.sqrt() * query.flatten(1).norm(dim=1)[:, None])


def by_conv2d(query: Tensor, strips: Tensor, noise: Tensor) -> Tensor:
    wide = torch.cat([strips, strips[..., : query.shape[3] - 1]], -1)
    correlation = torch.nn.functional.conv2d(wide, query)[:, :, 0].transpose(0, 1)
    return from_correlation(correlation, query, strips, noise)


def by_fft(query: Tensor, strips: Tensor, noise: Tensor) -> Tensor:
    columns = strips.shape[3]
    q, s = torch.fft.rfft(query.flatten(1, 2), n=columns), torch.fft.rfft(strips.flatten(1, 2))
    product = torch.einsum("bkf,rkf->brf", q.conj(), s)
    return from_correlation(torch.fft.irfft(product, n=columns), query, strips, noise)


def match(tiny: bool) -> None:
    for width in (5, 16):
        batch = 8 if tiny else 1024
        query, strips = random(batch, 16, 4, width, seed=1), random(batch, 16, 4, 16, seed=2)
        uniform = torch.rand((batch, 16, batch), device=DEVICE).clamp(1e-6, 1 - 1e-6).transpose(1, 2)
        noise = -(-uniform.log()).log()
        weight = torch.randn(batch, batch, device=DEVICE)

        def step(form: Callable[..., Tensor], q: Tensor, s: Tensor, n: Tensor, w: Tensor) -> tuple[Tensor, ...]:
            q, s = q.detach().requires_grad_(), s.detach().requires_grad_()
            score = form(q, s, n)
            return (score.detach(), *torch.autograd.grad(score, (q, s), w))

        def fused(q: Tensor, s: Tensor, n: Tensor) -> Tensor:
            return azimuth_match(q, s, select="gumbel", scale=SCALE, noise=n).score

        few = min(batch, 128)
        part = (query[:few], strips[:few], noise[:few, :few], weight[:few, :few])
        exact = step(by_fft, *(tensor.double() for tensor in part))

        def check_of(form: Callable[..., Tensor]) -> Callable[[Any], float]:
            def check(_: Any) -> float:
                found = step(form, *part)  # noqa: B023
                pairs = zip(found, exact, strict=True)  # noqa: B023
                # A shift that float32 chooses otherwise moves a score: the share of those, and the rest's error.
                off = (found[0] - exact[0]).abs() > 1e-3  # noqa: B023
                assert float(off.double().mean()) < 1e-3
                return max(float((a - e).abs().median() / e.abs().max()) for a, e in pairs)

            return check

        case = f"azimuth_match gumbel, forward and backward, B=R={batch}, 16x4x16, Wq={width}"
        pairs = batch * batch
        # noise read, slope written and read twice, score, shift, grad_score; three products per frequency
        facts = {"bytes": pairs * (4 * 16 * 4 + 20), "flops": pairs * 3 * 2 * (2 * 16 - 2) * 64, "rate": "fp32"}
        for backend in ours():
            run = on(backend, partial(step, fused, query, strips, noise, weight))

            def check(result: Any, backend: str = backend) -> float:
                with force_backend(backend):
                    return check_of(fused)(result)

            measure(case, f"geoloc_fast {backend}", run, check, **facts)
        for name, form in (("fft and Gram matrix", by_fft), ("conv2d and Gram matrix", by_conv2d)):
            measure(case, name, partial(step, form, query, strips, noise, weight), check_of(form))
        fast = compiled(by_fft)
        measure(case, "fft and Gram matrix, compiled", lambda: step(fast, query, strips, noise, weight), None)  # noqa: B023
        measure(case, "tile and gather", lambda: step(by_gather, query, strips, noise, weight), check_of(by_gather))  # noqa: B023


# --- strip_topk ------------------------------------------------------------------------------------------------------

K = 10


def rolled(query: Tensor, columns: int) -> Tensor:
    """[B W, K W]: the query of norm 1 at every shift."""
    wide = torch.nn.functional.pad(query, (0, columns - query.shape[3]))
    wide = wide / wide.flatten(1).norm(dim=1)[:, None, None, None]
    steps = torch.arange(columns, device=query.device)
    return wide[..., (steps - steps[:, None]) % columns].permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)


def inverse_norms(strips: Tensor, width: int) -> Tensor:
    """[n, W] of every window."""
    energy = strips.float().square().sum((1, 2))
    return energy[:, shifted(strips.shape[3], width)].sum(-1).rsqrt()


def chosen(correlation: Tensor, inverse: Tensor) -> Tensor:
    """[B, W, n] and [n, W] -> score [B, n]"""
    value, shift = correlation.max(1)
    return value.float() * inverse.T.expand_as(correlation).gather(1, shift[:, None])[:, 0]


def made_bank(count: int, values: tuple[int, int], columns: int) -> tuple[StripBank, BankLayout, list[Tensor]]:
    """In bf16, of about `count` random strips, and these a piece at a time."""
    at_once = min(count, 100_000 if columns < 64 else 50_000)
    blocks, strips = [], []
    for n in range(0, count, at_once):
        piece = random(at_once, *values, columns, seed=n)
        blocks.append(StripBank.pack(piece, dtype="bf16").blocks)
        strips.append(piece.bfloat16())
    layout = BankLayout(len(blocks) * at_once, *values, columns, "bf16")
    assert at_once % 16 == 0 or len(blocks) == 1
    header = torch.frombuffer(bytearray(layout.header()), dtype=torch.uint8).to(DEVICE)
    return StripBank(torch.cat([header, *blocks])), layout, strips


def search_otherwise(case: str, query: Tensor, bank: StripBank, facts: dict[str, Any]) -> None:
    """By dot, by groups, and the curves of some rows."""
    rows = torch.arange(len(bank), device=DEVICE)
    some = rows[: 32 * query.shape[0]].view(query.shape[0], -1)
    forms: dict[str, dict[str, Any]] = {'score="dot"': {"score": "dot"}, "groups of 4 rows": {"group": rows // 4}}
    for form, options in forms.items():

        def check(found: Any, kind: str = options.get("score", "cosine")) -> float:
            with force_backend("reference"):
                own = strip_score(query[:4], bank, found[1][:4], score=kind).score
            return float((found[0][:4] - own).abs().max())

        for backend in ours():
            run = on(backend, lambda options=options: strip_topk(query, bank, K, **options))  # type: ignore[misc]
            measure(f"{case}, {form}", f"geoloc_fast {backend}", run, check, **facts)

    def check_curve(found: Tensor) -> float:
        with force_backend("reference"):
            return float((found[:4] - strip_curve(query[:4], bank, some[:4])).abs().max())

    for backend in ours():
        run = on(backend, lambda: strip_curve(query, bank, some))
        measure(f"{case}, strip_curve of {some.shape[1]} rows", f"geoloc_fast {backend}", run, check_curve)


def search(tiny: bool) -> None:
    full = [
        ("one query", 1, 4_000_000, 16, 16),
        ("64 queries", 64, 1_000_000, 16, 16),
        ("256 queries", 256, 1_000_000, 16, 16),
        ("1024 queries", 1024, 1_000_000, 16, 16),
        ("64 queries, W=64", 64, 250_000, 64, 64),
        ("one query, W=1", 1, 1_000_000, 1, 1),
    ]
    for name, batch, count, columns, width in full:
        values = (16, 4) if columns > 1 else (256, 4)
        count = 200 if tiny else count
        batch = min(batch, 4) if tiny else batch
        query = random(batch, *values, width, seed=9)
        bank, layout, strips = made_bank(count, values, columns)
        at_once = strips[0].shape[0]
        exact: dict[str, Tensor] = {}

        def check(found: Any, bank: StripBank = bank, query: Tensor = query, exact: dict[str, Tensor] = exact) -> float:
            """Scores against those of the found rows in float64; the first entry's are the answer for the others."""
            score, index = found[0][:4], found[1][:4]
            with force_backend("reference"):
                own = strip_score(query[:4], bank, index).score
            best = exact.setdefault("score", own)
            assert float((own.sort(descending=True).values - best).abs().max()) < 5e-3
            return float((score - own).abs().max())

        pairs = batch * layout.count
        facts = {"bytes": bank.nbytes - HEADER_BYTES, "pairs": pairs, "queries": batch}
        case = f"strip_topk, {name}, {layout.count} strips {values[0]}x{values[1]}x{columns} bf16"
        for backend in ours():
            measure(case, f"geoloc_fast {backend}", on(backend, lambda: strip_topk(query, bank, K)), check, **facts)  # noqa: B023

        if name in ("one query", "64 queries"):
            search_otherwise(case, query, bank, facts)

        moved = rolled(query, columns).bfloat16()
        norms = [inverse_norms(piece, width) for piece in strips]
        stretch = max(1, min(at_once, (1 << 28) // (batch * columns)))

        def gemm(moved: Tensor, part: Tensor, inverse: Tensor, batch: int = batch) -> Tensor:
            return chosen((moved @ part.T).view(batch, -1, part.shape[0]), inverse)

        def topk_of(scores: Iterator[Tensor], ranks: list[int]) -> tuple[Tensor, Tensor]:
            kept, rows = [], []
            for first, score in zip(ranks, scores, strict=True):
                value, row = score.topk(min(K, score.shape[1]))
                kept.append(value)
                rows.append(row + first)
            value, at = torch.cat(kept, 1).topk(K)
            return value, torch.cat(rows, 1).gather(1, at)

        parts = [
            (n * at_once + first, piece[first : first + stretch].flatten(1), norm[first : first + stretch])
            for n, (piece, norm) in enumerate(zip(strips, norms, strict=True))
            for first in range(0, piece.shape[0], stretch)
        ]
        ranks = [first for first, _, _ in parts]

        def by_gemm(form: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
            return topk_of((form(moved, part, inverse) for _, part, inverse in parts), ranks)  # noqa: B023

        measure(case, "bf16 GEMM of rolled queries, max, topk", lambda: by_gemm(gemm), check)
        fast = compiled(gemm)
        measure(case, "bf16 GEMM of rolled queries, max, topk, compiled", lambda: by_gemm(fast), check)  # noqa: B023
        if columns > 1 and pairs < 100_000_000:
            spectra = [torch.fft.rfft(piece.float()).flatten(1, 2).permute(2, 1, 0).contiguous() for piece in strips]
            wide = torch.nn.functional.pad(query, (0, columns - width))
            wide = wide / wide.flatten(1).norm(dim=1)[:, None, None, None]
            mine = torch.fft.rfft(wide).conj().resolve_conj().flatten(1, 2).permute(2, 0, 1).contiguous()
            step = max(1, min(at_once, (1 << 26) // (batch * columns)))

            def by_fft() -> tuple[Tensor, Tensor]:
                def scores() -> Iterator[Tensor]:
                    for spectrum, norm in zip(spectra, norms, strict=True):  # noqa: B023
                        for first in range(0, spectrum.shape[2], step):  # noqa: B023
                            product = mine @ spectrum[:, :, first : first + step]  # noqa: B023
                            correlation = torch.fft.irfft(product, n=columns, dim=0).transpose(0, 1)  # noqa: B023
                            yield chosen(correlation, norm[first : first + step])  # noqa: B023

                places = [n * at_once + f for n, s in enumerate(spectra) for f in range(0, s.shape[2], step)]  # noqa: B023
                return topk_of(scores(), places)

            measure(case, "product per frequency, inverse FFT, topk", by_fft, check)
            del spectra


# --- where the time of a search goes ---------------------------------------------------------------------------------


def kernel_times(run: Entry, calls: int) -> list[dict[str, Any]]:
    """Name, launches a call and microseconds a call of everything the device did, the longest first."""
    from torch.profiler import ProfilerActivity

    on_gpu = DEVICE.type == "cuda"
    run()
    wait()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(calls):
            run()
        wait()
    kernels = []
    for event in found.key_averages():
        name = re.sub(r"^void |geoloc_fast::cuda::|\(.*", "", event.key)
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if spent > 0:
            kernels.append({"kernel": name[:80], "launches": event.count / calls, "us": spent / calls})
    return sorted(kernels, key=lambda kernel: -kernel["us"])[:16]


def profile(tiny: bool) -> None:
    """strip_topk, kernel by kernel: large banks and a small one, many queries and one."""
    for batch, count, columns in ((64, 1_000_000, 16), (1, 1_000_000, 16), (1, 10_000, 16), (64, 100_000, 64)):
        bank, layout, strips = made_bank(200 if tiny else count, (16, 4), columns)
        del strips
        query = random(batch, 16, 4, columns, seed=9)
        case = f"kernels of strip_topk, {batch} queries, {layout.count} strips 16x4x{columns} bf16"
        for backend in ours():
            row: dict[str, Any] = {"case": case, "entry": f"geoloc_fast {backend}"}
            try:
                with observe_calls() as calls:
                    run = on(backend, lambda: strip_topk(query, bank, K))  # noqa: B023
                    row["kernels"] = kernel_times(run, 3 if tiny else 10)
                row |= {"plan": calls[0][2], "outcome": "passed" if row["kernels"] else "not here"}
            except Exception as error:
                row |= {"outcome": "failed", "why": f"{type(error).__name__}: {error}"[:400]}
            print(json.dumps(row), flush=True)


GROUPS = {"limits": limits, "profile": profile, "search": search, "match": match, "polar": polar}


def main() -> None:
    global DEVICE, DEADLINE
    group, device, seconds = sys.argv[1:]
    DEVICE, DEADLINE = torch.device(device), time.monotonic() + float(seconds)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    GROUPS[group](DEVICE.type == "cpu")


if __name__ == "__main__":
    main()
