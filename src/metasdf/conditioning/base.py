"""The one interface of every method in the paper: a conditioner maps a context set to the parameters of a field."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metasdf.errors import UsageError
from metasdf.fields import FieldSpec, Params
from metasdf.tasks import Observations, TaskBatch


class Conditioner(nn.Module):
    """Context -> Params. `forward` serves evaluation and reconstruction; `training_params` may use the identity of the tasks."""

    spec: FieldSpec
    second_order: float = 1.0  # share of the second-order part in the meta-gradient, for methods with inner steps; the trainer anneals it
    pruning: bool = False  # whether inner steps see the part of the context that their configuration says; the trainer sets it
    products: torch.dtype | None = None  # precision of the products between hidden layers, None: float32; see fields.field

    @property
    def inner_steps(self) -> int | None:
        """Inner steps as trained; None for methods that learn none."""
        return None

    def forward(self, context: Observations) -> Params:
        raise NotImplementedError

    def trajectory(self, context: Observations, *, steps: int | None = None) -> list[Params]:
        """Params before the first inner step and after each; of methods without such steps, the result alone.

        Raises UsageError where `steps` are asked of a method that takes none.
        """
        if steps is not None:
            raise UsageError(f"{type(self).__name__} has no inner steps", fix="leave steps out")
        return [self(context)]

    def training_params(self, batch: TaskBatch) -> tuple[Params, Tensor]:
        """Parameters for the batch and the prior's own loss (zero unless a method has one, such as a penalty on codes).

        That loss is a mean over the batch's tasks, or does not depend on them: training may see a batch in parts.
        """
        return self(batch.context), batch.query.y.new_zeros(())

    def project(self) -> None:
        """Called after each optimiser step, for constraints that are kept by projection."""


class Encoder(nn.Module):
    """Context -> code z, one for each task."""

    code_dim: int

    def forward(self, context: Observations, *, products: torch.dtype | None = None) -> Float[Tensor, "*B n"]:
        raise NotImplementedError


class Decoder(nn.Module):
    """Code z -> Params. What does not depend on z is returned without batch dimensions: all tasks share it."""

    spec: FieldSpec
    code_dim: int

    def forward(self, z: Float[Tensor, "*B n"]) -> Params:
        raise NotImplementedError


class EncodeDecode(Conditioner):
    """decoder(encoder(context)): the conditional neural process of the paper, and every other pair of the two."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        if encoder.code_dim != decoder.code_dim:
            raise ValueError(f"the encoder gives codes of {encoder.code_dim} numbers, the decoder reads {decoder.code_dim}")
        self.spec = decoder.spec
        self.encoder, self.decoder = encoder, decoder

    def forward(self, context: Observations) -> Params:
        return self.decoder(self.encoder(context, products=self.products))


def refuse_empty(context: Observations) -> None:
    """Raises ValueError for a context without points: its mean is not a number, and no step comes of it."""
    if not context.x.shape[-2]:
        raise ValueError("the context is empty, there is nothing to adapt to")


def in_turn(context: Observations, points: int | None) -> Callable[[int], Observations]:
    """What step j of a fit sees: so many points of the context, other ones each time until all had their turn, in an order that is always the same;
    all of them where there are no more, or for None."""
    n = context.x.shape[-2]
    if points is None or points >= n:
        return lambda j: context
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(context.x.device)

    def part(j: int) -> Observations:
        rows = order[torch.arange(j * points, (j + 1) * points, device=order.device) % n]
        return Observations(context.x[..., rows, :], context.y[..., rows, :])

    return part
