"""SALAD: tokens of an image gathered into one code by optimal transport (Izquierdo and Civera, CVPR 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Salad", "transport"]


def transport(scores: Tensor, dustbin: Tensor | float, *, iterations: int = 3) -> Tensor:
    """How much of each token goes to each cluster: [B, n, m] from scores [B, n, m], in float32.

    Sinkhorn's iterations in the log domain towards a plan in which every token gives 1, every cluster takes 1, and a
    dustbin, whose score is the same for all tokens, takes the n - m that are left. Its column is dropped.
    """
    tokens, clusters = scores.shape[-2:]
    if tokens <= clusters:
        raise ValueError(f"scores: expected more tokens than clusters, got {tokens} tokens and {clusters} clusters")
    logits = scores.float()
    logits = torch.cat([logits, torch.zeros_like(logits[..., :1]) + dustbin], dim=-1)
    taken = logits.new_zeros(clusters + 1)
    taken[-1] = float(torch.log(torch.tensor(float(tokens - clusters))))
    for _ in range(iterations):
        logits = logits - logits.logsumexp(-2, keepdim=True) + taken  # clusters take their part
        logits = logits - logits.logsumexp(-1, keepdim=True)  # tokens give theirs
    return logits[..., :-1].exp()


class Salad(nn.Module):
    """Tokens [B, n, channels] to codes [B, clusters * cluster_dim + global_dim] of unit length.

    A small network scores every token for every cluster, another reduces it, the transport plan gathers the reduced
    tokens by cluster; a third reduces the mean token, which stands for the scene as a whole. Each cluster's part is
    normalised by itself, so that one that many tokens go to does not outweigh the others.
    """

    def __init__(
        self, channels: int, *, clusters: int = 14, cluster_dim: int = 16, global_dim: int = 32, hidden: int = 256
    ) -> None:
        super().__init__()

        def network(out: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, out))

        self.norm = nn.BatchNorm1d(channels)
        self.score, self.reduce = network(clusters), network(cluster_dim)
        self.scene = network(global_dim) if global_dim else None
        self.dustbin = nn.Parameter(torch.ones(()))
        self.dim = clusters * cluster_dim + global_dim

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens.float().transpose(1, 2)).transpose(1, 2)
        plan = transport(self.score(tokens), self.dustbin)
        gathered = F.normalize(plan.transpose(1, 2) @ self.reduce(tokens).float(), dim=-1).flatten(1)
        if self.scene is None:
            return F.normalize(gathered, dim=-1)
        scene = F.normalize(self.scene(tokens.mean(1)).float(), dim=-1)
        return F.normalize(torch.cat([scene, gathered], dim=-1), dim=-1)
