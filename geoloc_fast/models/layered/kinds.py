"""What each part of an image shows: shares of the kinds of the synthetic world, from frozen features.

    features of strides 4 and 8 -> two small convolutions -> softmax: asphalt, marking, grass, roof, tree, ...

The kinds tell places apart where features alone do not: markings and paving look much the same in both, from above and
from the street. The convolutions learn from the renderer, which knows them; the features stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoloc_fast.models.backbones.backbone import reduced

__all__ = ["KindHead"]

_WIDTH = 64
_REACH = 3  # cells to either side that a share depends on


class KindHead(nn.Module):
    """Shares of the kinds in every cell of the finest of two maps, each half as fine as the one before.

    With `horizon` it is told the row as well: of photos and panoramas, whose horizon lies in the middle.
    """

    def __init__(self, channels: Sequence[int], kinds: int, *, horizon: bool) -> None:
        super().__init__()
        self.horizon = horizon
        self.near = nn.Conv2d(sum(channels) + horizon, _WIDTH, 3, padding=1)
        self.around = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=2, dilation=2)
        self.tell = nn.Conv2d(_WIDTH, kinds, 1)

    def logits(self, maps: Sequence[Tensor]) -> Tensor:
        """[B, kinds, H, W] of maps [B, C, H, W] and [B, C, H/2, W/2]."""
        fine, coarse = maps
        parts = [fine, F.interpolate(coarse, size=fine.shape[2:], mode="nearest")]
        if self.horizon:
            row = torch.linspace(-1, 1, fine.shape[2], device=fine.device, dtype=fine.dtype)
            parts.append(row[None, None, :, None].expand(len(fine), 1, -1, fine.shape[3]))
        with reduced(fine):
            x = torch.cat(parts, 1).contiguous(memory_format=torch.channels_last)
            found: Tensor = self.tell(F.relu(self.around(F.relu(self.near(x)))))
        return found.float()

    def forward(self, maps: Sequence[Tensor], *, circular: bool = False) -> Tensor:
        """[B, kinds, H, W], which add up to 1; `circular` of a full turn, which goes on at its end."""
        if not circular:
            return self.logits(maps).softmax(1)
        width = maps[0].shape[3]
        around = [
            torch.cat((x[..., -beyond:], x, x[..., :beyond]), -1)
            for x, beyond in zip(maps, (2 * _REACH, _REACH), strict=True)
        ]
        return self.logits(around)[..., 2 * _REACH : 2 * _REACH + width].softmax(1)
