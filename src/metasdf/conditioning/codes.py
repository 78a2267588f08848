"""The auto-decoder: a code for each training shape, learned with the decoder; for a new shape, a code fitted to its context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metasdf.conditioning.base import Conditioner, Decoder, in_turn, refuse_empty
from metasdf.fields import Params, field
from metasdf.heads import Distance, Head
from metasdf.tasks import Observations, TaskBatch


@dataclass(frozen=True)
class AutoDecoderConfig:
    """How codes start, what keeps them small, and how a new one is fitted. The paper publishes none of it for 2D; values are those of DeepSDF's
    code (Park et al. 2019), which the 3D experiments use. Its warm-up of the penalty over 100 epochs and its bound on a code's norm are left out.
    """

    init_norm: float = 1.0  # codes start as N(0, init_norm^2 / code_dim); the authors' 2D notebook: 0.016, a standard deviation of 1e-3
    prior_weight: float = 1e-4  # of a code's mean square, in training and in fitting; the authors' 2D notebook has no penalty
    steps: int = 800  # of Adam on a new code, from zero
    lr: float = 5e-3
    decay: float = 0.1  # factor on lr after half of the steps
    patience: int = 0  # a task stops after so many steps in a row without improvement; 0: never
    tolerance: float = 1e-3  # what counts as one, relative to the task's best loss
    points: int | None = None  # of the context that each step of a fit sees, other ones each time until all had their turn; None: all

    def __post_init__(self) -> None:
        for name, fine, rule in (
            ("init_norm", self.init_norm > 0, "positive"),
            ("prior_weight", self.prior_weight >= 0, "at least 0"),
            ("steps", self.steps >= 1, "at least 1"),
            ("lr", self.lr > 0, "positive"),
            ("decay", 0 < self.decay <= 1, "above 0 and at most 1"),
            ("patience", self.patience >= 0, "at least 0"),
            ("tolerance", 0 <= self.tolerance < 1, "at least 0 and below 1"),
            ("points", self.points is None or self.points >= 1, "none, or at least 1"),
        ):
            if not fine:
                raise ValueError(f"AutoDecoderConfig.{name} must be {rule}, got {getattr(self, name)}")


CODES = "codes"  # the parameter that belongs to the shapes of one training, not to the prior
BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's usual ones (Kingma and Ba 2015)


class AutoDecoder(Conditioner):
    """Params = decoder(z). In training z is the row of `codes` (n_tasks, code_dim) that `batch.task` names; `forward` fits a new z to the context.

    n_tasks: one more than the largest index of a training task. With 0 there are no codes, which is all that fitting needs. Their gradient is a
    sparse tensor: a step touches the rows of its tasks alone.
    """

    def __init__(
        self, decoder: Decoder, config: AutoDecoderConfig | None = None, *, n_tasks: int, head: Head | None = None,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spec, self.decoder = decoder.spec, decoder
        self.config = config or AutoDecoderConfig()
        self.head = head or Distance("squared")
        check_head(self.head, decoder)
        std = self.config.init_norm / math.sqrt(decoder.code_dim)
        start = torch.empty(n_tasks, decoder.code_dim).normal_(0.0, std, generator=generator)
        self.codes = nn.Parameter(start) if n_tasks else None

    def training_params(self, batch: TaskBatch) -> tuple[Params, Tensor]:
        if self.codes is None:
            raise ValueError("this auto-decoder has no codes, it was made for fitting alone: n_tasks=0")
        z = F.embedding(batch.task, self.codes, sparse=True)
        return self.decoder(z), self.penalty(z).mean()

    def penalty(self, z: Float[Tensor, "*B n"]) -> Float[Tensor, "*B"]:
        """prior_weight * mean of z^2 over the code: minus the logarithm of a Gaussian prior, up to a constant."""
        return self.config.prior_weight * z.square().mean(-1)

    def forward(self, context: Observations, *, steps: int | None = None) -> Params:
        return self.decoder(self.fit(context, steps=steps))

    def trajectory(self, context: Observations, *, steps: int | None = None) -> list[Params]:
        """The result alone: hundreds of fields on the way to it would fill the memory. steps: of Adam."""
        return [self(context, steps=steps)]

    def fit(self, context: Observations, *, steps: int | None = None) -> Float[Tensor, "*B n"]:
        """The code that `fitting` ends with, without a graph."""
        for z in self.fitting(context, steps=steps):  # noqa: B007
            pass
        return z

    def fitting(self, context: Observations, *, steps: int | None = None) -> Iterator[Float[Tensor, "*B n"]]:
        """z_0 = 0, z_1, ...: Adam on head.loss(context) + penalty(z), for each task by itself. The decoder stays as it is.

        The loss is summed over tasks and Adam works number by number, so a task's code does not depend on its company; nor does an early stop,
        which holds the code of that task alone. Raises ValueError for an empty context or negative steps.
        """
        refuse_empty(context)
        steps = self.config.steps if steps is None else steps
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        part = in_turn(context, self.config.points)
        z = context.x.new_zeros(*context.x.shape[:-2], self.decoder.code_dim)
        mean, square = torch.zeros_like(z), torch.zeros_like(z)
        best = z.new_full(z.shape[:-1], math.inf)
        waited, running = torch.zeros_like(best), torch.ones_like(best, dtype=torch.bool)
        yield z
        for j in range(steps):
            loss, g = self._loss_and_gradient(z, part(j))
            if self.config.patience:
                better = loss < (1.0 - self.config.tolerance) * best
                best, waited = torch.where(better, loss, best), torch.where(better, 0.0, waited + 1.0)
                running = running & (waited < self.config.patience)
                if not running.any():
                    return
            mean, square = mean.lerp(g, 1.0 - BETAS[0]), square.lerp(g * g, 1.0 - BETAS[1])
            scale = (square / (1.0 - BETAS[1] ** (j + 1))).sqrt() + EPS
            lr = self.config.lr * (self.config.decay if 2 * j >= steps else 1.0) / (1.0 - BETAS[0] ** (j + 1))
            z = torch.where(running.unsqueeze(-1), z - lr * mean / scale, z)
            yield z

    def _loss_and_gradient(self, z: Tensor, context: Observations) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B n"]]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            loss = self.head.loss(field(self.decoder(z), context.x, self.spec, products=self.products), context.y) + self.penalty(z)
            (g,) = torch.autograd.grad(loss.sum(), z)
        return loss.detach(), g


def check_head(head: Head, decoder: Decoder) -> None:
    """Raises ValueError where the head reads other outputs than the decoder's field has."""
    if head.channels != decoder.spec.out_dim:
        raise ValueError(f"the head reads {head.channels} outputs, the field has {decoder.spec.out_dim}")
