"""Muon: the direction it takes, what it leaves to Adam, and the state it keeps."""

from __future__ import annotations

import pytest
import torch

from metasdf.optim import Muon, orthogonalised


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (48, 32)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int], scale: float) -> None:
    u, s, vh = torch.linalg.svd(matrix(*shape), full_matrices=False)
    given = u @ torch.diag(torch.linspace(1.0, 0.1, len(s), dtype=s.dtype)) @ vh  # the iteration lifts values down to a hundredth of the norm
    found = u.mT @ orthogonalised(scale * given, 5) @ vh.mT
    values = found.diagonal()
    assert values.min() > 0.6 and values.max() < 1.25
    assert (found - torch.diag(values)).abs().max() < 1e-9


def test_lower_precision_gives_the_same_direction_to_rounding() -> None:
    given = matrix(32, 32).float()
    exact, rounded = orthogonalised(given, 5), orthogonalised(given, 5, products=torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.1  # eight bits, through five cubic-like steps


def test_a_zero_gradient_moves_nothing() -> None:
    assert not orthogonalised(torch.zeros(4, 4), 5).any()


def test_only_orthogonal_groups_leave_adam() -> None:
    start = [matrix(16, 16), matrix(16, 2), matrix(1, 16)]
    ours, theirs = ([t.clone().requires_grad_() for t in start] for _ in range(2))
    muon = Muon([{"params": ours[:1], "orthogonal": True, "lr": 0.1}, {"params": ours[1:], "lr": 0.1}])
    adam = torch.optim.Adam(theirs, lr=0.1)
    for step in range(3):
        for optimiser, params in ((muon, ours), (adam, theirs)):
            optimiser.zero_grad()
            for i, p in enumerate(params):
                p.grad = matrix(*p.shape, seed=10 * step + i)
            optimiser.step()
    assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])
    moved = torch.linalg.svdvals((ours[0] - start[0]).detach())
    assert moved.max() < 3 * 0.1 * 1.25 and not torch.equal(ours[0], theirs[0])
    assert set(muon.state[ours[0]]) == {"step", "momentum"} and set(muon.state[ours[1]]) == {"step", "exp_avg", "exp_avg_sq"}


def test_the_learning_rate_is_the_length_of_a_step() -> None:
    p = matrix(16, 16).requires_grad_()
    before = p.detach().clone()
    muon = Muon([{"params": [p], "orthogonal": True, "lr": 0.03}])
    p.grad = 1e-5 * matrix(16, 16, seed=1)
    muon.step()
    values = torch.linalg.svdvals((p.detach() - before) / 0.03)
    assert 0.5 < values.median() < 1.25
