"""The optimiser of every method: Adam, with Muon for hidden weights, and steps on visited rows alone for codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class GroupedAdam(torch.optim.Adam):
    """Adam, but for two kinds of parameter groups. One optimiser has one state to save and resume.

    orthogonal=True: Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") steps along the momentum with all its
    singular values set near 1. Such groups hold square or nearly square matrices. Adam scales single numbers, and a matrix of them tends to move
    along few directions; Muon moves along all of them alike. Their key `products` is the precision of the iteration that does it (None: that of
    the parameters), which forgives rounding.

    rows=True: a table of which each step sees few rows, such as the codes of an auto-decoder. Rows that a step did not see stay as they are, and
    each has its own count for the bias corrections. Gradients may be sparse.
    """

    MOMENTUM, ITERATIONS = 0.95, 5

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        taken: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if not (group.get("orthogonal") or group.get("rows")):
                continue
            for p in group["params"]:
                if p.grad is not None:
                    (self._orthogonal if group.get("orthogonal") else self._rows)(p, p.grad, group)
                    taken.append((p, p.grad))
                    p.grad = None  # Adam leaves alone what has no gradient
        loss = super().step(closure)
        for p, grad in taken:
            p.grad = grad
        return loss

    def fresh_state(self) -> dict[int, dict[str, Tensor]]:
        """What is remembered of each parameter, by its number: names and shapes, with zeros."""
        return dict(enumerate(_fresh(p, group) for group in self.param_groups for p in group["params"]))

    def _orthogonal(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self._state(p, group)
        state["step"] += 1
        state["momentum"].lerp_(grad, 1.0 - self.MOMENTUM)
        ahead = grad.lerp(state["momentum"], self.MOMENTUM)  # as Nesterov
        p.add_(orthogonalised(ahead, self.ITERATIONS, products=group.get("products")), alpha=-group["lr"])

    def _rows(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (decay, decay_square) = self._state(p, group), group["betas"]
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, g = grad.indices()[0], grad.values()
        else:
            rows = grad.any(-1).nonzero()[:, 0]
            g = grad[rows]
        state["step"] += 1
        state["visits"][rows] += 1
        visits = state["visits"][rows].unsqueeze(-1)
        mean = state["exp_avg"][rows].lerp(g, 1.0 - decay)
        square = state["exp_avg_sq"][rows].lerp(g * g, 1.0 - decay_square)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        scale = (square / (1.0 - decay_square**visits)).sqrt() + group["eps"]
        p[rows] -= group["lr"] * (mean / (1.0 - decay**visits)) / scale

    def _state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        if not self.state[p]:
            self.state[p].update(_fresh(p, group))
        return self.state[p]


def _fresh(p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    step = {"step": torch.zeros(())}  # Adam looks for it in every state it loads
    if group.get("orthogonal"):
        return step | {"momentum": torch.zeros_like(p)}
    moments = step | {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return moments | {"visits": p.new_zeros(len(p))} if group.get("rows") else moments


def orthogonalised(matrix: Tensor, iterations: int, *, products: torch.dtype | None = None) -> Tensor:
    """U V^T for matrix = U S V^T, with singular values between about 0.7 and 1.2: Newton-Schulz iteration with Jordan's quintic polynomial."""
    x = (matrix / (matrix.norm() + 1e-12)).to(products)
    for _ in range(iterations):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.to(matrix.dtype)
