"""What the loss over a bank of prototypes costs: memory above its inputs, and time beside the matrix products alone.

    python bench/bank_loss.py --rows 1000000 --dim 512 --batch 256

Both are forward and backward. The products: scores, gradient of the queries, gradient of the bank, of the same blocks.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
import torch.nn.functional as F

from geoloc_fast.training.bank import bank_log_sum, blocks


def products(query: torch.Tensor, bank: torch.Tensor) -> None:
    """The three matrix products of a pass that keeps nothing, the scores made twice as the backward does."""
    for start, stop in blocks(query, len(bank)):
        score = query @ bank[start:stop].T
        score = query @ bank[start:stop].T
        score @ bank[start:stop]
        score.T @ query


def step(query: torch.Tensor, bank: torch.Tensor, ignored: torch.Tensor, least: float) -> int:
    query.grad = bank.grad = None
    bank_log_sum(query, bank, ignored, 50.0, least=least).sum().backward()
    assert bank.grad is not None
    return int(bank.grad._nnz())


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    for name, default in (("rows", 1_000_000), ("dim", 512), ("batch", 256), ("repeats", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--least", type=float, default=1e-3, help="share of a sum that a row's gradient is kept for")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    bank = torch.empty(chosen.rows, chosen.dim)
    for part in bank.split(1 << 16):
        part.copy_(F.normalize(torch.randn(len(part), chosen.dim), dim=1))
    bank.requires_grad_()
    query = F.normalize(torch.randn(chosen.batch, chosen.dim), dim=1).requires_grad_()
    ignored = torch.randint(chosen.rows, (chosen.batch, 16))
    step(query.detach()[:2].requires_grad_(), bank.detach()[:1000].requires_grad_(), ignored[:2] % 1000, chosen.least)
    before = peak_mib()
    rows = step(query, bank, ignored, chosen.least)
    print(f"{peak_mib() - before:.0f} MiB above inputs; gradient of {rows} of {chosen.rows} rows", flush=True)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(chosen.repeats):
        for call, taken in zip((step, products), times, strict=True):
            began = time.process_time()
            if call is step:
                step(query, bank, ignored, chosen.least)
            else:
                products(query.detach(), bank.detach())
            taken.append(time.process_time() - began)
    loss, alone = (statistics.median(taken) for taken in times)
    print(f"CPU seconds: loss {loss:.2f}, products alone {alone:.2f}, ratio {loss / alone:.2f}")


if __name__ == "__main__":
    main()
