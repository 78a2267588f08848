"""Muon and steps on rows: the direction they take, what they leave to Adam, and the state they keep."""

from __future__ import annotations

import pytest
import torch

from metasdf.optim import GroupedAdam, orthogonalised


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
    muon = GroupedAdam([{"params": ours[:1], "orthogonal": True, "lr": 0.1}, {"params": ours[1:], "lr": 0.1}])
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
    muon = GroupedAdam([{"params": [p], "orthogonal": True, "lr": 0.03}])
    p.grad = 1e-5 * matrix(16, 16, seed=1)
    muon.step()
    values = torch.linalg.svdvals((p.detach() - before) / 0.03)
    assert 0.5 < values.median() < 1.25


def table(*, sparse: bool, rows_by_step: list[list[int]]) -> torch.Tensor:
    """A table of 6 rows after a step on each list of rows; the gradient of a row depends on step and row."""
    p = matrix(6, 3).requires_grad_()
    optimiser = GroupedAdam([{"params": [p], "rows": True, "lr": 0.1}])
    for step, rows in enumerate(rows_by_step):
        grad = torch.zeros(6, 3, dtype=torch.float64)
        grad[rows] = matrix(6, 3, seed=1 + step)[rows]
        p.grad = grad.to_sparse(1) if sparse else grad
        optimiser.step()
    return p.detach()


@pytest.mark.parametrize("sparse", [True, False])
def test_each_row_is_an_adam_of_its_own(sparse: bool) -> None:
    """As if Adam had each row alone and saw those steps only that visit it."""
    visits = [[0, 1, 5], [1], [0, 1, 2], [1, 2]]
    ours = table(sparse=sparse, rows_by_step=visits)
    for row in range(6):
        alone = matrix(6, 3)[row].requires_grad_()
        adam = torch.optim.Adam([alone], lr=0.1)
        for step, rows in enumerate(visits):
            if row in rows:
                alone.grad = matrix(6, 3, seed=1 + step)[row]
                adam.step()
        torch.testing.assert_close(ours[row], alone.detach(), rtol=1e-12, atol=0)
    assert torch.equal(ours[3:5], matrix(6, 3)[3:5])  # never visited, never moved


def test_a_row_twice_in_a_batch_counts_once_with_both_gradients() -> None:
    p, q = matrix(4, 2).requires_grad_(), matrix(4, 2).requires_grad_()
    values = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), values, (4, 2), check_invariants=True)
    for each, grad in ((p, twice), (q, twice.to_dense())):
        each.grad = grad
        GroupedAdam([{"params": [each], "rows": True, "lr": 0.1}]).step()
    assert torch.equal(p, q) and not torch.equal(p[1], matrix(4, 2)[1])


def test_the_fresh_state_is_what_a_step_makes() -> None:
    params = [matrix(16, 16).requires_grad_(), matrix(16, 2).requires_grad_(), matrix(4, 2).requires_grad_()]
    optimiser = GroupedAdam([{"params": params[:1], "orthogonal": True}, {"params": params[1:2]}, {"params": params[2:], "rows": True}])
    fresh = optimiser.fresh_state()
    for p in params:
        p.grad = torch.ones_like(p)
    optimiser.step()
    for index, p in enumerate(params):
        made = optimiser.state[p]
        assert {k: tuple(v.shape) for k, v in fresh[index].items()} == {k: tuple(v.shape) for k, v in made.items()}
