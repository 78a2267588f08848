"""What the outputs of a field mean: a loss for training and fitting, and the signed distance they stand for."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Head(nn.Module):
    """Meaning of a field's c outputs. `loss` is the mean over a shape's points: one value per task, so tasks never share a gradient."""

    channels: int

    def loss(self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"]) -> Float[Tensor, "*B"]:
        raise NotImplementedError

    def output_grad(self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"]) -> Float[Tensor, "*B N c"]:
        """d loss / d out in closed form, differentiable: the start of the explicit inner gradient."""
        raise NotImplementedError

    def output_grad_tangent(
        self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"], tangent: Float[Tensor, "*B N c"]
    ) -> Float[Tensor, "*B N c"] | None:
        """How `output_grad` changes as the outputs move along `tangent`: the Hessian of the loss in the outputs times it. None: not at all."""
        raise NotImplementedError

    def to_sdf(self, out: Float[Tensor, "*B N c"]) -> Float[Tensor, "*B N 1"]:
        raise NotImplementedError


class Distance(Head):
    """One output, the signed distance itself; `norm` 'l1' is mean |e|, 'squared' is mean e^2."""

    channels = 1

    def __init__(self, norm: Literal["l1", "squared"] = "squared") -> None:
        super().__init__()
        if norm not in ("l1", "squared"):
            raise ValueError(f"Distance norm must be 'l1' or 'squared', got {norm!r}")
        self.norm = norm

    def loss(self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"]) -> Float[Tensor, "*B"]:
        e = out - y
        return (e.abs() if self.norm == "l1" else e.square()).mean((-2, -1))

    def output_grad(self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"]) -> Float[Tensor, "*B N c"]:
        e = out - y
        return (torch.sign(e) if self.norm == "l1" else 2.0 * e) / out.shape[-2]

    def output_grad_tangent(
        self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"], tangent: Float[Tensor, "*B N c"]
    ) -> Float[Tensor, "*B N c"] | None:
        return None if self.norm == "l1" else tangent * (2.0 / out.shape[-2])

    def to_sdf(self, out: Float[Tensor, "*B N c"]) -> Float[Tensor, "*B N 1"]:
        return out
