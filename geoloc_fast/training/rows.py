"""An optimiser for networks together with tables of which a step changes only a few rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AdamWithRows"]


class AdamWithRows(torch.optim.AdamW):
    """AdamW; parameters [P, D] of a group with `rows=True` are moved by row-wise Adagrad instead, and their rows are
    brought back to unit length. A row without gradient stays as it is, to the bit; its state is one number.

    Gradients of rows may be dense or sparse.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        every = self.param_groups
        self.param_groups = [group for group in every if not group.get("rows")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = every
        with torch.no_grad():
            for group in every:
                if group.get("rows"):
                    for table in group["params"]:
                        if table.grad is not None:
                            self._move(table, table.grad, group["lr"])
        return loss

    def _move(self, table: Tensor, grad: Tensor, rate: float) -> None:
        state = self.state[table]
        if "sum" not in state:
            state["sum"] = torch.zeros(len(table), device=table.device)
        if grad.is_sparse:
            grad = grad.coalesce()
            there = grad.values().any(1)
            rows, values = grad.indices()[0][there], grad.values()[there]
        else:
            rows = grad.any(1).nonzero()[:, 0]
            values = grad[rows]
        squares = state["sum"][rows] + values.square().mean(1)
        state["sum"][rows] = squares
        table[rows] = F.normalize(table[rows] - rate * values / (squares.sqrt() + 1e-10)[:, None], dim=1)
