"""The gradient of an inner step and its derivative in closed form, without a graph: the fast form of `inner_loop`.

Forwards, g = grad L(phi). Backwards, with u = dF/dg of whatever F comes later, dF/dphi = H u, where H is the Hessian of L at phi. Pearlmutter's
R-operator (Neural Computation 6, 1994) gives that product as a tangent of the forward and backward pass: two products for each one of theirs,
nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metasdf.fields import FieldSpec, Layer, Params, check_shapes, first_input
from metasdf.heads import Head
from metasdf.tasks import Observations

_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(frozen=True)
class Step:
    """What an inner step needs beside tensors."""

    spec: FieldSpec
    head: Head
    products: torch.dtype | None = None
    second_order: float = 1.0


def fused_gradient(params: Params, context: Observations, step: Step) -> Params:
    """grad of head.loss on each task's context with respect to params, differentiable once.

    Raises ValueError where shapes do not fit the field, and for fields that see their coordinates again.
    """
    if step.spec.skip:
        raise ValueError("the fused form knows no layers that see the coordinates again (FieldSpec.skip): use the explicit one")
    check_shapes(params, context.x, step.spec)
    return _layered(_Gradient.apply(step, context, *step.head.parameters(), *_flat(params)))


def descend(params: Params, rates: Params, grads: Params) -> Params:
    """phi - alpha * g."""
    pairs = zip(_flat(params), _flat(rates), _flat(grads), strict=True)
    return _layered([_Descent.apply(p, a, g) for p, a, g in pairs])


class _Gradient(torch.autograd.Function):
    """From the head's parameters, which it may learn, and those of the field."""

    @staticmethod
    def forward(ctx: Any, step: Step, context: Observations, *tensors: Tensor) -> tuple[Tensor, ...]:
        flat = tensors[_learned(step.head) :]
        passes = _Pass(step, context, layers=len(flat) // 2)
        passes.run(flat)
        gradient = tuple(passes.gradient)
        if not step.second_order:
            ctx.mark_non_differentiable(*gradient)
        elif any(ctx.needs_input_grad):
            ctx.step, ctx.context, ctx.shapes = step, context, [p.shape for p in flat]
            ctx.save_for_backward(*passes.kept)
        return gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor | None, ...]:
        passes = _Pass(ctx.step, ctx.context, layers=len(us) // 2)
        passes.kept = list(ctx.saved_tensors)
        share = ctx.step.second_order
        product = [None if h is None else h if share == 1.0 else share * h for h in passes.hessian_product(us)]
        learned = [share * h for h in passes.head_product()] if _learned(ctx.step.head) else []
        return None, None, *learned, *(None if h is None else h.sum_to_size(shape) for h, shape in zip(product, ctx.shapes, strict=True))


class _Descent(torch.autograd.Function):
    """p - a * g in one pass each way; autograd's own would multiply by -1 twice more."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, a: Tensor, g: Tensor) -> Tensor:
        ctx.save_for_backward(a, g)
        ctx.shape = p.shape
        return torch.addcmul(p, a, g, value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        a, g = ctx.saved_tensors
        _, to_rate, to_gradient = ctx.needs_input_grad
        return v.sum_to_size(ctx.shape), (v * g).sum_to_size(a.shape).neg_() if to_rate else None, v * -a if to_gradient else None


class _Pass:
    """Forward and backward pass of each task's loss at phi; every tensor is (B, rows, columns), B the tasks."""

    weights: list[Tensor]
    inputs: list[Tensor]  # of each layer
    slopes: list[Tensor]  # activation'(z) of each hidden layer; for the ReLU a mask of integers, 0 or 1
    deltas: list[Tensor]  # dL/dz of each layer
    backs: list[Tensor]  # dL/dh of each hidden layer, for the sine, whose slope has a slope
    gradient: list[Tensor]  # dL/dphi, weights and biases in turn, (*B, ...)
    out: Tensor
    r_out: Tensor  # the tangent of the outputs

    def __init__(self, step: Step, context: Observations, *, layers: int) -> None:
        self.spec, self.head, self.context = step.spec, step.head, context
        self.relu, self.layers = step.spec.activation == "relu", layers
        self.full = context.x.dtype
        self.low = step.products or self.full

    @property
    def kept(self) -> list[Tensor]:
        """All that `hessian_product` needs of `run`."""
        return [*self.weights, *self.inputs, *self.slopes, *self.deltas, *self.backs, self.out]

    @kept.setter
    def kept(self, tensors: list[Tensor]) -> None:
        rest = iter(tensors)
        n = self.layers
        sizes = n, n, n - 1, n, 0 if self.relu else n - 1
        self.weights, self.inputs, self.slopes, self.deltas, self.backs = (list(islice(rest, size)) for size in sizes)
        (self.out,) = rest

    def run(self, params: Sequence[Tensor]) -> None:
        x = _three(first_input(self.context.x, self.spec, products=self.low))
        self.weights, biases = self._layers(params, tasks=len(x))
        self.inputs, self.slopes = [x], []
        for weight, bias in zip(self.weights, biases, strict=True):
            z = torch.baddbmm(bias, self.inputs[-1], weight.mT)
            if len(self.inputs) < self.layers:
                self.inputs.append(self._activate(z))
        self.out = z.to(self.full)
        delta = self.head.output_grad(self.out, _three(self.context.y)).to(self.low)
        self.deltas, self.backs = [delta], []
        for index in range(self.layers - 1, 0, -1):
            back = torch.bmm(delta, self.weights[index])
            if not self.relu:
                self.backs.insert(0, back)
            delta = self._slope(back, index - 1)
            self.deltas.insert(0, delta)
        self.gradient = self._gradients([torch.bmm(d.mT, h) for d, h in zip(self.deltas, self.inputs, strict=True)], self.deltas)

    def hessian_product(self, direction: Sequence[Tensor]) -> list[Tensor | None]:
        """H u: the tangent R of the passes above as phi moves along u. None where a part is zero throughout."""
        turns, shifts = self._layers(direction, tasks=len(self.out))  # R of weights and biases
        r_h: Tensor | None = None  # the coordinates do not move
        r_inputs, r_zs = [r_h], []
        for index, (turn, shift) in enumerate(zip(turns, shifts, strict=True)):
            r_z = torch.baddbmm(shift, self.inputs[index], turn.mT)
            if r_h is not None:
                r_z.baddbmm_(r_h, self.weights[index].mT)
            if index < self.layers - 1:
                r_zs.append(r_z)
                r_h = self._slope(r_z, index)
                r_inputs.append(r_h)
        self.r_out = r_z.to(self.full)
        r_out = self.head.output_grad_tangent(self.out, _three(self.context.y), self.r_out)
        r_delta = None if r_out is None else r_out.to(self.low)  # none where the loss is piecewise linear
        r_weights: list[Tensor | None] = []
        r_deltas: list[Tensor | None] = []
        for index in range(self.layers - 1, -1, -1):
            r_h, delta = r_inputs[index], self.deltas[index]
            r_weight = None if r_delta is None else torch.bmm(r_delta.mT, self.inputs[index])
            if r_h is not None:
                r_weight = torch.bmm(delta.mT, r_h) if r_weight is None else r_weight.baddbmm_(delta.mT, r_h)
            r_weights.append(r_weight)
            r_deltas.append(r_delta)
            if index:
                r_back = torch.bmm(delta, turns[index])
                if r_delta is not None:
                    r_back.baddbmm_(r_delta, self.weights[index])
                r_delta = self._slope(r_back, index - 1)
                if not self.relu:  # the slope has a tangent too: sin'' = -sin
                    r_delta.addcmul_(self.backs[index - 1] * self.inputs[index], r_zs[index - 1], value=-(self.spec.w0**2))
        return self._gradients(r_weights[::-1], r_deltas[::-1])

    def head_product(self) -> tuple[Tensor, ...]:
        """After `hessian_product`: u times the derivative of g in the head's parameters. <u, g> is the derivative of the loss along u, which is
        that in the outputs times their tangent: all that depends on the head."""
        with torch.enable_grad():
            along = (self.head.output_grad(self.out, _three(self.context.y)) * self.r_out).sum()
            return torch.autograd.grad(along, list(self.head.parameters()))

    def _layers(self, flat: Sequence[Tensor], tasks: int) -> tuple[list[Tensor], list[Tensor]]:
        """Weights (B, out, in) and biases (B, 1, out) in the precision of the products."""
        weights = [_three(w.to(self.low)).expand(tasks, -1, -1) for w in flat[0::2]]
        if self.low != self.full:  # the coordinates come as two low-precision parts, see first_input
            weights[0] = torch.cat((weights[0], weights[0]), -1)
        return weights, [_three(b.to(self.low).unsqueeze(-2)) for b in flat[1::2]]

    def _activate(self, z: Tensor) -> Tensor:
        """h of a hidden layer, in place of its z; its slope is kept."""
        if self.relu:  # floats are ordered as the integers of the same bits, which cost a fraction of the time
            bits = z.view(_INTEGERS[z.dtype]).clamp_(min=0)
            self.slopes.append(bits.clamp(max=1))
            return z
        z *= self.spec.w0
        self.slopes.append(z.cos().mul_(self.spec.w0))
        return z.sin_()

    def _slope(self, t: Tensor, hidden: int) -> Tensor:
        """t times the slope of a hidden layer; with the ReLU in place."""
        if self.relu:
            t.view(_INTEGERS[t.dtype]).mul_(self.slopes[hidden])
            return t
        return t * self.slopes[hidden]

    def _gradients(self, weights: Sequence[Tensor | None], deltas: Sequence[Tensor | None]) -> list[Any]:
        """Gradients of weights and biases in turn, in the precision of the parameters and under the batch dimensions of the context."""
        flat: list[Tensor | None] = []
        for weight, delta in zip(weights, deltas, strict=True):
            flat += [None if weight is None else weight.to(self.full), None if delta is None else delta.sum(-2).to(self.full)]
        if self.low != self.full and flat[0] is not None:
            e = self.spec.encoded_dim
            flat[0] = flat[0][..., :e] + flat[0][..., e:]
        batch = self.context.x.shape[:-2]
        return [None if t is None else t.reshape(*batch, *t.shape[1:]) for t in flat]


def _learned(head: Head) -> int:
    return len(list(head.parameters()))


def _three(t: Tensor) -> Tensor:
    """(*B, rows, columns) with one batch dimension; 1 where there was none."""
    return t.reshape(-1, *t.shape[-2:])


def _flat(layers: Params) -> list[Tensor]:
    return [t for layer in layers for t in layer]


def _layered(flat: Any) -> Params:
    return tuple(Layer(w, b) for w, b in zip(flat[0::2], flat[1::2], strict=True))
