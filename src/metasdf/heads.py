"""What the outputs of a field mean: a loss for training and fitting, and the signed distance they stand for."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
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


Norm = Literal["l1", "squared"]
HeadKind = Literal["distance", "distance_sign"]


class Distance(Head):
    """One output, the signed distance itself; `norm` 'l1' is mean |e|, 'squared' is mean e^2.

    clamp: e is the difference of prediction and distance, each held within +-clamp (Park et al. 2019, eq. 4), so that far from the surface only the
    sign counts; None: not at all. In an inner loop it makes training unstable (main paper).
    """

    channels = 1

    def __init__(self, norm: Norm = "squared", *, clamp: float | None = None) -> None:
        super().__init__()
        if norm not in ("l1", "squared"):
            raise ValueError(f"Distance norm must be 'l1' or 'squared', got {norm!r}")
        if clamp is not None and not clamp > 0:
            raise ValueError(f"Distance clamp must be positive, or None, got {clamp}")
        self.norm, self.clamp = norm, clamp

    def _error(self, out: Tensor, y: Tensor) -> Tensor:
        return out - y if self.clamp is None else out.clamp(-self.clamp, self.clamp) - y.clamp(-self.clamp, self.clamp)

    def _within(self, slope: Tensor, out: Tensor) -> Tensor:
        """The slope, where the clamp lets it through."""
        return slope if self.clamp is None else slope * (out.abs() <= self.clamp)

    def loss(self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"]) -> Float[Tensor, "*B"]:
        e = self._error(out, y)
        return (e.abs() if self.norm == "l1" else e.square()).mean((-2, -1))

    def output_grad(self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"]) -> Float[Tensor, "*B N c"]:
        e = self._error(out, y)
        return self._within((torch.sign(e) if self.norm == "l1" else 2.0 * e) / out.shape[-2], out)

    def output_grad_tangent(
        self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"], tangent: Float[Tensor, "*B N c"]
    ) -> Float[Tensor, "*B N c"] | None:
        return None if self.norm == "l1" else self._within(tangent * (2.0 / out.shape[-2]), out)

    def to_sdf(self, out: Float[Tensor, "*B N c"]) -> Float[Tensor, "*B N 1"]:
        return out


class DistanceAndSign(Head):
    """Two outputs, a distance and the logit of being outside: the composite loss of supplement 3.2.2.

    L = bce / (2 s0^2) + l1 / (2 s1^2) + log(s0 s1), Kendall et al. 2018; log s0 and log s1 are learned, so both stay positive. The inner and the
    outer loss have one such pair each. The signed distance is |distance| * sign, which jumps where the sign changes away from distance 0.
    """

    channels = 2

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(2))  # log s0 of the sign, log s1 of the distance

    @property
    def weights(self) -> Float[Tensor, "2"]:
        return 0.5 * torch.exp(-2.0 * self.log_scale)

    def loss(self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"]) -> Float[Tensor, "*B"]:
        sign, distance = self.weights
        bce = F.binary_cross_entropy_with_logits(out[..., 1:], _outside(y), reduction="none").mean((-2, -1))
        return sign * bce + distance * (out[..., :1] - y).abs().mean((-2, -1)) + self.log_scale.sum()

    def output_grad(self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"]) -> Float[Tensor, "*B N c"]:
        sign, distance = self.weights / out.shape[-2]
        return torch.cat((distance * torch.sign(out[..., :1] - y), sign * (torch.sigmoid(out[..., 1:]) - _outside(y))), -1)

    def output_grad_tangent(
        self, out: Float[Tensor, "*B N c"], y: Float[Tensor, "*B N 1"], tangent: Float[Tensor, "*B N c"]
    ) -> Float[Tensor, "*B N c"] | None:
        p = torch.sigmoid(out[..., 1:])
        turned = self.weights[0] / out.shape[-2] * p * (1.0 - p) * tangent[..., 1:]
        return torch.cat((torch.zeros_like(turned), turned), -1)

    def to_sdf(self, out: Float[Tensor, "*B N c"]) -> Float[Tensor, "*B N 1"]:
        return torch.copysign(out[..., :1], out[..., 1:])


def _outside(y: Tensor) -> Tensor:
    """1 outside, 0 inside, 1/2 on the surface."""
    return torch.heaviside(y, y.new_tensor(0.5))


def make_head(kind: HeadKind, norm: Norm, *, clamp: float | None = None) -> Head:
    """norm, clamp: of the distance, where the kind leaves them open."""
    return Distance(norm, clamp=clamp) if kind == "distance" else DistanceAndSign()
