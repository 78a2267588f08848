"""The inner loop on a code: MetaSDF's few learned steps, taken on z instead of on all of the field's parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metasdf.conditioning.base import Conditioner, Decoder, refuse_empty
from metasdf.conditioning.codes import check_head
from metasdf.fields import Params, field
from metasdf.heads import Distance, Head
from metasdf.tasks import Observations

LatentRateKind = Literal["global", "step", "parameter", "parameter_step"]
LATENT_RATE_KINDS: tuple[LatentRateKind, ...] = ("global", "step", "parameter", "parameter_step")


@dataclass(frozen=True)
class LatentLoopConfig:
    """How z is found. Not a method of the paper; three steps as in Functa and COIN++."""

    steps: int = 3
    rates: LatentRateKind = "parameter"
    init_rate: float = 0.3  # for the bias hypernetwork (a fresh one of width 256 diverges from 3 on); a fresh `Hypernetwork` bears 30
    constraint: Literal["free", "clip"] = "free"  # clip: projected to >= 0 after each optimiser step

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"LatentLoopConfig.steps must be at least 1, got {self.steps}")
        if self.rates not in LATENT_RATE_KINDS:
            raise ValueError(f"LatentLoopConfig.rates must be one of {', '.join(LATENT_RATE_KINDS)}, got {self.rates!r}")
        if not self.init_rate > 0:
            raise ValueError(f"LatentLoopConfig.init_rate must be positive, got {self.init_rate}")
        if self.constraint not in ("free", "clip"):
            raise ValueError(f"LatentLoopConfig.constraint must be free or clip, got {self.constraint!r}")


class LatentLoop(Conditioner):
    """z_0 = 0, z_{j+1} = z_j - alpha_j * grad_z L_inner(decoder(z_j); context); Params = decoder(z_k).

    With `BiasHypernetwork` this is a step on modulations, as in Functa (Dupont et al., ICML 2022, section on meta-learning functa) and COIN++
    (Dupont et al., TMLR 2022, section on meta-learning modulations); with `Hypernetwork` on all parameters, along the directions that it knows.
    The start is zero: the decoder's own biases make any other the same.
    """

    def __init__(self, decoder: Decoder, config: LatentLoopConfig | None = None, *, head: Head | None = None) -> None:
        super().__init__()
        self.spec, self.decoder = decoder.spec, decoder
        self.config = config or LatentLoopConfig()
        self.head = head or Distance("squared")
        check_head(self.head, decoder)
        steps = (self.config.steps,) if self.config.rates in ("step", "parameter_step") else ()
        shape = (decoder.code_dim,) if self.config.rates in ("parameter", "parameter_step") else ()
        self.rates = nn.Parameter(torch.full((*steps, *shape), float(self.config.init_rate)))

    @property
    def inner_steps(self) -> int:
        return self.config.steps

    def forward(self, context: Observations, *, steps: int | None = None) -> Params:
        return self.decoder(self.codes(context, steps=steps)[-1])

    def trajectory(self, context: Observations, *, steps: int | None = None) -> list[Params]:
        """The field before the first step and after each."""
        return [self.decoder(z) for z in self.codes(context, steps=steps)]

    def codes(self, context: Observations, *, steps: int | None = None) -> list[Float[Tensor, "*B n"]]:
        """z_0, ..., z_k. Steps beyond the trained ones repeat the last rates. Raises ValueError for an empty context or negative steps."""
        refuse_empty(context)
        k = self.config.steps
        steps = k if steps is None else steps
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        rates = self.rates.unbind() if self.config.rates in ("step", "parameter_step") else (self.rates,) * k
        path = [context.x.new_zeros(*context.x.shape[:-2], self.decoder.code_dim)]
        for j in range(steps):
            path.append(path[-1] - rates[min(j, k - 1)] * self._gradient(path[-1], context))
        return path

    def _gradient(self, z: Tensor, context: Observations) -> Float[Tensor, "*B n"]:
        """grad_z of the inner loss, one for each task; with a graph of its own where the meta-gradient is of second order."""
        graph = torch.is_grad_enabled() and self.second_order > 0.0
        with torch.enable_grad():
            z = z if graph and z.requires_grad else z.detach().requires_grad_()
            out = field(self.decoder(z), context.x, self.spec, products=self.products)
            (g,) = torch.autograd.grad(self.head.loss(out, context.y).sum(), z, create_graph=graph)
        return g if not 0.0 < self.second_order < 1.0 else self.second_order * g + (1.0 - self.second_order) * g.detach()

    @torch.no_grad()
    def project(self) -> None:
        if self.config.constraint == "clip":
            self.rates.clamp_(min=0.0)
