"""MetaSDF: a learned initialisation theta and learned rates alpha; conditioning is a few steps of gradient descent on the context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metasdf.conditioning.base import Conditioner
from metasdf.conditioning.inner_loop import Curvature, InnerLoopConfig, Rates, inner_loop
from metasdf.fields import FieldSpec, Layer, Params, initialise
from metasdf.heads import Distance, Head
from metasdf.tasks import Observations


class MetaSDF(Conditioner):
    """theta, alpha and the inner loss. After training, `forward(context)` is phi_k (main paper, section 3)."""

    def __init__(
        self, spec: FieldSpec, config: InnerLoopConfig | None = None, *, head: Head | None = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.config = config or InnerLoopConfig()
        self.head = head or Distance("squared")
        if self.head.channels != spec.out_dim:
            raise ValueError(f"the head reads {self.head.channels} outputs, the field has {spec.out_dim}")
        self._theta = nn.ParameterList([nn.Parameter(t) for layer in initialise(spec, generator=generator) for t in layer])
        self.rates = Rates(spec, self.config)
        self.curvature = Curvature(spec) if self.config.curvature == "kronecker" else None

    @property
    def inner_steps(self) -> int:
        return self.config.steps

    @property
    def theta(self) -> Params:
        tensors: list[Tensor] = list(self._theta)
        return tuple(Layer(w, b) for w, b in zip(tensors[0::2], tensors[1::2], strict=True))

    def trajectory(self, context: Observations, *, steps: int | None = None) -> list[Params]:
        """theta, phi_1, ..., phi_k. Without grad mode nothing is kept but the parameters themselves."""
        rates = self.rates.sequence(self.config.steps if steps is None else max(steps, 0))
        return inner_loop(
            self.theta, rates.__getitem__, context, spec=self.spec, head=self.head, config=self.config, steps=steps,
            second_order=self.second_order, products=self.products, curvature=self.curvature,
            prune=self.pruning,
        )  # fmt: skip

    def forward(self, context: Observations, *, steps: int | None = None) -> Params:
        return self.trajectory(context, steps=steps)[-1]

    def project(self) -> None:
        self.rates.project()
