"""Decoders: code z -> parameters of the field. Concatenation is the smallest of them (supplement, section 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metasdf.conditioning.base import Decoder
from metasdf.conditioning.encoders import relu_mlp
from metasdf.fields import FieldSpec, Layer, Params, initialise


@dataclass(frozen=True)
class BiasHypernetworkConfig:
    """Where the code enters: at the input and at the third layer (supplement 2.2.2)."""

    layers: tuple[int, ...] = (0, 2)  # of Phi, counted from 0
    weight_norm: bool = False  # each row of eq. 2's W is a length times a direction, code columns included; not in the last layer (DeepSDF's code)

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"BiasHypernetworkConfig.layers must be layers of the field in rising order, got {self.layers}")


class BiasHypernetwork(Decoder):
    """Conditioning by concatenation: W (h || z) + b = W_hypo h + (W_hyper z + b), supplement section 1, eq. 2 and 3.

    All tasks share every weight; the layers of `config.layers` have a bias for each task, (*B, out). Nothing is repeated for every point.
    For the zero code the field is a fresh one (`fields.initialise`). W_hyper is normal with variance 1 / code_dim (the sine: over w0^2 too), so a
    code of unit entries moves each conditional bias by about 1. Kaiming's rule over all k + n inputs of eq. 2 would make the coordinates' own
    weights smaller by sqrt(k / (k + n)): with 256 numbers of code the field would start almost constant. The paper does not publish its own.
    With `weight_norm` (Salimans and Kingma 2016) a row of (W_hypo || W_hyper) is g v / |v|; it starts with g = |v|, as the same field.
    Raises ValueError where the field has no such layer.
    """

    def __init__(
        self, spec: FieldSpec, config: BiasHypernetworkConfig | None = None, *, code_dim: int = 256, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.spec, self.code_dim = spec, code_dim
        self.config = config or BiasHypernetworkConfig()
        if self.config.layers[-1] >= len(spec.shapes):
            raise ValueError(f"the field has layers 0 to {len(spec.shapes) - 1}, the code is to enter at {self.config.layers}")
        self.hypo = nn.ParameterList([nn.Parameter(t) for layer in initialise(spec, generator=generator) for t in layer])
        std = 1.0 / math.sqrt(code_dim) / (spec.w0 if spec.activation == "sine" else 1.0)
        self.hyper = nn.ParameterList(
            [nn.Parameter(torch.empty(spec.shapes[i][0], code_dim).normal_(0.0, std, generator=generator)) for i in self.config.layers]
        )
        normalised = range(len(spec.shapes) - 1 if self.config.weight_norm else 0)
        self.lengths = nn.ParameterList([nn.Parameter(torch.cat(self._matrices(i), 1).detach().norm(dim=1)) for i in normalised])

    def forward(self, z: Float[Tensor, "*B n"]) -> Params:
        layers: list[Layer] = []
        for index in range(len(self.spec.shapes)):
            matrices, bias = self._matrices(index), self.hypo[2 * index + 1]
            if index < len(self.lengths):
                scale = self.lengths[index] / torch.cat(matrices, 1).norm(dim=1)
                matrices = [scale.unsqueeze(1) * matrix for matrix in matrices]
            weight, *hyper = matrices
            layers.append(Layer(weight, F.linear(z, hyper[0], bias) if hyper else bias))
        return tuple(layers)

    def _matrices(self, index: int) -> list[Tensor]:
        """W_hypo of a layer, and W_hyper where the code enters."""
        hyper = [w for i, w in zip(self.config.layers, self.hyper, strict=True) if i == index]
        return [self.hypo[2 * index], *hyper]


@dataclass(frozen=True)
class HypernetworkConfig:
    """ReLU MLPs of three layers (supplement 2.2.2), counted as affine maps; their width is that of "all models"."""

    layers: int = 3
    width: int = 256
    deviation: float = 0.1  # of the fields at the start from each other, relative to their weights; the authors' code has the same factor

    def __post_init__(self) -> None:
        for name, least in (("layers", 1), ("width", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"HypernetworkConfig.{name} must be at least {least}, got {getattr(self, name)}")
        if not self.deviation > 0:
            raise ValueError(f"HypernetworkConfig.deviation must be positive, got {self.deviation}")


class Hypernetwork(Decoder):
    """One ReLU MLP for each layer of Phi maps z to that layer's weight and bias (eq. 1), (*B, out, in) and (*B, out): nothing is shared.

    One MLP a layer, for weight and bias together, is what the supplement's [4] has (scene representation networks, Sitzmann et al. 2019); the
    authors' notebook has one for each of the two. Their initialisation, plain Kaiming with the last layer times 0.1, gives fields whose weights
    have nothing to do with their own fan-in (Chang, Flokas and Lipson, ICLR 2020, say why that is bad). Here the last layer's bias is a fresh
    field (`fields.initialise`), as in Bias-HyperInit (Beck et al., CoRL 2022), and its weights are small rather than zero, so that a gradient
    reaches the code at once: for hidden features of unit size the fields of different codes differ by `deviation` times the weights' own size.
    """

    def __init__(
        self, spec: FieldSpec, config: HypernetworkConfig | None = None, *, code_dim: int = 256, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.spec, self.code_dim = spec, code_dim
        self.config = config or HypernetworkConfig()
        hidden = [code_dim, *[self.config.width] * (self.config.layers - 1)]
        self.nets = nn.ModuleList()
        for weight, bias in initialise(spec, generator=generator):
            net = relu_mlp([*hidden, weight.numel() + bias.numel()], generator=generator)
            last = net[-1]
            assert isinstance(last, nn.Linear)
            with torch.no_grad():
                last.weight.mul_(self.config.deviation * weight.square().mean().sqrt())
                last.bias.copy_(torch.cat((weight.flatten(), bias)))
            self.nets.append(net)

    def forward(self, z: Float[Tensor, "*B n"]) -> Params:
        flat = [net(z) for net in self.nets]
        return tuple(
            Layer(p[..., : out * inn].unflatten(-1, (out, inn)), p[..., out * inn :]) for p, (out, inn) in zip(flat, self.spec.shapes, strict=True)
        )
