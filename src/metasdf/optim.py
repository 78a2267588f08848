"""The optimiser of theta and alpha: Adam, and Muon for the hidden weights of theta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Adam):
    """Adam whose parameter groups with `orthogonal=True` step along their momentum with all its singular values set near 1 (Jordan et al.
    2024, "Muon: an optimizer for hidden layers in neural networks"). Such groups hold square or nearly square matrices; the others are Adam's.
    Their key `products` is the precision of the iteration that does it (None: that of the parameters), which forgives rounding.

    Adam scales single numbers, and a matrix of them tends to move along few directions; Muon moves along all of them alike. torch has
    a Muon from 2.9 on, apart from Adam; one optimiser has one state to save and resume.
    """

    MOMENTUM, ITERATIONS = 0.95, 5

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        taken: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if group.get("orthogonal"):
                for p in group["params"]:
                    if p.grad is not None:
                        p.add_(self._direction(p, p.grad, group.get("products")), alpha=-group["lr"])
                        taken.append((p, p.grad))
                        p.grad = None  # Adam leaves alone what has no gradient
        loss = super().step(closure)
        for p, grad in taken:
            p.grad = grad
        return loss

    def _direction(self, p: Tensor, grad: Tensor, products: torch.dtype | None) -> Tensor:
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)  # Adam looks for it in every state it loads
            state["momentum"] = torch.zeros_like(p)
        state["step"] += 1
        state["momentum"].lerp_(grad, 1.0 - self.MOMENTUM)
        ahead = grad.lerp(state["momentum"], self.MOMENTUM)  # as Nesterov
        return orthogonalised(ahead, self.ITERATIONS, products=products)


def orthogonalised(matrix: Tensor, iterations: int, *, products: torch.dtype | None = None) -> Tensor:
    """U V^T for matrix = U S V^T, with singular values between about 0.7 and 1.2: Newton-Schulz iteration with Jordan's quintic polynomial."""
    x = (matrix / (matrix.norm() + 1e-12)).to(products)
    for _ in range(iterations):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.to(matrix.dtype)
