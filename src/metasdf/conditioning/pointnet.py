"""The set encoder of the paper's 3D level-set baseline: a PointNet of residual blocks, the maximum over the context instead of its mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metasdf.conditioning.base import Encoder, refuse_empty
from metasdf.conditioning.encoders import affine
from metasdf.tasks import Observations


@dataclass(frozen=True)
class ResnetPointNetConfig:
    """5 residual blocks of 512 units (supplement 3.2.2)."""

    blocks: int = 5
    width: int = 512
    values: bool = False  # whether y is read beside x; in level-set contexts it is 0 at every point

    def __post_init__(self) -> None:
        for name in ("blocks", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"ResnetPointNetConfig.{name} must be at least 1, got {getattr(self, name)}")


class ResnetPointNet(Encoder):
    """(*B, N, d) to (*B, code_dim), as the encoder of occupancy networks (Mescheder et al. 2019), which the supplement's words describe.

    Points go through an affine map to twice the width and then through residual blocks; every block but the first reads the features of its
    point beside their maximum over the context. z is affine in the ReLU of the last maximum. Raises ValueError for an empty context.
    """

    def __init__(
        self, in_dim: int, config: ResnetPointNetConfig | None = None, *, code_dim: int = 256, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config or ResnetPointNetConfig()
        self.code_dim = code_dim
        width = self.config.width
        self.first = affine(in_dim + self.config.values, 2 * width, gain=2.0, generator=generator)
        self.blocks = nn.ModuleList([_Block(width, share=1.0 / self.config.blocks, generator=generator) for _ in range(self.config.blocks)])
        self.last = affine(width, code_dim, gain=0.25, generator=generator)  # maxima are large; decoders expect about unit entries

    def forward(self, context: Observations, *, products: torch.dtype | None = None) -> Float[Tensor, "*B n"]:
        refuse_empty(context)
        x = torch.cat(context, -1) if self.config.values else context.x
        h = self.first(x)  # coordinates keep their precision
        h = h.to(products or h.dtype)
        for index, block in enumerate(self.blocks):
            h = block(h, h.amax(-2) if index else None)
        return self.last(h.amax(-2).to(x.dtype).relu())


class _Block(nn.Module):
    """u -> S u + W_2 relu(W_1 relu(u) + b_1) + b_2 for u = h || pooled, 2 width numbers to width.

    Kaiming weights; those of W_2 have `share` of that variance, so that all blocks together add about as much as they pass on (occupancy
    networks start W_2 at 0, which leaves W_1 without a gradient).
    """

    def __init__(self, width: int, *, share: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.inner = affine(2 * width, width, gain=2.0, generator=generator)
        self.outer = affine(width, width, gain=2.0 * share, generator=generator)
        self.shortcut = nn.Parameter(torch.empty(width, 2 * width).normal_(0.0, math.sqrt(0.5 / width), generator=generator))

    def forward(self, h: Tensor, pooled: Tensor | None) -> Tensor:
        inner = _beside(h.relu(), None if pooled is None else pooled.relu(), self.inner.weight, self.inner.bias)
        outer = F.linear(inner.relu(), self.outer.weight.to(h.dtype), self.outer.bias.to(h.dtype))
        return _beside(h, pooled, self.shortcut) + outer


def _beside(h: Tensor, pooled: Tensor | None, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W (h || pooled) + b: what all points of a context share enters as a bias (supplement, section 1, eq. 3), it is not repeated for each."""
    weight, bias = weight.to(h.dtype), None if bias is None else bias.to(h.dtype)
    if pooled is None:
        return F.linear(h, weight, bias)
    own, shared = weight.split(h.shape[-1], -1)
    return F.linear(h, own) + F.linear(pooled, shared, bias).unsqueeze(-2)
