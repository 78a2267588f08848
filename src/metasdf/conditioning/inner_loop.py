"""The inner loop of MetaSDF (Meta-SGD, main paper section 3): phi_{j+1} = phi_j - alpha_j * grad_phi L_inner(phi_j; context)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metasdf.conditioning.base import refuse_empty
from metasdf.conditioning.fused import Step, descend, fused_gradient
from metasdf.fields import FieldSpec, Layer, Params, field, field_vjp, layer_by_layer
from metasdf.heads import Head
from metasdf.tasks import Observations

RateKind = Literal["global", "step", "tensor", "parameter", "parameter_step"]
FEW = 8  # steps whose parameters may all be kept when they are checkpointed; of n more, about 2 sqrt(n) are
RATE_KINDS: tuple[RateKind, ...] = ("global", "step", "tensor", "parameter", "parameter_step")


@dataclass(frozen=True)
class InnerLoopConfig:
    """How the inner loop runs. The defaults are the paper's 2D setting (supplement 2.2.2)."""

    steps: int = 5
    rates: RateKind = "parameter"
    init_rate: float = 1e-1
    constraint: Literal["free", "clip", "softplus"] = "free"  # clip: projected to >= 0 after each optimiser step; softplus: > 0 by form
    extra_steps: Literal["last", "error"] = "last"  # steps beyond the trained ones use the rates of the last trained step, or are refused
    gradient: Literal["fused", "explicit", "autograd"] = "fused"  # the same numbers, from fast to plain
    curvature: Literal["diagonal", "kronecker"] = "diagonal"  # rates alone, or matrices on either side of each gradient too: see Curvature
    pruned: Literal["none", "random", "gradient"] = "none"  # contexts in training: each step sees a part, of the whole or where it errs most
    keep: float = 0.25  # that part
    checkpoint: bool = False  # keep only phi after each step and recompute inside it: O(n + m) memory instead of O(n m)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"InnerLoopConfig.steps must be at least 1, got {self.steps}")
        if self.rates not in RATE_KINDS:
            raise ValueError(f"InnerLoopConfig.rates must be one of {', '.join(RATE_KINDS)}, got {self.rates!r}")
        if self.constraint not in ("free", "clip", "softplus"):
            raise ValueError(f"InnerLoopConfig.constraint must be free, clip or softplus, got {self.constraint!r}")
        if self.extra_steps not in ("last", "error"):
            raise ValueError(f"InnerLoopConfig.extra_steps must be last or error, got {self.extra_steps!r}")
        if self.gradient not in ("fused", "explicit", "autograd"):
            raise ValueError(f"InnerLoopConfig.gradient must be fused, explicit or autograd, got {self.gradient!r}")
        if self.curvature not in ("diagonal", "kronecker"):
            raise ValueError(f"InnerLoopConfig.curvature must be diagonal or kronecker, got {self.curvature!r}")
        if self.pruned not in ("none", "random", "gradient"):
            raise ValueError(f"InnerLoopConfig.pruned must be none, random or gradient, got {self.pruned!r}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"InnerLoopConfig.keep must lie above 0 and at most at 1, got {self.keep}")
        if not self.init_rate > 0:
            raise ValueError(f"InnerLoopConfig.init_rate must be positive, got {self.init_rate}")


class Rates(nn.Module):
    """Learned step sizes alpha. Sharing: one number, one per step, one per tensor, one per parameter, one per parameter and step.

    `rates(j)` gives a Layer for every layer of the field, ready to be multiplied with the gradient at step j (counted from 0).
    """

    def __init__(self, spec: FieldSpec, config: InnerLoopConfig) -> None:
        super().__init__()
        self.config = config
        self.n_layers = len(spec.shapes)
        start = config.init_rate
        if config.constraint == "softplus":
            start = float(torch.tensor(start, dtype=torch.float64).expm1().log())  # inverse of softplus
        steps = (config.steps,) if config.rates in ("step", "parameter_step") else ()
        shapes: list[tuple[int, ...]]
        if config.rates in ("parameter", "parameter_step"):
            shapes = [shape for out, inn in spec.shapes for shape in ((out, inn), (out,))]
        elif config.rates == "tensor":
            shapes = [()] * (2 * self.n_layers)
        else:
            shapes = [()]
        self.raw = nn.ParameterList([nn.Parameter(torch.full((*steps, *shape), start)) for shape in shapes])

    def forward(self, step: int) -> Params:
        return self.sequence(step + 1)[step]

    def sequence(self, steps: int) -> list[Params]:
        """The rates of the first `steps` steps; beyond the trained ones as `extra_steps` says. Raises ValueError where that is 'error'."""
        trained = self.config.steps
        if steps > trained and self.config.extra_steps == "error":
            raise ValueError(f"step {steps} asked of a prior trained with {trained}; "
                             "extra_steps='last' would repeat the rates of the last trained step")  # fmt: skip
        values: list[Tensor] = list(self.raw)
        if self.config.constraint == "softplus":
            values = [nn.functional.softplus(value) for value in values]
        if len(values) == 1:
            values = values * (2 * self.n_layers)
        per_step = self.config.rates in ("step", "parameter_step")
        each = [value.unbind() if per_step else (value,) * trained for value in values]  # one unbind: one gradient for all steps
        layers = [tuple(Layer(w, b) for w, b in zip(v[0::2], v[1::2], strict=True)) for v in zip(*each, strict=True)]
        return layers[:steps] + [layers[-1]] * (steps - trained)

    @torch.no_grad()
    def project(self) -> None:
        if self.config.constraint == "clip":
            for raw in self.raw:
                raw.clamp_(min=0.0)


class Curvature(nn.Module):
    """Learned matrices on either side of every gradient: G -> L G R (Meta-Curvature, Park and Oliva, NeurIPS 2019), shared by all steps.

    Rates scale single numbers; L and R let what one unit learns move its neighbours. The gradient of a bias takes part on the left. Both begin
    as identities, so training starts from plain rates.
    """

    def __init__(self, spec: FieldSpec) -> None:
        super().__init__()
        self.left = nn.ParameterList([nn.Parameter(torch.eye(out)) for out, _ in spec.shapes])
        self.right = nn.ParameterList([nn.Parameter(torch.eye(inn)) for _, inn in spec.shapes])

    def forward(self, grads: Params, *, products: torch.dtype | None = None) -> Params:
        shaped = []
        for (weight, bias), left, right in zip(grads, self.left, self.right, strict=True):
            low = products or weight.dtype
            product = left.to(low) @ (weight.to(low) @ right.to(low))
            shaped.append(Layer(product.to(weight.dtype), bias @ left.mT))
        return tuple(shaped)


def inner_gradient(
    params: Params, context: Observations, spec: FieldSpec, head: Head, *, products: torch.dtype | None = None
) -> Params:
    """grad_params of head.loss on each task's own context, explicit: closed form at the output, then `field_vjp`."""
    out, vjp = field_vjp(params, context.x, spec, products=products)
    return vjp(head.output_grad(out, context.y))


def inner_gradient_autograd(
    params: Params, context: Observations, spec: FieldSpec, head: Head, *, products: torch.dtype | None = None
) -> Params:
    """The same by autograd with a graph of the gradient: the plain twin of `inner_gradient`, and the form of the reference code."""
    batch = context.x.shape[:-2]
    own = [t.expand(*batch, *t.shape[-n:]) for layer in params for t, n in zip(layer, (2, 1), strict=True)]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [t if create_graph and t.requires_grad else t.detach().requires_grad_() for t in own]
        layers = tuple(Layer(w, b) for w, b in zip(own[0::2], own[1::2], strict=True))
        loss = head.loss(field(layers, context.x, spec, products=products), context.y).sum()
        grads = torch.autograd.grad(loss, own, create_graph=create_graph)
    return tuple(Layer(w, b) for w, b in zip(grads[0::2], grads[1::2], strict=True))


def _descend(params: Params, rates: Params, grads: Params) -> Params:
    return tuple(
        Layer(torch.addcmul(p.weight, a.weight, g.weight, value=-1), torch.addcmul(p.bias, a.bias, g.bias, value=-1))
        for p, a, g in zip(params, rates, grads, strict=True)
    )


def inner_loop(
    theta: Params,
    rates: Callable[[int], Params],
    context: Observations,
    *,
    spec: FieldSpec,
    head: Head,
    config: InnerLoopConfig,
    steps: int | None = None,
    second_order: float = 1.0,
    products: torch.dtype | None = None,
    curvature: Curvature | None = None,
    prune: bool = False,
) -> list[Params]:
    """theta, phi_1, ..., phi_k: the parameters before the first step and after each.

    second_order: 1 differentiates through the gradients (MAML, Meta-SGD), 0 treats them as constants and builds no graph inside them
    (first order), values between scale that part of the meta-gradient, so that training can move from one to the other.
    curvature: what shapes each gradient before the rates do.
    prune: let each step see the part of the context that `config.pruned` says; for training, whose steps then cost that part.
    Of the three forms `config.gradient` names, the fused one has no second derivatives and none with respect to the context; for those of
    the context, and for fields that see their coordinates again (`spec.skip`), the explicit one takes its place.
    steps: more than `config.steps` follow `config.extra_steps`; the rates never change silently.
    """
    if not 0.0 <= second_order <= 1.0:
        raise ValueError(f"second_order must lie in [0, 1], got {second_order}")
    if steps is not None and steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    refuse_empty(context)
    whole = context
    fused = config.gradient == "fused" and not (spec.skip or context.x.requires_grad or context.y.requires_grad)
    form = Step(spec, head, products=products, second_order=second_order)
    plain = inner_gradient_autograd if config.gradient == "autograd" else inner_gradient

    def gradient(j: int, params: Params) -> Params:
        context = whole if not prune else pruned(whole, params, j, spec=spec, head=head, config=config)
        if fused:
            return fused_gradient(params, context, form)
        with torch.set_grad_enabled(torch.is_grad_enabled() and second_order > 0.0):
            grads = plain(params, context, spec, head, products=products)
        if 0.0 < second_order < 1.0:
            grads = tuple(Layer(*(second_order * g + (1.0 - second_order) * g.detach() for g in layer)) for layer in grads)
        return grads

    def step(j: int, params: Params) -> Params:
        grads = gradient(j, params)
        if curvature is not None:
            grads = curvature(grads, products=products)
        return (descend if fused else _descend)(params, rates(j), grads)

    path, n = [theta], config.steps if steps is None else steps
    checkpointing = config.checkpoint and torch.is_grad_enabled() and second_order > 0.0
    size = math.isqrt(n - 1) + 1 if checkpointing and n > FEW else 1
    for first in range(0, n, size):
        path += _checkpointed(step, range(first, min(first + size, n)), path[-1]) if checkpointing else [step(first, path[-1])]
    return path


@torch.no_grad()
def pruned(context: Observations, params: Params, j: int, *, spec: FieldSpec, head: Head, config: InnerLoopConfig) -> Observations:
    """The part of the context (*B, N, ...) that step j sees: (*B, keep N, ...).

    random: the next rows, whose order is random already, as MedFuncta does (Friedrich et al. 2025). gradient: the points with the largest gradient in
    the last layer, |dL/dout| |(h, 1)| for its input h (GradNCP, Tack et al., NeurIPS 2023).
    """
    n = context.x.shape[-2]
    m = max(1, round(config.keep * n))
    if config.pruned == "none" or m >= n:
        return context
    if config.pruned == "random":
        index = (torch.arange(m, device=context.x.device) + j * m) % n
        return Observations(context.x[..., index, :], context.y[..., index, :])
    for h, out in layer_by_layer(params, context.x, spec):  # noqa: B007
        pass
    size = head.output_grad(out, context.y).norm(dim=-1) * (h.square().sum(-1) + 1.0).sqrt()
    index = size.topk(m, dim=-1).indices.unsqueeze(-1)
    return Observations(*(t.gather(-2, index.expand(*index.shape[:-1], t.shape[-1])) for t in context))


def _checkpointed(step: Callable[[int, Params], Params], steps: range, params: Params) -> list[Params]:
    """The parameters after each of the steps, keeping only the first input for the backward pass, which computes the steps again, one by one where
    they are several. Explicit gradients need one plain backward, which checkpointing supports."""

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        path = [_layers(tensors)]
        for j in steps:
            path += [step(j, path[-1])] if len(steps) == 1 else _checkpointed(step, range(j, j + 1), path[-1])
        return tuple(t for phi in path[1:] for layer in phi for t in layer)

    flat = [t for layer in params for t in layer]
    out = checkpoint(run, *flat, use_reentrant=False)
    return [_layers(out[k : k + len(flat)]) for k in range(0, len(out), len(flat))]


def _layers(flat: Sequence[Tensor]) -> Params:
    return tuple(Layer(w, b) for w, b in zip(flat[0::2], flat[1::2], strict=True))
