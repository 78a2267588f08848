"""Set encoders: context -> code, whatever the order and the number of its points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metasdf.conditioning.base import Encoder, refuse_empty
from metasdf.tasks import Observations


@dataclass(frozen=True)
class SetEncoderConfig:
    """The paper's set encoders have 4 or 9 layers of 256 units (supplement 2.1 and 2.2.2).

    `layers` counts affine maps, first to last, as the supplement does for Phi ("four layers (i.e., two hidden layers)"); how it counts those of
    the encoder is not published.
    """

    layers: int = 4
    width: int = 256

    def __post_init__(self) -> None:
        for name, least in (("layers", 2), ("width", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"SetEncoderConfig.{name} must be at least {least}, got {getattr(self, name)}")


class SetEncoder(Encoder):
    """z = mean over the context of MLP(x || y), a ReLU MLP for each point (conditional neural processes, Garnelo et al. 2018, section 2.2).

    (*B, N, d) and (*B, N, 1) to (*B, code_dim). The last layer is affine, so it commutes with the mean and is applied once, after it; the authors
    do not say whether theirs has a ReLU. Raises ValueError for an empty context.
    """

    def __init__(
        self, in_dim: int, config: SetEncoderConfig | None = None, *, code_dim: int = 256, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config or SetEncoderConfig()
        self.code_dim = code_dim
        self.mlp = relu_mlp([in_dim + 1, *[self.config.width] * (self.config.layers - 1), code_dim], generator=generator)

    def forward(self, context: Observations, *, products: torch.dtype | None = None) -> Float[Tensor, "*B n"]:
        refuse_empty(context)
        h = self.mlp[0](torch.cat((context.x, context.y), -1))  # coordinates keep their precision
        low = products or h.dtype
        for layer in list(self.mlp)[1:-1]:
            h = F.linear(h, layer.weight.to(low), layer.bias.to(low)) if isinstance(layer, nn.Linear) else layer(h.to(low))
        return self.mlp[-1](h.mean(-2, dtype=context.x.dtype))


def relu_mlp(dims: Sequence[int], *, generator: torch.Generator | None = None) -> nn.Sequential:
    """Affine maps dims[0] -> dims[1] -> ..., a ReLU between each two.

    Kaiming normal weights (He et al. 2015; the last layer, which no ReLU follows, with half that variance) and biases uniform in
    +-1/sqrt(inputs), torch's default and that of the authors' code. Biases at zero would put the kink of every first unit at the zero code, where
    the fit of a new code starts: a hypernetwork would give it no gradient.
    """
    layers: list[nn.Module] = []
    for index, (inn, out) in enumerate(pairwise(dims)):
        last = index == len(dims) - 2
        layer = affine(inn, out, gain=1.0 if last else 2.0, generator=generator)
        layers += [layer] if last else [layer, nn.ReLU()]
    return nn.Sequential(*layers)


@torch.no_grad()
def affine(inn: int, out: int, *, gain: float, generator: torch.Generator | None = None) -> nn.Linear:
    """A layer with normal weights of variance gain / inn and biases uniform in +-1 / sqrt(inn)."""
    layer = nn.utils.skip_init(nn.Linear, inn, out, device=torch.get_default_device())
    layer.weight.normal_(0.0, math.sqrt(gain / inn), generator=generator)
    layer.bias.uniform_(-1.0 / math.sqrt(inn), 1.0 / math.sqrt(inn), generator=generator)
    return layer
