"""Renders bench/results/cpu.json as docs/notes/benchmarks.md with its plot, and the short table of the README.

    python bench/report.py

Nothing is measured here, and no figure stands in the page that is not in the JSON.
"""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

from pages import wrapped

ROOT = Path(__file__).resolve().parents[1]
OURS = "geoloc_fast"

# What was promised: (case, our entry, the peers that count (None: all), at least so many times faster).
STEP = "azimuth_match gumbel, forward and backward, 16x4x16, "
POLAR = "polar_resample, uint8 [32, 3, 512, 512] channels_last to normalised float32 128x512"
BF16, FP32 = "geoloc_fast, bf16 bank", "geoloc_fast, fp32 bank"
FP32_PEERS = ("FAISS", "torch GEMM, fp32", "torch FFT")
ONE, MANY = "strip_topk, one query, Wq=5, 100k strips 16x4x16", "strip_topk, 64 queries, Wq=16, 100k strips 16x4x16"
FLOORS: list[tuple[str, str, tuple[str, ...] | None, float]] = [
    (POLAR, OURS, ("cv2.remap",), 4),
    (POLAR, OURS, ("torch: grid_sample",), 16),
    (STEP + "B=R=128, Wq=16 of 16", OURS, ("torch: materialised",), 40),
    (STEP + "B=R=128, Wq=16 of 16", OURS, ("torch: fft",), 2),
    (STEP + "B=R=256, Wq=5 of 16", OURS, ("torch: materialised",), 40),
    (STEP + "B=R=256, Wq=5 of 16", OURS, ("torch: fft",), 2),
    (ONE, BF16, None, 2),
    (ONE, FP32, FP32_PEERS, 1.4),
    (MANY, FP32, FP32_PEERS, 4),
    (MANY, BF16, None, 4),
    ("strip_topk, 16 queries, Wq=64, 20k strips 16x4x64", FP32, None, 3),
    ("strip_topk, 64 queries, Wq=64, 20k strips 16x4x64", FP32, None, 3),
    ("strip_topk, 64 queries, W=1, 100k vectors of 1024", FP32, ("FAISS",), 1),
]
MEMORY = (STEP + "B=R=1024, Wq=5 of 16", 600)  # MB above the inputs, at most
READ_SHARE = 0.75  # of a search with one query, against reading the bank
OVERHEAD = ("the cost of a call: tiny tensors, inference mode, tensor arguments", 8e-6)
# The README's rows: (in plain words, case, our entry, the peers that count).
README_ROWS: list[tuple[str, str, str, tuple[str, ...] | None]] = [
    ("32 satellite images of 512 x 512 to normalised polar images of 128 x 512", POLAR, OURS, ("cv2.remap",)),
    ("128 photos against 128 places in training, forward and backward", STEP + "B=R=128, Wq=16 of 16", OURS, None),
    ("1 photo in 100,000 places", ONE, BF16, None),
    ("64 photos in 100,000 places", MANY, BF16, None),
    ("64 vectors of 1024 numbers among 100,000", FLOORS[-1][0], FP32, ("FAISS",)),
]
README_MARKS = ("<!-- benchmarks: written by bench/report.py -->", "<!-- end of benchmarks -->")


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def limit_share(row: dict[str, Any], limits: dict[str, Any]) -> str:
    """The share of the nearest limit: bytes that must move, or operations to be done, at the machine's rate."""
    shares = []
    if "bytes" in row:
        shares.append(
            (row["bytes"] / row["median_s"] / (limits[row.get("bandwidth", "read") + "_gb_s"] * 1e9), "bandwidth")
        )
    if "flops" in row:
        kind = row.get("flops_dtype", "fp32")
        if limits[f"{kind}_gflop_s"]:
            shares.append((row["flops"] / row["median_s"] / (limits[f"{kind}_gflop_s"] * 1e9), f"{kind} arithmetic"))
    if not shares:
        return ""
    share, what = max(shares)
    return f"{100 * share:.0f} % of {what}"


def table(case: str, rows: list[dict[str, Any]], limits: dict[str, Any]) -> list[str]:
    ours: dict[Any, float] = {}  # the best of ours, in a gallery of each size
    for row in rows:
        if row["entry"].startswith(OURS):
            size = row.get("gallery")
            ours[size] = min(row["median_s"], ours.get(size, math.inf))
    lines = [
        f"### {case}",
        "",
        "| | median | worst of runs | time against ours | max error | peak memory | of the limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.get("gallery", 0), row["median_s"])):
        name = f"**{row['entry']}**" if row["entry"].startswith(OURS) else row["entry"]
        best = ours.get(row.get("gallery"))
        ratio = "" if best is None else f"{row['median_s'] / best:.2f}x"
        error = f"{row['max_error']:.1e}" if "max_error" in row else ""
        peak = f"{row['peak_mb']:.0f} MB" if "peak_mb" in row else ""
        lines.append(
            f"| {name} | {seconds(row['median_s'])} | {seconds(row['worst_s'])} | {ratio} | {error} | {peak} | "
            f"{limit_share(row, limits)} |"
        )
    notes = [f"- {row['entry']}: {row['note']}" for row in rows if "note" in row]
    return [*lines, *(["", *notes] if notes else []), ""]


def against(rows: list[dict[str, Any]], entry: str, peers: tuple[str, ...] | None) -> tuple[float, str]:
    """How many times faster than the best of the peers, and which that is."""
    ours = next(row["median_s"] for row in rows if row["entry"] == entry)
    others = [
        (row["median_s"], row["entry"])
        for row in rows
        if not row["entry"].startswith((OURS, "reference")) and (peers is None or row["entry"].startswith(peers))
    ]
    best, name = min(others)
    return best / ours, name


def floors(cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Every promise beside what was measured, missed ones too."""
    lines = ["| case | against | promised | measured |", "|---|---|---|---|"]

    def add(case: str, what: str, promised: str, measured: str, held: bool) -> None:
        lines.append(f"| {case} | {what} | {promised} | {measured if held else f'**missed: {measured}**'} |")

    for case, entry, peers, least in FLOORS:
        if case in cases:
            ratio, peer = against(cases[case], entry, peers)
            mine = entry.removeprefix(OURS).strip(", ")
            add(f"{case}{f', {mine}' if mine else ''}", peer, f"{least:g}x", f"{ratio:.1f}x", ratio >= least)
    for row in cases.get(ONE, []):
        if "share_of_read" in row:
            share = row["share_of_read"]
            name = f"{ONE}, {row['entry'].removeprefix(OURS).strip(', ')}"
            add(name, "reading the bank, in turn", f"{READ_SHARE:.0%}", f"{share:.0%}", share >= READ_SHARE)
    for row in cases.get(MEMORY[0], []):
        if row["entry"] == OURS:
            add(
                MEMORY[0],
                "memory above the inputs",
                f"{MEMORY[1]} MB",
                f"{row['peak_mb']:.0f} MB",
                row["peak_mb"] < MEMORY[1],
            )
    calls = {row["entry"]: row["median_s"] for row in cases.get(OVERHEAD[0], [])}
    for name, bare in calls.items():
        if name.endswith(", bare native call"):
            op = name.split(",")[0]
            above = calls[op] - bare
            add(
                f"call of {op}",
                "the bare native call",
                f"{seconds(OVERHEAD[1])} more",
                f"{seconds(above)} more",
                above <= OVERHEAD[1],
            )
    return lines


def short_table(cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = ["| | median | best alternative | faster by |", "|---|---|---|---|"]
    for words, case, entry, peers in README_ROWS:
        if case in cases:
            ratio, peer = against(cases[case], entry, peers)
            time = next(row["median_s"] for row in cases[case] if row["entry"] == entry)
            lines.append(f"| {words} | {seconds(time)} | {peer} | {ratio:.1f}x |")
    return lines


def write_readme(result: dict[str, Any], cases: dict[str, list[dict[str, Any]]]) -> None:
    path = ROOT / "README.md"
    before, rest = path.read_text().split(README_MARKS[0])
    after = rest.split(README_MARKS[1])[1]
    machine = result["machine"]
    words = (
        f"Medians on {machine['threads']} threads of {machine['cpu']} ({machine['isa']}), against the best alternative "
        "in the same run,\non the same data and threads. `make bench` measures it on your machine; "
        "[benchmarks](docs/notes/benchmarks.md)\nhas every case."
    )
    table = "\n".join([README_MARKS[0], words, "", *short_table(cases), "", README_MARKS[1]])
    path.write_text(wrapped(before + table + after))


def plot(series: dict[str, list[tuple[float, float]]], title: str, x_title: str, y_title: str) -> str:
    """A log-log line plot as SVG."""
    width, height, left, bottom = 720, 420, 80, 50
    points = [point for line in series.values() for point in line]
    low = [math.floor(math.log10(min(p[i] for p in points))) for i in (0, 1)]
    high = [math.ceil(math.log10(max(p[i] for p in points))) for i in (0, 1)]

    def at(x: float, y: float) -> tuple[float, float]:
        u = (math.log10(x) - low[0]) / max(high[0] - low[0], 1)
        v = (math.log10(y) - low[1]) / max(high[1] - low[1], 1)
        return left + u * (width - left - 170), height - bottom - v * (height - bottom - 40)

    colours = ["#b3261e", "#1f5fa8", "#19713a", "#8a5a00", "#6a3d9a", "#555555", "#008b8b", "#c71585"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="15">{html.escape(title)}</text>',
    ]
    for exponent in range(low[0], high[0] + 1):
        x, y = at(10.0**exponent, 10.0 ** low[1])
        _, top = at(10.0**exponent, 10.0 ** high[1])
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{top:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">1e{exponent}</text>')
    for exponent in range(low[1], high[1] + 1):
        x, y = at(10.0 ** low[0], 10.0**exponent)
        right, _ = at(10.0 ** high[0], 10.0**exponent)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">1e{exponent}</text>')
    for n, (name, line) in enumerate(sorted(series.items())):
        colour = colours[n % len(colours)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in sorted(line)))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (at(*p) for p in line)]
        parts.append(f'<text x="{width - 160}" y="{60 + 18 * n}" fill="{colour}">{html.escape(name)}</text>')
    parts.append(
        f'<text x="{(left + width - 170) / 2:.0f}" y="{height - 10}" text-anchor="middle">{html.escape(x_title)}</text>'
    )
    parts.append(
        f'<text transform="translate(18,{height / 2:.0f}) rotate(-90)" text-anchor="middle">{html.escape(y_title)}'
        "</text></svg>"
    )
    return "\n".join(parts)


def gallery_plot(rows: list[dict[str, Any]]) -> str:
    """Rows that carry `gallery` (strips in the bank) are the latency of one search against its size."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if "gallery" in row:
            name = f"{row['series']}, {row.get('queries', 1)} photo{'s' if row.get('queries', 1) > 1 else ''}"
            series.setdefault(name, []).append((row["gallery"], 1e3 * row["median_s"]))
    return plot(series, "Latency of a search against gallery size", "strips in the bank", "ms") if series else ""


def render(result: dict[str, Any]) -> str:
    machine, limits = result["machine"], result["limits"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        f"Measured by `{result['command']}` at commit {machine['commit']} on {machine['cpu']} "
        f"({machine['cores']} cores, {machine['threads']} threads, instruction set {machine['isa']}, "
        f"{machine['compiler']}), {versions}. "
        "Medians over separate runs, ours and the peers next to one another in each; results were checked against "
        "float64 before they were timed. Gallery sizes, the loader, one photo end to end, evaluation and the cases "
        "with AVX2 alone are from one run.",
        "",
        f"The machine's limits: read {limits['read_gb_s']:.1f} GB/s, "
        f"copy {limits['copy_gb_s']:.1f} GB/s, float32 {limits['fp32_gflop_s']:.0f} GFLOP/s, "
        f"bfloat16 {limits['bf16_gflop_s']:.0f} GFLOP/s, on {limits['threads']:.0f} threads.",
        "",
    ]
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        cases.setdefault(row["case"], []).append(row)
    lines += ["## What was promised", "", *floors(cases), "", "## Every case", ""]
    for case, rows in cases.items():
        lines += table(case, rows, limits)
    return "\n".join(lines)


def main() -> None:
    result = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text())
    page = render(result)
    drawing = gallery_plot(result["rows"])
    if drawing:
        pictures = ROOT / "docs" / "pictures"
        pictures.mkdir(exist_ok=True)
        (pictures / "latency.svg").write_text(drawing)
        page += "\n![Latency of a search against gallery size](../pictures/latency.svg)\n"
    notes = ROOT / "bench" / "results" / "notes.md"
    if notes.exists():
        page += "\n" + notes.read_text()
    (ROOT / "docs" / "notes" / "benchmarks.md").write_text(wrapped(page))
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        cases.setdefault(row["case"], []).append(row)
    write_readme(result, cases)
    print("\n".join(floors(cases)))
    print("written to docs/notes/benchmarks.md and README.md")


if __name__ == "__main__":
    main()
