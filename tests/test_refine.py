"""Refining: Adam on the whole network, of each task by itself, from what a conditioner gives."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_prior import QUERY, circle, samples, small_prior

from metasdf.conditioning.base import in_turn
from metasdf.conditioning.refine import around, rate, refine
from metasdf.errors import UsageError
from metasdf.fields import FieldSpec, Layer, Params, field, initialise
from metasdf.geometry.refuted import MARGIN
from metasdf.heads import Distance, DistanceAndSign, Head
from metasdf.prior import Observed, Prior, build_conditioner
from metasdf.tasks import Observations

SPEC = FieldSpec(in_dim=2, out_dim=2, width=8, hidden_layers=1)


def start(spec: FieldSpec, tasks: int = 3) -> tuple[Params, Observations]:
    """Parameters of tasks that share their first layer, and a context."""
    g = torch.Generator().manual_seed(0)
    layers = [Layer(w.double(), b.double()) for w, b in initialise(spec, generator=g)]
    own = [Layer(w + 0.1 * torch.randn(tasks, *w.shape, generator=g), b + 0.1 * torch.randn(tasks, *b.shape, generator=g)) for w, b in layers[1:]]
    x = torch.rand(tasks, 30, spec.in_dim, generator=g, dtype=torch.float64) * 2 - 1
    return (layers[0], *own), Observations(x, x.norm(dim=-1, keepdim=True) - 0.5)


@pytest.mark.parametrize("bounds", [False, True])
@pytest.mark.parametrize("points", [None, 10, 30, 50])
@pytest.mark.parametrize("head", [DistanceAndSign(), Distance("l1"), Distance("squared")])
def test_it_is_adam_with_a_cosine(head: Head, points: int | None, bounds: bool) -> None:
    """Each task alone, by autograd and the textbook's Adam (Kingma and Ba 2015, algorithm 1), on all points or on those whose turn it is; of half as
    many, and as many around those whose turn is next."""
    spec = SPEC if isinstance(head, DistanceAndSign) else FieldSpec(in_dim=2, width=8, hidden_layers=1)
    params, context = start(spec)
    found = refine(params, context, spec, head.double(), steps=6, points=points, bounds=bounds)
    part = in_turn(context, points // 2 if points and bounds else points)
    for k in range(3):
        generator = torch.Generator().manual_seed(0)
        theta = [(t[k] if t.dim() > n else t).clone() for layer in params for t, n in zip(layer, (2, 1), strict=True)]
        mean, square = [torch.zeros_like(t) for t in theta], [torch.zeros_like(t) for t in theta]
        for j in range(6):
            leaves = [t.requires_grad_() for t in theta]
            layers = tuple(Layer(w, b) for w, b in zip(leaves[0::2], leaves[1::2], strict=True))
            x, y = part(j).x[k], part(j).y[k]
            out = field(layers, x, spec)
            if bounds:
                drawn = around(Observations(part(j + 1).x[k], part(j + 1).y[k]), generator=generator)
                there = field(layers, drawn.x, spec)
                out, y = torch.cat((out, there)), torch.cat((y, there[:, :1].detach().clamp(drawn.low, drawn.high)))
            grads = torch.autograd.grad(head.loss(out, y), leaves)
            lr = rate(6) * (1 + math.cos(math.pi * j / 6)) / 2
            for i, g in enumerate(grads):
                mean[i], square[i] = 0.9 * mean[i] + 0.1 * g, 0.999 * square[i] + 0.001 * g * g
                theta[i] = (theta[i] - lr * mean[i] / (1 - 0.9 ** (j + 1)) / ((square[i] / (1 - 0.999 ** (j + 1))).sqrt() + 1e-8)).detach()
        for ours, t in zip((t for layer in found for t in layer), theta, strict=True):
            torch.testing.assert_close(ours[k], t, rtol=1e-9, atol=1e-11)


def test_distances_bound_those_around() -> None:
    """Of a sphere, whose distances are known everywhere."""
    _, context = start(FieldSpec(in_dim=3, width=8, hidden_layers=1))
    generator, shares = torch.Generator().manual_seed(0), []
    for _ in range(50):
        x, low, high = around(context, generator=generator)
        truth = x.norm(dim=-1, keepdim=True) - 0.5
        assert (truth >= low - 1e-12).all() and (truth <= high + 1e-12).all() and (x.abs() <= 1).all()
        assert (torch.sign(low) == torch.sign(context.y)).all() and (torch.sign(high) == torch.sign(context.y)).all()
        shares.append((x - context.x).norm(dim=-1, keepdim=True) / context.y.abs())
    assert min(share.min() for share in shares) < 0.2 and max(share.max() for share in shares) > 0.99
    assert 0.6 < torch.stack(shares).mean() < 0.75  # 3/4 in a whole ball; some end at the cube


def test_observed_distances_hold_the_field_between_them() -> None:
    """A speck far from the surface, where nothing was observed: only the bounds of the observations around it take it away."""
    spec = FieldSpec(in_dim=3, width=32, hidden_layers=1, frequencies=4)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 400, 3, generator=g) * 2 - 1
    x = x[:, (x[0] - 0.6).norm(dim=-1) > 0.35]  # nothing near (0.6, 0.6, 0.6)
    context = Observations(x, x.norm(dim=-1, keepdim=True) - 0.4)
    lure = 0.6 + 0.1 * torch.randn(1, 200, 3, generator=g)
    both = Observations(torch.cat((x, lure), 1), torch.cat((context.y, torch.full((1, 200, 1), -0.2)), 1))
    begun = refine(initialise(spec, generator=g), both, spec, Distance("l1"), steps=200, lr=1e-2, points=None)
    ends = [refine(begun, context, spec, Distance("l1"), steps=200, lr=5e-3, bounds=bounds) for bounds in (False, True)]
    inside = [(field(params, lure, spec) < 0).float().mean() for params in ends]
    assert inside[0] > 0.5 and inside[1] < 0.02


def test_the_start_stays_and_no_step_is_a_copy() -> None:
    params, context = start(SPEC)
    before = [t.clone() for layer in params for t in layer]
    same = refine(params, context, SPEC, DistanceAndSign().double(), steps=0)
    refine(params, context, SPEC, DistanceAndSign().double(), steps=2)
    assert all(torch.equal(t, b) for t, b in zip((t for layer in params for t in layer), before, strict=True))
    assert torch.equal(same[0].weight[1], params[0].weight) and same[0].weight.shape[0] == 3 and not same[0].weight.requires_grad
    with pytest.raises(ValueError, match="the context is empty"):
        refine(params, Observations(context.x[:, :0], context.y[:, :0]), SPEC, DistanceAndSign().double(), steps=1)


def test_a_prior_refines_what_its_steps_found() -> None:
    prior, (x, s) = small_prior("dense"), samples()
    plain, refined = prior.adapt(x, s), prior.adapt(x, s, refine=200)
    assert len(refined.path) == len(plain.path) and plain.refined is None
    np.testing.assert_array_equal(refined.after(3)(QUERY), plain(QUERY))
    assert np.abs(refined(x) - s).mean() < 0.7 * np.abs(plain(x) - s).mean()
    both = prior.adapt([x, 2 * x], [s, 2 * s], refine=200)
    np.testing.assert_allclose(both[1](2 * QUERY), 2 * refined(QUERY), atol=1e-4)
    with pytest.raises(UsageError, match="bare points are not enough to refine what test-levelset finds"):
        small_prior().adapt(circle(), refine=1)


def solids(rule: str) -> Prior:
    experiment = replace(small_prior(rule).experiment, field=FieldSpec(in_dim=3, out_dim=2, width=16, hidden_layers=1), head="distance_sign")
    return Prior(experiment, build_conditioner(experiment, generator=torch.Generator().manual_seed(1)))


def ball(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1, 1, (n, 3))
    return x, np.linalg.norm(x, axis=1) - 0.5


def test_3d_shapes_refined_together_or_alone() -> None:
    prior, (x, s) = solids("dense"), ball()
    box = np.abs(x).max(1) - 0.4
    alone, both = prior.adapt(x, s, refine=20), prior.adapt([x, x], [box, s], refine=20)
    np.testing.assert_allclose(both[1](x), alone(x), atol=1e-5)
    assert np.abs(both[0](x) - alone(x)).max() > 0.01


def test_bounds_where_distances_are_true() -> None:
    """In 3D those of samples; not those that normals tell, nor those of images."""
    x, s = ball()
    plane, flat = samples()
    for prior, given, bounds in ((solids("dense"), (x, s), True), (solids("oriented"), (x,), False), (small_prior("dense"), (plane, flat), False)):
        normals = {"normals": x} if prior.needs_normals else {}
        assert prior.bounds_hold == bounds
        seen: list[Observations] = []
        fit = prior.conditioner.trajectory
        prior.conditioner.trajectory = lambda context, fit=fit, seen=seen, **k: (seen.append(context), fit(context, **k))[1]  # type: ignore[method-assign]
        sdf = prior.adapt(*given, refine=5, **normals)
        context, c = Observations(seen[0].x[0], seen[0].y[0]), prior.conditioner
        ends = [refine(sdf.path[-1], context, c.spec, c.head, steps=5, bounds=each) for each in (bounds, not bounds)]
        assert sdf.refined is not None
        torch.testing.assert_close(sdf.refined, ends[0], rtol=1e-4, atol=1e-6)
        assert (ends[0][0].weight - ends[1][0].weight).abs().max() > 1e-6


def test_what_a_fit_keeps_of_its_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, (x, s) = solids("dense"), ball()
    sdf = prior.adapt(x, s)
    rows = np.column_stack((sdf.frame.to_field(x), s * sdf.frame.scale))
    far = np.abs(rows[:, 3]) > MARGIN
    np.testing.assert_allclose(sdf.known, rows[far], atol=1e-6)  # type: ignore[arg-type]
    assert not far.all() and sdf.after(1).known is sdf.known and sdf.after(0).known is None
    monkeypatch.setattr("metasdf.prior.MAX_CONTEXT", 50)
    known = prior.known(Observed(sdf.frame, rows[:, :3], rows[:, 3]))
    assert known is not None and np.abs(known[:, 3]).min() >= np.sort(np.abs(rows[:, 3]))[-50] - 1e-6 and len(known) == 50
    assert prior.known(Observed(sdf.frame, rows[:, :3], rows[:, 3] * 1e-3)) is None
    assert solids("oriented").adapt(x, normals=x).known is None and small_prior("dense").adapt(*samples()).known is None
