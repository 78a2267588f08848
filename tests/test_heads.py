"""Heads: losses in closed form, one per task, and the output gradient that starts the explicit inner loop."""

from __future__ import annotations

import math

import jaxtyping
import pytest
import torch
from torch import Tensor

from metasdf.heads import Distance, DistanceAndSign, make_head

NORMS = ["l1", "squared"]
SHAPES = [(7, 1), (3, 7, 1), (2, 3, 7, 1), (3, 1, 1)]
every_norm = pytest.mark.parametrize("norm", NORMS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=g, dtype=torch.float64), torch.randn(shape, generator=g, dtype=torch.float64)


def test_loss_in_numbers() -> None:
    out, y = torch.tensor([[[1.0], [-2.0], [0.5]], [[0.0], [0.0], [3.0]]]), torch.tensor([[[0.0], [0.0], [1.0]], [[0.0], [0.0], [0.0]]])
    assert Distance("l1").loss(out, y).tolist() == pytest.approx([3.5 / 3, 1.0])
    assert Distance("squared").loss(out, y).tolist() == pytest.approx([5.25 / 3, 3.0])


def test_squared_is_the_default() -> None:
    out, y = pair((3, 7, 1))
    assert torch.equal(Distance().loss(out, y), Distance("squared").loss(out, y))


@every_norm
@every_shape
def test_loss_is_the_mean_over_points_of_each_task(norm: str, shape: tuple[int, ...]) -> None:
    out, y = pair(shape)
    error = (out - y).squeeze(-1)
    expected = error.abs().mean(-1) if norm == "l1" else (error**2).mean(-1)
    loss = Distance(norm).loss(out, y)
    assert loss.shape == shape[:-2]  # one value per task
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)


@every_norm
def test_loss_does_not_grow_with_the_number_of_points(norm: str) -> None:
    out, y = pair((3, 7, 1))
    twice = Distance(norm).loss(torch.cat((out, out), -2), torch.cat((y, y), -2))
    torch.testing.assert_close(twice, Distance(norm).loss(out, y), rtol=1e-14, atol=0)


@every_norm
@every_shape
def test_output_grad_is_the_gradient_of_the_loss(norm: str, shape: tuple[int, ...]) -> None:
    head = Distance(norm)
    out, y = pair(shape)
    out.requires_grad_()
    (by_autograd,) = torch.autograd.grad(head.loss(out, y).sum(), out)
    torch.testing.assert_close(head.output_grad(out, y), by_autograd, rtol=1e-14, atol=1e-15)


def test_l1_has_no_gradient_where_the_error_is_zero() -> None:
    """The convention of torch, which both forms of the inner gradient must share."""
    out, y = torch.tensor([[0.25], [1.0]], requires_grad=True), torch.tensor([[0.25], [0.0]])
    head = Distance("l1")
    (by_autograd,) = torch.autograd.grad(head.loss(out, y).sum(), out)
    assert head.output_grad(out, y).tolist() == by_autograd.tolist() == [[0.0], [0.5]]


@every_norm
@every_shape
def test_output_grad_tangent_is_the_derivative_of_output_grad(norm: str, shape: tuple[int, ...]) -> None:
    head = Distance(norm)
    out, y = pair(shape)
    direction = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(shape)
    ours = head.output_grad_tangent(out, y, direction)
    step = 1e-6  # central difference; exact for a quadratic but for rounding
    theirs = (head.output_grad(out + step * direction, y) - head.output_grad(out - step * direction, y)) / (2 * step)
    torch.testing.assert_close(torch.zeros_like(out) if ours is None else ours, theirs, rtol=1e-8, atol=1e-9)


@every_norm
def test_output_grad_is_differentiable(norm: str) -> None:
    """Its derivative is the second derivative of the loss: 2/N for squares, nothing for l1."""
    head = Distance(norm)
    out, y = pair((3, 7, 1))
    out.requires_grad_()
    (first,) = torch.autograd.grad(head.loss(out, y).sum(), out, create_graph=True)
    v = torch.arange(1.0, 22.0, dtype=torch.float64).reshape(3, 7, 1)
    ours = torch.autograd.grad((head.output_grad(out, y) * v).sum(), out, allow_unused=True)[0] if norm == "squared" else torch.zeros_like(v)
    theirs = torch.autograd.grad((first * v).sum(), out, allow_unused=True)[0]
    torch.testing.assert_close(ours, torch.zeros_like(v) if theirs is None else theirs, rtol=1e-14, atol=0)
    torch.testing.assert_close(ours, 2 / 7 * v if norm == "squared" else 0 * v, rtol=1e-14, atol=0)


@every_norm
def test_tasks_are_independent(norm: str) -> None:
    head = Distance(norm)
    out, y = pair((3, 7, 1))
    other_out, other_y = out.clone(), y.clone()
    other_out[1], other_y[1] = float("nan"), float("inf")
    for before, after in ((head.loss(out, y), head.loss(other_out, other_y)), (head.output_grad(out, y), head.output_grad(other_out, other_y))):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert not torch.equal(before[1], after[1])


@every_norm
def test_a_clamped_distance(norm: str) -> None:
    """DeepSDF's equation 4 written out; both closed forms against autograd and a difference quotient, on either side of the clamp."""
    head, n = Distance(norm, clamp=0.5), 40
    out, y = (2 * t for t in pair((3, n, 1)))
    held = out.clamp(-0.5, 0.5) - y.clamp(-0.5, 0.5)
    torch.testing.assert_close(head.loss(out, y), (held.abs() if norm == "l1" else held**2).mean((-2, -1)), rtol=1e-14, atol=0)
    out.requires_grad_()
    (by_autograd,) = torch.autograd.grad(head.loss(out, y).sum(), out)
    torch.testing.assert_close(head.output_grad(out, y), by_autograd, rtol=1e-14, atol=1e-15)
    beyond = out.detach().abs() > 0.5
    assert beyond.any() and not beyond.all() and not by_autograd[beyond].any()
    direction, step = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape), 1e-7
    quotient = (head.output_grad(out + step * direction, y) - head.output_grad(out - step * direction, y)).detach() / (2 * step)
    ours = head.output_grad_tangent(out.detach(), y, direction)
    torch.testing.assert_close(torch.zeros_like(quotient) if ours is None else ours, quotient, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="clamp must be positive"):
        Distance(norm, clamp=0.0)


def test_the_output_is_the_distance() -> None:
    out, _ = pair((3, 7, 1))
    assert Distance().channels == 1
    assert torch.equal(Distance().to_sdf(out), out)


@every_norm
def test_head_keeps_the_dtype_and_has_no_state(norm: str) -> None:
    head = Distance(norm)
    out, y = (t.float() for t in pair((3, 7, 1)))
    assert head.loss(out, y).dtype == head.output_grad(out, y).dtype == torch.float32
    assert not head.state_dict()


def test_unknown_norm_is_refused(unwatched: None) -> None:
    with pytest.raises(ValueError, match="'l1' or 'squared', got 'l2'"):
        Distance("l2")


def test_annotated_shapes_are_executed() -> None:
    """Distances without their channel would broadcast to an N x N error."""
    out, y = pair((3, 7, 1))
    with pytest.raises(jaxtyping.TypeCheckError):
        Distance().loss(out, y.squeeze(-1))


# -- distance and sign (supplement 3.2.2) --------------------------------------------------------------------------------------------------


def composite(*log_scale: float) -> DistanceAndSign:
    head = DistanceAndSign().double()
    with torch.no_grad():
        head.log_scale.copy_(torch.tensor(log_scale, dtype=torch.float64))
    return head


def two(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    out = torch.randn(*shape[:-1], 2, generator=g, dtype=torch.float64)
    y = torch.randn(shape, generator=g, dtype=torch.float64)
    y[..., 0, :] = 0.0  # on the surface
    return out, y


def test_the_composite_loss_in_numbers() -> None:
    """bce / (2 s0^2) + l1 / (2 s1^2) + log(s0 s1) for s0 = 2, s1 = 1/2, one point outside at distance 0.3."""
    out, y = torch.tensor([[[0.5, 0.0]]], dtype=torch.float64), torch.tensor([[[0.3]]], dtype=torch.float64)
    expected = math.log(2) / 8 + 0.2 / (2 * 0.25) + math.log(2 * 0.5)
    assert composite(math.log(2), math.log(0.5)).loss(out, y).item() == pytest.approx(expected, rel=1e-12)


def test_the_logit_says_outside() -> None:
    """The right sign costs little, the wrong one much; a point of the surface is neither."""
    head = composite(0.0, 0.0)
    out = torch.tensor([[[0.0, 9.0]]], dtype=torch.float64)
    cost = [head.loss(out, torch.full((1, 1, 1), s, dtype=torch.float64)).item() for s in (1e-9, -1e-9, 0.0)]
    assert cost[0] == pytest.approx(0, abs=1e-3) and cost[1] == pytest.approx(4.5, abs=1e-3) and cost[2] == pytest.approx(2.25, abs=1e-3)
    assert head.to_sdf(torch.tensor([[-0.5, 3.0], [0.5, 3.0], [-0.5, -3.0], [0.5, -3.0]])).flatten().tolist() == [0.5, 0.5, -0.5, -0.5]


@every_shape
def test_the_composite_gradient_and_its_tangent_are_those_of_the_loss(shape: tuple[int, ...]) -> None:
    head = composite(0.3, -0.4)
    out, y = two(shape)
    out.requires_grad_()
    (by_autograd,) = torch.autograd.grad(head.loss(out, y).sum(), out)
    torch.testing.assert_close(head.output_grad(out, y), by_autograd, rtol=1e-12, atol=1e-14)
    tangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, expected = torch.autograd.functional.jvp(lambda o: head.output_grad(o, y), out.detach(), tangent)
    found = head.output_grad_tangent(out, y, tangent)
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_best_scales_balance_the_losses() -> None:
    """Kendall: at the minimum in s, s0^2 is the cross-entropy and s1^2 the l1 error."""
    head, (out, y) = composite(0.0, 0.0), two((1, 50, 1))
    optimiser = torch.optim.LBFGS([head.log_scale], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = head.loss(out, y).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    target = torch.heaviside(y, torch.tensor(0.5, dtype=torch.float64))
    bce = torch.nn.functional.binary_cross_entropy_with_logits(out[..., 1:], target)
    l1 = (out[..., :1] - y).abs().mean()
    torch.testing.assert_close(torch.exp(2 * head.log_scale.detach()), torch.stack((bce, l1)), rtol=1e-6, atol=0)


def test_heads_by_kind() -> None:
    assert isinstance(make_head("distance_sign", "l1"), DistanceAndSign)
    head = make_head("distance", "l1")
    assert isinstance(head, Distance) and head.norm == "l1"
