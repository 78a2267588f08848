"""Neural fields as pure functions: `field(params, x, spec)` maps coordinates to outputs, with one parameter set per task or one for all.

`Params` are plain tensors, so a conditioner may produce them in any way: by gradient steps, by a hypernetwork, or by looking up a code.
A tensor without batch dimensions is shared by every task, which is how concatenation (bias per task, weight shared) costs nothing extra.

`field_vjp` adds the explicit vector-Jacobian product with respect to the parameters. It is made of ordinary differentiable operations, so the
gradient of the inner loop is differentiated by one more plain backward pass (no double backward), which checkpointing can wrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


class Layer(NamedTuple):
    """One affine layer: weight (*B, out, in) and bias (*B, out); no B where every task shares the tensor."""

    weight: Tensor
    bias: Tensor


Params = tuple[Layer, ...]


@dataclass(frozen=True)
class FieldSpec:
    """The architecture of Phi. `hidden_layers` counts layers from hidden to hidden, as the paper does: "four layers (i.e., two hidden layers)"."""

    in_dim: int = 2
    out_dim: int = 1
    width: int = 256
    hidden_layers: int = 2
    activation: Literal["relu", "sine"] = "relu"
    w0: float = 30.0  # frequency of the sine, Sitzmann et al. 2020 (SIREN); unused with ReLU
    frequencies: int = 0  # Fourier features: x, sin(2^k pi x), cos(2^k pi x) for k < frequencies; 0 feeds the coordinates themselves
    init: Literal["standard", "spread", "geometric", "uniform"] = "standard"  # see initialise
    skip: tuple[int, ...] = ()  # layers beyond the first, counted from 0, that see the encoded coordinates again, after the hidden features
    narrow: int = 0  # units fewer in the layer before such a one, so that what is put beside them fills its input up (DeepSDF)

    def __post_init__(self) -> None:
        for name, least in (("in_dim", 1), ("out_dim", 1), ("width", 1), ("hidden_layers", 0), ("frequencies", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"FieldSpec.{name} must be at least {least}, got {getattr(self, name)}")
        if self.activation not in ("relu", "sine"):
            raise ValueError(f"FieldSpec.activation must be 'relu' or 'sine', got {self.activation!r}")
        if self.init not in ("standard", "spread", "geometric", "uniform"):
            raise ValueError(f"FieldSpec.init must be 'standard', 'spread', 'geometric' or 'uniform', got {self.init!r}")
        if self.init != "standard" and self.activation != "relu":
            raise ValueError(f"init={self.init!r} is meant for ReLU; use init='standard' with the sine")
        if list(self.skip) != sorted(set(self.skip)) or not all(0 < layer <= self.hidden_layers + 1 for layer in self.skip):
            raise ValueError(f"FieldSpec.skip must be layers from 1 to {self.hidden_layers + 1} in rising order, got {self.skip}")
        if not 0 <= self.narrow < self.width or (self.narrow and not self.skip):
            raise ValueError(f"FieldSpec.narrow must be at least 0 and below the width, and 0 without skip, got {self.narrow}")

    @property
    def encoded_dim(self) -> int:
        return self.in_dim * (1 + 2 * self.frequencies)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of each layer, first to last."""
        outs = [0, *(self.width - self.narrow * (i + 1 in self.skip) for i in range(self.hidden_layers + 1)), self.out_dim]
        return tuple((after, before + self.encoded_dim * self.sees_coordinates(i)) for i, (before, after) in enumerate(pairwise(outs)))

    def sees_coordinates(self, layer: int) -> bool:
        return layer == 0 or layer in self.skip

    @property
    def n_params(self) -> int:
        return sum(out * inn + out for out, inn in self.shapes)


def encode(x: Float[Tensor, "*B d"], spec: FieldSpec) -> Float[Tensor, "*B e"]:
    """Fourier features (Mildenhall et al. 2020): the coordinates, then their sines and cosines at doubling frequencies."""
    if not spec.frequencies:
        return x
    octaves = math.pi * 2.0 ** torch.arange(spec.frequencies, device=x.device, dtype=x.dtype)
    angles = (x.unsqueeze(-1) * octaves).flatten(-2)
    return torch.cat((x, angles.sin(), angles.cos()), -1)


class _BatchedAffine(torch.autograd.Function):
    """h W^T + b for h (B, N, in), W (B, out, in), b (B, out).

    Autograd's own backward returns the gradient of W as a transposed view; every later sum with an ordinary tensor then walks memory
    across its rows. Here all gradients are contiguous. The backward is differentiable like any other; forward mode (jvp) is not provided.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.unsqueeze(-2), h, weight.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        h, weight = ctx.saved_tensors
        return g @ weight if ctx.needs_input_grad[0] else None, g.mT @ h, g.sum(-2)


class _Outer(torch.autograd.Function):
    """delta^T h summed over points: (B, N, out) and (B, N, in) to (B, out, in), with contiguous gradients for the same reason."""

    generate_vmap_rule = True

    @staticmethod
    def forward(delta: Tensor, h: Tensor) -> Tensor:
        return delta.mT @ h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None]:
        delta, h = ctx.saved_tensors
        return h @ g.mT, delta @ g if ctx.needs_input_grad[1] else None


def _affine(h: Tensor, layer: Layer) -> Tensor:
    """h W^T + b for shared or per-task layers."""
    weight, bias = layer
    if weight.dim() == 2 and bias.dim() == 1:
        return F.linear(h, weight, bias)
    if weight.dim() == 3 and h.dim() == 3:
        return _BatchedAffine.apply(h, weight, bias if bias.dim() == 2 else bias.expand(h.shape[0], -1))
    return h @ weight.mT + bias.unsqueeze(-2)


def _activate(z: Tensor, spec: FieldSpec) -> Tensor:
    return z.relu() if spec.activation == "relu" else torch.sin(spec.w0 * z)


@dataclass(frozen=True)
class Dropout:
    """Training with hidden units switched off at random (Srivastava et al. 2014): at each point each with probability p; the others count
    1 / (1 - p). Every task has a seed of its own, so that its draw does not depend on its company, and a batch may be seen in parts.
    """

    p: float
    seeds: Sequence[int]  # in the order of the batch

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"Dropout.p must be at least 0 and below 1, got {self.p}")

    def streams(self, device: torch.device) -> list[torch.Generator]:
        return [torch.Generator(device).manual_seed(seed) for seed in self.seeds]

    def apply(self, h: Tensor, streams: list[torch.Generator]) -> Tensor:
        """h (*B, N, units) with some of its numbers at 0; the draw is the next one of each task's stream."""
        if len(streams) != math.prod(h.shape[:-2]):
            raise ValueError(f"dropout has {len(streams)} seeds for {math.prod(h.shape[:-2])} tasks")
        kept = torch.empty(h.shape, dtype=torch.bool, device=h.device)
        for of_task, stream in zip(kept.reshape(-1, *h.shape[-2:]), streams, strict=True):
            of_task.bernoulli_(1.0 - self.p, generator=stream)
        return h * kept / (1.0 - self.p)


def field(
    params: Params, x: Float[Tensor, "*B N d"], spec: FieldSpec, *, products: torch.dtype | None = None, dropout: Dropout | None = None
) -> Float[Tensor, "*B N c"]:
    """Phi(x; params): an MLP of `spec`, evaluated at N coordinates of each task.

    `products=torch.bfloat16` computes matrix products and activations in that precision; coordinates enter as two such parts, so that they
    keep theirs. Parameters, their gradients and the result have their own dtype again, rounded to what the products gave.
    Raises ValueError where shapes do not fit `spec`, or the seeds of `dropout` the tasks.
    """
    for _, out in layer_by_layer(params, x, spec, products=products, dropout=dropout):  # noqa: B007
        pass
    return out.to(x.dtype)


def field_vjp(
    params: Params, x: Float[Tensor, "*B N d"], spec: FieldSpec, *, products: torch.dtype | None = None
) -> tuple[Float[Tensor, "*B N c"], Callable[[Float[Tensor, "*B N c"]], Params]]:
    """Phi(x; params) and the function g -> sum over points of g . dPhi/dparams, one gradient for each task even where params are shared.

    The gradient keeps the dtype of the parameters. Both results are differentiable with respect to params and x.
    """
    inputs, outputs = zip(*layer_by_layer(params, x, spec, products=products), strict=True)
    last, e = len(params) - 1, spec.encoded_dim

    def vjp(g: Tensor) -> Params:
        grads: list[Layer] = []
        delta = g
        for index in range(last, -1, -1):
            weight, bias = params[index]
            if index < last:
                if spec.activation == "relu":
                    delta = torch.ops.aten.threshold_backward(delta, outputs[index], 0)
                else:
                    delta = delta * (spec.w0 * torch.cos(spec.w0 * outputs[index]))
            h = inputs[index]
            delta = delta.to(h.dtype)
            weight_grad = _Outer.apply(delta, h).to(weight.dtype)
            if h.shape[-1] > weight.shape[-1]:  # the two parts of low-precision coordinates
                weight_grad = torch.cat((weight_grad[..., : -2 * e], weight_grad[..., -2 * e : -e] + weight_grad[..., -e:]), -1)
            grads.append(Layer(weight_grad, delta.sum(-2, dtype=bias.dtype)))
            if index:
                delta = delta @ (weight[..., :-e] if index in spec.skip else weight).to(h.dtype)
        return tuple(reversed(grads))

    return outputs[-1].to(x.dtype), vjp


def layer_by_layer(
    params: Params, x: Tensor, spec: FieldSpec, *, products: torch.dtype | None = None, dropout: Dropout | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """What each layer of `field` reads, (*B, N, in), and gives, (*B, N, out): before the activation (sine), or after it (ReLU: its sign is all that
    the backward pass needs). Nothing is held longer than the caller does."""
    check_shapes(params, x, spec)
    low = products if products is not None and products != x.dtype else None
    streams = dropout.streams(x.device) if dropout else []
    h = coordinates = first_input(x, spec, products=low)
    for index, layer in enumerate(params):
        if low is not None:
            layer = Layer(layer.weight.to(low), layer.bias.to(low))
            if spec.sees_coordinates(index):
                layer = Layer(torch.cat((layer.weight, layer.weight[..., -spec.encoded_dim :]), -1), layer.bias)
        if index in spec.skip:
            h = torch.cat((h, coordinates), -1)
        z = _affine(h, layer)
        if index == len(params) - 1:
            yield h, z
            return
        read, h = h, _activate(z, spec)
        yield read, h if spec.activation == "relu" else z
        if dropout:
            h = dropout.apply(h, streams)


def first_input(x: Tensor, spec: FieldSpec, *, products: torch.dtype | None = None) -> Tensor:
    """What the first layer sees: the encoded coordinates; in lower precision as a sum of two parts side by side, to which its weights are
    applied twice: so coordinates keep 16 significant bits where one bfloat16 would keep 8. Raises ValueError for the sine in low precision."""
    x = encode(x, spec)
    if products is None or products == x.dtype:
        return x
    if spec.activation == "sine":
        raise ValueError("sin(w0 z) needs its argument at full precision: use products=None with the sine")
    high = x.to(products)
    return torch.cat((high, (x - high).to(products)), -1)


def check_shapes(params: Params, x: Tensor, spec: FieldSpec) -> None:
    """Raises ValueError, saying what was expected, where coordinates or parameters do not fit `spec`."""
    if x.dim() < 2 or x.shape[-1] != spec.in_dim:
        raise ValueError(f"coordinates must have shape (*B, N, {spec.in_dim}), got {tuple(x.shape)}")
    if len(params) != len(spec.shapes):
        raise ValueError(f"the field has {len(spec.shapes)} layers, got parameters for {len(params)}")
    for index, (layer, shape) in enumerate(zip(params, spec.shapes, strict=True)):
        if tuple(layer.weight.shape[-2:]) != shape or layer.bias.shape[-1] != shape[0]:
            raise ValueError(f"layer {index}: expected weight (*B, {shape[0]}, {shape[1]}) and bias (*B, {shape[0]}), "
                             f"got {tuple(layer.weight.shape)} and {tuple(layer.bias.shape)}")  # fmt: skip


def initialise(spec: FieldSpec, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Params:
    """Fresh parameters, shared by every task.

    Standard: for ReLU, Kaiming normal weights (He et al. 2015) and zero biases; for the sine, the rule of SIREN (Sitzmann et al. 2020,
    section 3.2). Spread: Kaiming weights, and biases that put the kink of each unit through a random point of the cube [-1/2, 1/2]^d, where
    shapes live: no unit starts dead, or linear, all over it (with zero biases about a tenth of a layer does, and no gradient revives those).
    Geometric: Phi starts near |x| - 1/2, the SDF of a sphere (Atzmon and Lipman 2020, theorem 1); Fourier features start switched off, and
    so do coordinates that enter again. Uniform: weights and biases in +-1/sqrt(inputs), torch's default and DeepSDF's: outputs start within its
    clamp of 0.1, beyond which there is no gradient; after Kaiming weights hardly any do.
    """
    layers = []
    last = len(spec.shapes) - 1
    h = x = encode(torch.rand(4096, spec.in_dim, generator=generator, dtype=dtype) - 0.5, spec) if spec.init == "spread" else torch.empty(0)
    for index, (out, inn) in enumerate(spec.shapes):
        weight, bias = torch.empty(out, inn, dtype=dtype), torch.zeros(out, dtype=dtype)
        if spec.init == "geometric":
            hidden = inn - spec.encoded_dim if index in spec.skip else inn
            if index == last:
                weight.normal_(math.sqrt(math.pi / hidden), 1e-4, generator=generator)
                bias.fill_(-0.5)
            else:
                weight.normal_(0.0, math.sqrt(2.0 / out), generator=generator)
            weight[:, spec.in_dim if index == 0 else hidden :] = 0.0
        elif spec.init == "uniform":
            weight.uniform_(-1.0 / math.sqrt(inn), 1.0 / math.sqrt(inn), generator=generator)
            bias.uniform_(-1.0 / math.sqrt(inn), 1.0 / math.sqrt(inn), generator=generator)
        elif spec.activation == "sine":
            bound = 1.0 / inn if index == 0 else math.sqrt(6.0 / inn) / spec.w0
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-1.0 / math.sqrt(inn), 1.0 / math.sqrt(inn), generator=generator)
        else:
            weight.normal_(0.0, math.sqrt(2.0 / inn), generator=generator)
            if spec.init == "spread" and index < last:
                z = (torch.cat((h, x), -1) if index in spec.skip else h) @ weight.mT
                bias = -z[torch.randint(len(z), (out,), generator=generator), torch.arange(out)]
                h = (z + bias).relu()
        layers.append(Layer(weight, bias))
    return tuple(layers)
