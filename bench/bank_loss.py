"""What the loss over a bank of prototypes costs: memory above its inputs, and time beside the matrix products alone.

    python bench/bank_loss.py --rows 1000000 --dim 512 --batch 256

Forward: the scores, one product. Forward and backward: scores, gradient of the queries, gradient of the bank, three
products of the same blocks; the loss makes the scores twice, since it keeps none, and with `--least` from 0 only those
rows of the bank's gradient that matter. Times are the processor's, of all threads. Memory is the process's peak in
one forward and backward, above what it had.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from geoloc_fast.training.bank import bank_log_sum, blocks


def products(query: torch.Tensor, bank: torch.Tensor, backward: bool) -> None:
    """The matrix products alone; what is made of one block goes into the next, as large as the loss has it."""
    for start, stop in blocks(query, len(bank)):
        score = query @ bank[start:stop].T
        if backward:
            score @ bank[start:stop]
            score.T @ query


def step(query: torch.Tensor, bank: torch.Tensor, ignored: torch.Tensor, least: float | None) -> int:
    query.grad = bank.grad = None
    bank_log_sum(query, bank, ignored, 50.0, least=least).sum().backward()
    assert bank.grad is not None
    return int(bank.grad._nnz()) if bank.grad.is_sparse else len(bank)


def status_mib(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    for name, default in (("rows", 1_000_000), ("dim", 512), ("batch", 256), ("repeats", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--least", type=float, default=1e-3, help="as in bank_log_sum; below 0: a dense gradient")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    bank = torch.empty(chosen.rows, chosen.dim)
    for part in bank.split(1 << 16):
        part.copy_(F.normalize(torch.randn(len(part), chosen.dim), dim=1))
    bank.requires_grad_()
    query = F.normalize(torch.randn(chosen.batch, chosen.dim), dim=1).requires_grad_()
    ignored = torch.randint(chosen.rows, (chosen.batch, 16))
    least = chosen.least if chosen.least >= 0 else None
    step(query.detach()[:2].requires_grad_(), bank.detach()[:1000].requires_grad_(), ignored[:2] % 1000, least)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status_mib("VmRSS")
    rows = step(query, bank, ignored, least)
    print(f"{status_mib('VmHWM') - before:.0f} MiB above inputs; gradient of {rows} of {chosen.rows} rows", flush=True)
    if not chosen.repeats:
        return
    query.grad = bank.grad = None
    plain = query.detach(), bank.detach()
    calls = {
        "forward": lambda: bank_log_sum(*plain, ignored, 50.0),
        "one product": lambda: products(*plain, False),
        "forward and backward": lambda: step(query, bank, ignored, least),
        "three products": lambda: products(*plain, True),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(chosen.repeats):
        for name, call in calls.items():
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    for loss, alone in (("forward", "one product"), ("forward and backward", "three products")):
        share = middle[loss] / middle[alone]
        print(f"{loss} {middle[loss]:.2f} s, {alone} {middle[alone]:.2f} s of processor, ratio {share:.2f}")


if __name__ == "__main__":
    main()
