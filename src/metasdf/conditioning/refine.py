"""Beyond what a conditioner gives: its parameters as the start of a plain fit of the whole network to what was observed."""

from __future__ import annotations

import torch

from metasdf.conditioning.base import in_turn, refuse_empty
from metasdf.conditioning.inner_loop import inner_gradient
from metasdf.fields import FieldSpec, Layer, Params
from metasdf.heads import Head
from metasdf.tasks import Observations

POINTS = 1024  # of the context that each step sees, others each time
RATE_PER_STEP, MAX_RATE = 5e-6, 1e-3  # the more steps, the larger the rate that is best, in 2D and in 3D (docs/method.md)


def rate(steps: int) -> float:
    """The learning rate that so many steps begin with."""
    return min(RATE_PER_STEP * steps, MAX_RATE)


@torch.no_grad()
def refine(
    params: Params, context: Observations, spec: FieldSpec, head: Head, *, steps: int, lr: float | None = None, points: int | None = POINTS
) -> Params:
    """Parameters after `steps` steps of Adam on head.loss(context), of all numbers of the field, decaying to nothing by a cosine; a copy.

    lr: at the start; None: `rate(steps)`. points: of the context that each step sees, others each time; None: all.

    Each task (*B) by itself: Adam goes number by number, and what tasks share becomes each one's own. Not a method of the paper. Where the
    context is bare points it moves the field away from the truth: nothing holds it elsewhere. Raises ValueError for an empty context.
    """
    refuse_empty(context)
    batch = context.x.shape[:-2]
    own = [t.expand(*batch, *t.shape[-n:]).clone() for layer in params for t, n in zip(layer, (2, 1), strict=True)]
    optimiser = torch.optim.Adam(own, lr=rate(steps) if lr is None else lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    layers = tuple(Layer(w, b) for w, b in zip(own[0::2], own[1::2], strict=True))
    part = in_turn(context, points)
    for j in range(steps):
        grads = inner_gradient(layers, part(j), spec, head)
        for t, g in zip(own, (g for layer in grads for g in layer), strict=True):
            t.grad = g
        optimiser.step()
        decay.step()
    for t in own:
        t.grad = None
    return layers
