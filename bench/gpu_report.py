"""The page of a GPU run, from its JSON: python bench/gpu_report.py bench/results/gpu_bench.json

Nothing is measured here. A share of a limit is that of the nearer one: bytes that must move at the measured copy rate,
or operations at the measured rate of a matrix product, both of the same run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def measured_limits(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes a second of a copy, operations a second of matrix products: what was measured of them."""
    found = {}
    for row in rows:
        if row.get("group") == "limits" and "median_s" in row:
            name = "copy" if row["case"] == "copy" else row["case"].rsplit(" ", 1)[1]
            found[name] = row.get("bytes", row.get("flops", 0)) / row["median_s"]
    return found


def share(row: dict[str, Any], limits: dict[str, float]) -> str:
    shares = []
    if "bytes" in row and "copy" in limits:
        shares.append((row["bytes"] / row["median_s"] / limits["copy"], "copy bandwidth"))
    if "flops" in row and row.get("rate") in limits:
        shares.append((row["flops"] / row["median_s"] / limits[row["rate"]], f"{row['rate']} matrix rate"))
    return "" if not shares else f"{100 * max(shares)[0]:.0f} % of {max(shares)[1]}"


def profile(row: dict[str, Any]) -> list[str]:
    """Kernels of one search, by what they take of it."""
    title = f"## {row['case']}, {row['entry']} {row.get('plan', '')}".rstrip()
    kernels = row.get("kernels", [])
    if not kernels:
        return [title, "", f"{row['outcome']}: {row.get('why', row.get('printed', 'the profiler saw no kernel'))}", ""]
    whole = sum(kernel["us"] for kernel in kernels)
    lines = [title, "", "| kernel | launches a call | a call | share |", "|---|---|---|---|"]
    for kernel in kernels:
        share = f"{100 * kernel['us'] / whole:.0f} %"
        lines.append(f"| `{kernel['kernel']}` | {kernel['launches']:g} | {seconds(kernel['us'] / 1e6)} | {share} |")
    return [*lines, ""]


def render(content: dict[str, Any]) -> str:
    machine, rows = content["machine"], content["rows"]
    limits = measured_limits(rows)
    known = [f"{name} {rate / 1e12:.3g} T{'B' if name == 'copy' else 'FLOP'}/s" for name, rate in limits.items()]
    lines = [
        "# GPU benchmarks",
        "",
        f"Measured by `{content['command']}` at commit {machine['commit']}: {machine['gpu'] or 'no GPU'}, "
        f"torch {machine['torch']}, Triton {machine['triton']}, {machine['nvcc'] or 'no nvcc'}."
        + ("" if content["finished"] else " The run is not finished."),
        "",
        f"Limits measured in the same run: {', '.join(known) or 'none'}. "
        "Results were checked against float64 before they were timed.",
        "",
    ]
    for row in rows:
        if row.get("group") == "profile":
            lines += profile(row)
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "case" in row and row.get("group") not in ("limits", "profile"):
            cases.setdefault(row["case"], []).append(row)
    for case, entries in cases.items():
        times = [row["median_s"] for row in entries if row["entry"].startswith("geoloc_fast") and "median_s" in row]
        lines += [
            f"## {case}",
            "",
            "| | median | against ours | max error | peak memory | of the limit |",
            "|---|---|---|---|---|---|",
        ]
        for row in sorted(entries, key=lambda row: row.get("median_s", float("inf"))):
            name = f"**{row['entry']}**" if row["entry"].startswith("geoloc_fast") else row["entry"]
            if "median_s" not in row:
                lines.append(f"| {name} | {row['outcome']} |  |  |  | {row.get('why', '')[:120]} |")
                continue
            rate = f", {row['pairs'] / row['median_s'] / 1e9:.3g} G pairs/s" if "pairs" in row else ""
            ratio = f"{row['median_s'] / min(times):.2f}x" if times else ""
            error = f"{row['max_error']:.1e}" if "max_error" in row else ""
            peak = f"{row['peak_mb']:.0f} MB" if "peak_mb" in row else ""
            lines.append(
                f"| {name} | {seconds(row['median_s'])}{rate} | {ratio} | {error} | {peak} | {share(row, limits)} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.with_suffix(".md").write_text(render(json.loads(path.read_text())))
