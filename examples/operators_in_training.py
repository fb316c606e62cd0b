"""The operators in a training loop of one's own: two small networks learn to match photos to places by azimuth.

    python examples/operators_in_training.py

`azimuth_crop` finds, for every pair, where round the place the photo looks, cuts that window out and lets the gradient
through; `azimuth_match` scores all pairs of the batch for the loss. Prints the loss and how often the right place wins.
"""

from __future__ import annotations

import torch
from torch import nn

from geoloc_fast import azimuth_crop, azimuth_match

PLACES, W, WQ = 32, 16, 5


def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Signals round 32 places, [32, 6, 4, 16], and what a camera of unknown heading sees of each, with noise."""
    place = torch.randn(PLACES, 6, 4, W, generator=generator)
    heading = torch.randint(W, (PLACES,), generator=generator)
    columns = (heading[:, None] + torch.arange(WQ)) % W
    photo = place.gather(3, columns[:, None, None].expand(-1, 6, 4, -1))
    return photo + 0.5 * torch.randn(photo.shape, generator=generator), place


def main(steps: int = 150) -> float:
    """Trains two networks for so many steps; returns the share of photos that find their place."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    see, know = nn.Conv2d(6, 16, 1), nn.Conv2d(6, 16, 1)
    optimizer = torch.optim.Adam([*see.parameters(), *know.parameters()], 1e-2)
    right = 0.0
    for step in range(steps):
        photo, place = batch(generator)
        query, strips = see(photo), know(place)
        pair = azimuth_crop(query, strips, select="gumbel", scale=10.0)
        score = azimuth_match(query, strips).score
        loss = nn.functional.cross_entropy(score / 0.07, torch.arange(PLACES)) + (1 - pair.score).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = float((score.argmax(1) == torch.arange(PLACES)).float().mean())
        if step % 20 == 19:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}, right {100 * right:.0f} %")
    return right


if __name__ == "__main__":
    main()
