"""Beyond what a conditioner gives: its parameters as the start of a plain fit of the whole network to what was observed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metasdf.conditioning.base import in_turn, refuse_empty
from metasdf.fields import FieldSpec, Layer, Params, field_vjp
from metasdf.heads import Head
from metasdf.tasks import Observations

POINTS = 1024  # that each step sees
RATE_PER_STEP, MAX_RATE = 5e-6, 1e-3  # the more steps, the larger the rate that is best, in 2D and in 3D (docs/method.md)
_INSIDE = 0.999  # of an empty ball, how far its points go: at the border of it anything may be


def rate(steps: int) -> float:
    """The learning rate that so many steps begin with."""
    return min(RATE_PER_STEP * steps, MAX_RATE)


@torch.no_grad()
def refine(
    params: Params, context: Observations, spec: FieldSpec, head: Head, *, steps: int, lr: float | None = None, points: int | None = POINTS,
    bounds: bool = False,
) -> Params:  # fmt: skip
    """Parameters after `steps` steps of Adam on head.loss(context), of all numbers of the field, decaying to nothing by a cosine; a copy.

    lr: at the start; None: `rate(steps)`. points: that each step sees, others each time; None: all of the context.
    bounds: half of these are not observations but points around some, where the field is left alone as long as it keeps to what these say of there
    (`around`); right where the context is of true distances.

    Each task (*B) by itself: Adam goes number by number, and what tasks share becomes each one's own. Not a method of the paper. Where the
    context is bare points it moves the field away from the truth: nothing holds it elsewhere. Raises ValueError for an empty context.
    """
    refuse_empty(context)
    batch = context.x.shape[:-2]
    own = [t.expand(*batch, *t.shape[-n:]).clone() for layer in params for t, n in zip(layer, (2, 1), strict=True)]
    optimiser = torch.optim.Adam(own, lr=rate(steps) if lr is None else lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    layers = tuple(Layer(w, b) for w, b in zip(own[0::2], own[1::2], strict=True))
    part = in_turn(context, points // 2 if points and bounds else points)
    generator = torch.Generator().manual_seed(0)
    for j in range(steps):
        x, s = part(j)
        seen = Bounds(x, s, s)
        if bounds:
            seen = Bounds(*(torch.cat(both, -2) for both in zip(seen, around(part(j + 1), generator=generator), strict=True)))
        out, vjp = field_vjp(layers, seen.x, spec)
        grads = vjp(head.output_grad(out, out[..., :1].clamp(seen.low, seen.high)))
        for t, g in zip(own, (g for layer in grads for g in layer), strict=True):
            t.grad = g
        optimiser.step()
        decay.step()
    for t in own:
        t.grad = None
    return layers


class Bounds(NamedTuple):
    """What is known of the distance at points x (*B, N, d): it lies from low to high (*B, N, 1)."""

    x: Tensor
    low: Tensor
    high: Tensor


def around(context: Observations, *, generator: torch.Generator) -> Bounds:
    """What signed distances say of the points between them. Within r of a point at distance s the distance lies between s - r and s + r, and, for r
    below |s|, on the same side of 0: no surface is that near. One point of each such ball, uniform, or nearest to it in the field's cube. All tasks
    go the same ways, so that none depends on the others."""
    x, s = context
    way = torch.randn(x.shape[-2:], generator=generator).to(x)
    share = torch.rand(s.shape[-2:], generator=generator).to(x) ** (1 / x.shape[-1])
    moved = (x + _INSIDE * share * s.abs() * way / way.norm(dim=-1, keepdim=True)).clamp(-1, 1)
    r = (moved - x).norm(dim=-1, keepdim=True)
    return Bounds(moved, s - r, s + r)
