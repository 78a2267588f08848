"""The inner loop against closed forms, finite differences and an independent reference; its twins; what its settings promise.

Everything runs in float64 at generic points: no bias and no rate is zero, no two rates agree, no unit of a ReLU field sits at its kink.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metasdf.conditioning.fused import Step, fused_gradient
from metasdf.conditioning.inner_loop import RATE_KINDS, InnerLoopConfig, Rates, inner_gradient, inner_gradient_autograd, inner_loop, pruned
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.fields import FieldSpec, Layer, Params, encode, field
from metasdf.heads import Distance, DistanceAndSign, Head
from metasdf.tasks import Observations

SPECS = {
    "relu": FieldSpec(width=5, hidden_layers=1),
    "sine": FieldSpec(width=5, hidden_layers=1, activation="sine", w0=2.0),
    "fourier-3d": FieldSpec(in_dim=3, width=4, hidden_layers=0, frequencies=2),
    "skip-3d": FieldSpec(in_dim=3, width=5, hidden_layers=1, activation="sine", w0=2.0, skip=(1,), narrow=2),
}
GRADIENTS = ["fused", "explicit", "autograd"]
TASKS, POINTS, STEPS = 3, 7, 3
every_spec = pytest.mark.parametrize("name", SPECS)
every_kind = pytest.mark.parametrize("kind", RATE_KINDS)
every_gradient = pytest.mark.parametrize("gradient", GRADIENTS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observe(d: int, *batch: int, n: int = POINTS, seed: int = 0, dtype: torch.dtype = torch.float64) -> Observations:
    """Distances to a circle or sphere of its own for each task."""
    g = seeded(seed)
    x = torch.rand(*batch, n, d, generator=g, dtype=torch.float64) * 2 - 1
    centre = torch.rand(*batch, 1, d, generator=g, dtype=torch.float64) - 0.5
    radius = torch.rand(*batch, 1, 1, generator=g, dtype=torch.float64) * 0.5 + 0.2
    return Observations(x.to(dtype), ((x - centre).norm(dim=-1, keepdim=True) - radius).to(dtype))


def generic(spec: FieldSpec, *, norm: str = "squared", seed: int = 0, **config: object) -> MetaSDF:
    """A conditioner in float64 whose theta and rates are all different and nowhere special."""
    model = MetaSDF(spec, InnerLoopConfig(**{"steps": STEPS, "init_rate": 0.05, **config}), head=Distance(norm)).double()
    g = seeded(seed)
    with torch.no_grad():
        for t in [t for layer in model.theta for t in layer]:
            scale = math.sqrt(1.5 / t.shape[-1]) / (spec.w0 if spec.activation == "sine" and t.dim() == 2 else 1.0) if t.dim() == 2 else 0.3
            t.copy_(scale * torch.randn(t.shape, generator=g, dtype=t.dtype))
        for raw in model.rates.parameters():
            raw.mul_(1 + torch.rand(raw.shape, generator=g, dtype=raw.dtype))
        for matrix in model.curvature.parameters() if model.curvature is not None else ():
            matrix.add_(0.2 * torch.randn(matrix.shape, generator=g, dtype=matrix.dtype))
    return model


def meta_loss(model: MetaSDF, context: Observations, query: Observations, phi: Params | None = None) -> Tensor:
    phi = model(context) if phi is None else phi
    return model.head.loss(field(phi, query.x, model.spec), query.y).sum()


def meta_gradients(model: MetaSDF, context: Observations, query: Observations) -> list[Tensor]:
    return list(torch.autograd.grad(meta_loss(model, context, query), list(model.parameters())))


def tensors(params: Params) -> list[Tensor]:
    return [t for layer in params for t in layer]


def layers(flat: list[Tensor]) -> Params:
    return tuple(Layer(w, b) for w, b in zip(flat[0::2], flat[1::2], strict=True))


def distinct(spec: FieldSpec, kind: str, **config: object) -> Rates:
    return generic(spec, rates=kind, **config).rates


def assert_same(ours: Params, theirs: Params) -> None:
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Relative to the largest entry of each tensor."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(b.abs().max().item(), 1e-3), msg=lambda m, i=index: f"tensor {i}: {m}")


# -------------------------------------------------------------------------------------------- closed form: least squares


class LeastSquares(NamedTuple):
    """A field that is linear in the parameters that move: Phi = w (x + 3) + b, hidden layer frozen by rates of zero, all its units on."""

    spec: FieldSpec
    theta: Params
    context: Observations
    rates: Callable[[int], Params]
    moving: Tensor  # (d + 1,) initial w and b
    optimum: Tensor  # (B, d + 1)
    contraction: Tensor  # (B, d + 1, d + 1): phi_{j+1} - optimum = contraction (phi_j - optimum)
    hessian: Tensor
    alpha: Tensor  # (d + 1,)


def least_squares(d: int) -> LeastSquares:
    spec = FieldSpec(in_dim=d, width=d, hidden_layers=0)
    context = observe(d, TASKS, n=9)
    g = seeded(5)
    moving = torch.randn(d + 1, generator=g, dtype=torch.float64)
    alpha = 0.005 * (1 + torch.rand(d + 1, generator=g, dtype=torch.float64))
    frozen = Layer(torch.eye(d, dtype=torch.float64), torch.full((d,), 3.0, dtype=torch.float64))
    still = Layer(torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64))
    a = torch.cat((context.x + 3, torch.ones_like(context.y)), -1)
    hessian = 2 / 9 * a.mT @ a
    return LeastSquares(
        spec, (frozen, Layer(moving[None, :d], moving[d:])), context, lambda j: (still, Layer(alpha[None, :d], alpha[d:])), moving,
        torch.linalg.lstsq(a, context.y).solution.squeeze(-1), torch.eye(d + 1) - alpha[:, None] * hessian, hessian, alpha,
    )  # fmt: skip


def moved(phi: Params) -> Tensor:
    return torch.cat((phi[1].weight.squeeze(-2), phi[1].bias), -1)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("steps", [1, 5])
@every_gradient
def test_linear_field_descends_as_least_squares_does(d: int, steps: int, gradient: str) -> None:
    """phi_k - phi* = (1 - alpha H)^k (theta - phi*) with H = 2/N A^T A, for every task with its own A and phi*."""
    p = least_squares(d)
    config = InnerLoopConfig(steps=steps, gradient=gradient)
    phi = inner_loop(p.theta, p.rates, p.context, spec=p.spec, head=Distance(), config=config)[-1]
    power = torch.linalg.matrix_power(p.contraction, steps)
    expected = p.optimum + (power @ (p.moving - p.optimum).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(moved(phi), expected, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(moved(phi), p.moving.expand(TASKS, -1), rtol=0.05)  # the steps do move
    torch.testing.assert_close(phi[0].weight, p.theta[0].weight.expand(TASKS, d, d), rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 5])
@every_gradient
@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
def test_meta_gradient_of_the_linear_field(steps: int, gradient: str, blend: float) -> None:
    """d phi_k / d theta = (1 - s alpha H)^k: the Hessian enters whole (s = 1), not at all (first order, s = 0), or scaled."""
    p = least_squares(2)
    config = InnerLoopConfig(steps=steps, gradient=gradient)

    def descend(theta: Tensor) -> Tensor:
        start = (Layer(*(t.clone().requires_grad_() for t in p.theta[0])), Layer(theta[None, :2], theta[2:]))
        return moved(inner_loop(start, p.rates, p.context, spec=p.spec, head=Distance(), config=config, second_order=blend)[-1])

    jacobian = torch.autograd.functional.jacobian(descend, p.moving)
    expected = torch.linalg.matrix_power(torch.eye(3) - blend * p.alpha[:, None] * p.hessian, steps)
    torch.testing.assert_close(jacobian, expected, rtol=1e-11, atol=1e-11)


# ----------------------------------------------------------------------------------------------- independent reference


def reference_loss(flat: Tensor, x: Tensor, y: Tensor, spec: FieldSpec, norm: str) -> Tensor:
    """The loss of one task as a function of one vector."""
    h, start = encode(x, spec), 0
    coordinates = h
    for index, (out, inn) in enumerate(spec.shapes):
        weight, bias = flat[start : start + out * inn].view(out, inn), flat[start + out * inn : start + out * inn + out]
        start += out * inn + out
        h = F.linear(torch.cat((h, coordinates), -1) if index in spec.skip else h, weight, bias)
        if index < len(spec.shapes) - 1:
            h = h.relu() if spec.activation == "relu" else (spec.w0 * h).sin()
    return (h - y).abs().mean() if norm == "l1" else (h - y).square().mean()


def reference_rates(raw: list[Tensor], kind: str, spec: FieldSpec, step: int) -> Tensor:
    """The step sizes of step `step` as one vector beside the parameters, written out from the words of `RateKind`."""
    sizes = [n for out, inn in spec.shapes for n in (out * inn, out)]
    if kind == "global":
        return raw[0].expand(sum(sizes))
    if kind == "step":
        return raw[0][step].expand(sum(sizes))
    if kind == "tensor":
        return torch.cat([r.expand(n) for r, n in zip(raw, sizes, strict=True)])
    return torch.cat([(r if kind == "parameter" else r[step]).reshape(-1) for r in raw])


class Reference(NamedTuple):
    path: list[Tensor]  # (B, P) for each step, theta first
    theta_grad: Tensor  # (P,)
    alpha_grads: list[Tensor]  # (P,) for each step


def reference(model: MetaSDF, context: Observations, query: Observations, blend: float) -> Reference:
    """Gradient descent task by task with gradients and Hessians by autograd, and the meta-gradient by the adjoint recursion.

    One step is phi - alpha g(phi), its derivative 1 - s alpha H where s scales what passes through the gradient. So, from the last step back,
    lambda_k = grad L_query(phi_k);  d/d alpha_j = -lambda_{j+1} g_j;  lambda_j = lambda_{j+1} - s H_j (alpha_j lambda_{j+1}).
    """
    spec, norm = model.spec, model.head.norm
    theta = torch.cat([t.detach().reshape(-1) for t in tensors(model.theta)])
    raw = [r.detach() for r in model.rates.parameters()]
    alphas = [reference_rates(raw, model.config.rates, spec, j) for j in range(model.config.steps)]
    paths, theta_grad, alpha_grads = [], torch.zeros_like(theta), [torch.zeros_like(theta) for _ in alphas]
    for b in range(len(context.x)):

        def inner(flat: Tensor, b: int = b) -> Tensor:
            return reference_loss(flat, context.x[b], context.y[b], spec, norm)

        path, grads = [theta], []
        for alpha in alphas:
            grads.append(torch.func.grad(inner)(path[-1]))
            path.append(path[-1] - alpha * grads[-1])
        adjoint = torch.func.grad(reference_loss)(path[-1], query.x[b], query.y[b], spec, norm)
        for j in reversed(range(len(alphas))):
            alpha_grads[j] -= adjoint * grads[j]
            adjoint = adjoint - blend * torch.autograd.functional.vhp(inner, path[j], alphas[j] * adjoint)[1]
        theta_grad += adjoint
        paths.append(torch.stack(path))
    return Reference(list(torch.stack(paths, 1)), theta_grad, alpha_grads)


@every_spec
@pytest.mark.parametrize(("kind", "norm"), [*((kind, "squared") for kind in RATE_KINDS), ("parameter_step", "l1")])
@pytest.mark.parametrize("blend", [1.0, 0.5, 0.3, 0.0])
def test_values_and_meta_gradients_match_the_reference(name: str, kind: str, norm: str, blend: float) -> None:
    """theta, every phi and the gradient in theta and in every rate, for second order, first order and between, in both forms."""
    spec = SPECS[name]
    context, query = observe(spec.in_dim, 2), observe(spec.in_dim, 2, seed=1)
    model = generic(spec, rates=kind, norm=norm)
    truth = reference(model, context, query, blend)

    leaves = [r.detach().clone().requires_grad_() for r in model.rates.parameters()]
    alphas = [reference_rates(leaves, kind, spec, j) for j in range(STEPS)]
    rate_grads = list(torch.autograd.grad(alphas, leaves, truth.alpha_grads))

    for gradient in GRADIENTS:
        model.config = replace(model.config, gradient=gradient)
        model.second_order = blend
        path = model.trajectory(context)
        for phi, flat in zip(path, truth.path, strict=True):
            ours = torch.cat([t.expand(2, *t.shape[-n:]).reshape(2, -1) for layer in phi for t, n in zip(layer, (2, 1), strict=True)], -1)
            torch.testing.assert_close(ours, flat, rtol=1e-12, atol=1e-12)
        grads = meta_gradients(model, context, query)
        split = len(grads) - len(leaves)
        assert_close([torch.cat([g.reshape(-1) for g in grads[:split]])], [truth.theta_grad], 1e-11)
        assert_close(grads[split:], rate_grads, 1e-11)


# --------------------------------------------------------------------------------------------------- finite differences


def distance_to_kinks(model: MetaSDF, context: Observations, query: Observations) -> float:
    """The least |value before a ReLU| and the least |error| over the whole inner loop and the query."""
    path, least = model.trajectory(context), math.inf
    for phi, (x, y) in [*((phi, context) for phi in path[:-1]), (path[-1], query)]:
        h = encode(x, model.spec)
        for weight, bias in phi[:-1]:
            z = h @ weight.mT + bias.unsqueeze(-2)
            least, h = min(least, z.abs().min().item()), z.relu()
        if model.head.norm == "l1":
            least = min(least, (field(phi, x, model.spec) - y).abs().min().item())
    return least


def assert_finite_differences_agree(model: MetaSDF, context: Observations, query: Observations, *, h: float, tolerance: float) -> None:
    """Along a random direction in each tensor of theta and of the rates, by the central difference of fourth order, for both inner gradients."""
    analytic = []
    for gradient in GRADIENTS:
        model.config = replace(model.config, gradient=gradient)
        analytic.append(meta_gradients(model, context, query))
    g = seeded(9)
    for index, (name, p) in enumerate(model.named_parameters()):
        v, start, value = torch.randn(p.shape, generator=g, dtype=p.dtype), p.detach().clone(), {}
        with torch.no_grad():
            for k in (-2, -1, 1, 2):
                p.copy_(start + k * h * v)
                value[k] = meta_loss(model, context, query).item()
            p.copy_(start)
        numeric = (value[-2] - 8 * value[-1] + 8 * value[1] - value[2]) / (12 * h)
        rounding = 16 * torch.finfo(p.dtype).eps * abs(value[1]) / h
        for gradient, grads in zip(GRADIENTS, analytic, strict=True):
            ours = (grads[index] * v).sum().item()
            assert abs(ours - numeric) < tolerance * grads[index].norm().item() + rounding, f"{name}, {gradient}: {ours} against {numeric}"
            assert abs(numeric) > 1e3 * rounding, f"{name}: too flat to tell"


@every_kind
@pytest.mark.parametrize("constraint", ["free", "softplus"])
def test_meta_gradient_by_finite_differences_smooth(kind: str, constraint: str) -> None:
    model = generic(SPECS["sine"], rates=kind, constraint=constraint, init_rate=0.1)
    assert_finite_differences_agree(model, observe(2, TASKS), observe(2, TASKS, seed=1), h=3e-4, tolerance=1e-8)


@pytest.mark.parametrize("name", ["sine", "skip-3d"])
def test_meta_gradient_by_finite_differences_curvature(name: str) -> None:
    d = SPECS[name].in_dim
    model = generic(SPECS[name], rates="step", curvature="kronecker", init_rate=0.1)
    assert len(dict(model.named_parameters())) == 6 + 6 + 1  # theta, L and R of three layers, rates
    assert_finite_differences_agree(model, observe(d, TASKS), observe(d, TASKS, seed=1), h=3e-4, tolerance=1e-8)


@every_kind
@pytest.mark.parametrize(("name", "norm"), [("relu", "squared"), ("relu", "l1"), ("fourier-3d", "squared")])
def test_meta_gradient_by_finite_differences_relu(name: str, norm: str, kind: str) -> None:
    """The loss is smooth between kinks: the first draw that keeps a hundred steps of the difference away from all of them is taken."""
    spec, h = SPECS[name], 1e-5
    context, query = observe(spec.in_dim, TASKS), observe(spec.in_dim, TASKS, seed=1)
    models = (generic(spec, rates=kind, norm=norm, seed=seed) for seed in range(100))
    model = next(model for model in models if distance_to_kinks(model, context, query) > 100 * h)
    assert_finite_differences_agree(model, context, query, h=h, tolerance=1e-8)


# --------------------------------------------------------------------------------------------------------------- twins


def test_the_fused_form_refuses_fields_that_it_does_not_know() -> None:
    """The loop itself takes the explicit one for them."""
    model, context = generic(SPECS["skip-3d"]), observe(3, TASKS)
    with pytest.raises(ValueError, match="use the explicit one"):
        fused_gradient(model.theta, context, Step(model.spec, model.head))


@every_spec
@pytest.mark.parametrize("norm", ["squared", "l1"])
def test_inner_gradient_twins(name: str, norm: str) -> None:
    """Explicit and autograd, from a theta that all tasks share and from parameters of each task."""
    spec, head = SPECS[name], Distance(norm)
    context = observe(spec.in_dim, TASKS)
    model = generic(spec, norm=norm)
    for phi in (model.theta, model(context)):
        ours = inner_gradient(phi, context, spec, head)
        theirs = inner_gradient_autograd(phi, context, spec, head)
        assert [t.shape for t in tensors(ours)] == [(TASKS, *s) for out, inn in spec.shapes for s in ((out, inn), (out,))]
        assert_close(tensors(ours), tensors(theirs), 1e-13)


@pytest.mark.parametrize("activation", ["relu", "sine"])
@pytest.mark.parametrize("blend", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_head_that_learns_gets_the_same_gradient_in_every_form(activation: str, blend: float, checkpoint: bool) -> None:
    """The weights of the composite loss shape every inner step, and learn by it: in closed form as by autograd."""
    spec = FieldSpec(in_dim=3, out_dim=2, width=6, hidden_layers=1, activation=activation, w0=5.0)
    context, query = observe(3, TASKS), observe(3, TASKS, seed=1)
    results = []
    for gradient in ("fused", "explicit", "autograd"):
        model = MetaSDF(spec, InnerLoopConfig(steps=STEPS, init_rate=0.05, gradient=gradient, checkpoint=checkpoint and gradient != "autograd"),
                        head=DistanceAndSign(), generator=seeded(0)).double()  # fmt: skip
        model.second_order = blend
        with torch.no_grad():
            model.head.log_scale.copy_(torch.tensor([0.2, -0.3]))
        outer = DistanceAndSign().double()
        loss = outer.loss(field(model(context), query.x, spec), query.y).sum()
        names, parameters = zip(*model.named_parameters(), strict=True)
        results.append((loss, *torch.autograd.grad(loss, parameters, allow_unused=True)))
        if not blend:  # first order: the steps are constants
            assert results[-1][1 + names.index("head.log_scale")] is None
    for ours in results[:2]:
        for a, b in zip(ours, results[2], strict=True):
            assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-10, atol=1e-13))


@every_spec
@every_gradient
@pytest.mark.parametrize("blend", [1.0, 0.5, 0.0])
def test_checkpointing_changes_nothing(name: str, gradient: str, blend: float) -> None:
    """The same operations are run again: values and gradients agree to the last bit."""
    spec = SPECS[name]
    context, query = observe(spec.in_dim, TASKS), observe(spec.in_dim, TASKS, seed=1)
    results = []
    for flag in (False, True):
        model = generic(spec, gradient=gradient, checkpoint=flag, rates="parameter_step")
        model.second_order = blend
        results.append((*tensors(model(context)), *meta_gradients(model, context, query)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def kept_numbers(model: MetaSDF, context: Observations) -> int:
    """How many numbers the graph of the inner loop keeps for the backward pass, a tensor kept twice counted once."""
    kept: dict[tuple[int, torch.Size], int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.data_ptr(), t.shape] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        phi = model(context)  # alive until counted
    assert phi[-1].weight.requires_grad
    return sum(kept.values())


def test_checkpointing_keeps_nothing_per_point() -> None:
    """Supplement 2.2.6: memory is O(n m) without it. With it, as in first order, ten times the points cost nothing between steps."""
    few, many = observe(2, TASKS, n=20), observe(2, TASKS, n=200)
    plain, kept = generic(SPECS["relu"]), generic(SPECS["relu"], checkpoint=True)
    first_order = generic(SPECS["relu"])
    first_order.second_order = 0.0
    assert kept_numbers(plain, many) > 5 * kept_numbers(plain, few)
    assert kept_numbers(kept, many) == kept_numbers(kept, few)
    assert kept_numbers(first_order, many) == kept_numbers(first_order, few)


@every_gradient
@pytest.mark.parametrize("steps", [9, 11, 20])
def test_many_steps_are_checkpointed_in_runs(gradient: str, steps: int) -> None:
    """The same values and gradients to the last bit; and of n steps no more parameters are kept than of about 2 sqrt(n)."""
    context, query = observe(2, TASKS), observe(2, TASKS, seed=1)
    results, kept = [], []
    for flag in (False, True):
        model = generic(SPECS["relu"], gradient=gradient, checkpoint=flag, rates="parameter_step", steps=steps, init_rate=1e-3)
        results.append((*tensors(model(context)), *meta_gradients(model, context, query)))
        assert len(model.trajectory(context)) == steps + 1
        kept.append(kept_numbers(model, context))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    own = TASKS * SPECS["relu"].n_params
    assert kept[1] <= (math.isqrt(steps) + 3) * own < steps * own < kept[0]


@every_spec
@every_gradient
def test_a_batch_is_its_tasks_one_by_one(name: str, gradient: str) -> None:
    """Values, with and without a batch dimension; and the meta-gradient of the batch is the sum of theirs."""
    spec = SPECS[name]
    context, query = observe(spec.in_dim, TASKS), observe(spec.in_dim, TASKS, seed=1)
    model = generic(spec, rates="parameter_step", gradient=gradient)
    batched = tensors(model(context))
    for b in range(TASKS):
        alone = Observations(*(t[b] for t in context))
        of_one = Observations(*(t[b : b + 1] for t in context))
        assert_close(tensors(model(alone)), [t[b] for t in batched], 1e-13)
        assert_close(tensors(model(of_one)), [t[b : b + 1] for t in batched], 1e-13)
    pieces = [meta_gradients(model, *(Observations(*(t[b : b + 1] for t in o)) for o in (context, query))) for b in range(TASKS)]
    assert_close(meta_gradients(model, context, query), [sum(column) for column in zip(*pieces, strict=True)], 1e-12)


@every_gradient
def test_batch_dimensions_may_be_many(gradient: str) -> None:
    context = observe(2, 2, 3)
    model = generic(SPECS["relu"], gradient=gradient)
    flat = model(Observations(*(t.flatten(0, 1) for t in context)))
    assert_close(tensors(model(context)), [t.unflatten(0, (2, 3)) for t in tensors(flat)], 1e-13)


def test_bf16_products_stay_near_float32() -> None:
    """Five steps at width 64: adaptation within 2 % in every tensor, the adapted field within 1 % of its range, meta-gradients aligned."""
    spec = FieldSpec(width=64, init="geometric")
    context, query = observe(2, TASKS, n=256, dtype=torch.float32), observe(2, TASKS, n=256, seed=1, dtype=torch.float32)
    model = MetaSDF(spec, InnerLoopConfig(init_rate=1e-2), generator=seeded(0))
    results = {}
    for products in (None, torch.bfloat16):
        model.products = products
        phi = model(context)
        assert {t.dtype for t in tensors(phi)} == {torch.float32}
        flat = [t.reshape(-1) for t in meta_gradients(model, context, query)]
        results[products] = (phi, field(phi, query.x, spec), torch.cat(flat[:8]), torch.cat(flat[8:]))
    (full, out, *grads), (low, low_out, *low_grads) = results[None], results[torch.bfloat16]
    for start, a, b in zip(tensors(model.theta), tensors(low), tensors(full), strict=True):
        assert 0 < (a - b).norm() < 0.02 * (b - start).norm()
    assert (low_out - out).abs().max() < 0.01 * (out.max() - out.min())
    for a, b in zip(low_grads, grads, strict=True):
        assert F.cosine_similarity(a, b, dim=0) > 0.999


# ----------------------------------------------------------------------------------------------- first order and between


@every_kind
@every_gradient
@pytest.mark.parametrize("checkpoint", [False, True])
def test_first_order_is_first_order(kind: str, gradient: str, checkpoint: bool) -> None:
    """With gradients held constant phi_k = theta - sum alpha_j g_j: d/d theta is the identity, d/d alpha_j is -g_j."""
    spec = SPECS["sine"]
    context = observe(2, TASKS)
    model = generic(spec, rates=kind, gradient=gradient, checkpoint=checkpoint)
    second = model(context)
    model.second_order = 0.0
    path = model.trajectory(context)
    assert_close(tensors(path[-1]), tensors(second), 1e-14)  # the value is that of second order

    v = [torch.randn(t.shape, generator=seeded(4), dtype=t.dtype) for t in tensors(path[-1])]
    theta, raw = tensors(model.theta), list(model.rates.parameters())
    grads = torch.autograd.grad(tensors(path[-1]), [*theta, *raw], v)
    assert_close(list(grads[: len(theta)]), [t.sum(0) for t in v], 1e-14)

    leaves = [r.detach().clone().requires_grad_() for r in raw]
    constant = [[g.detach() for g in tensors(inner_gradient(phi, context, spec, model.head))] for phi in path[:-1]]
    minus = [torch.cat([-(a * g).sum(0).reshape(-1) for a, g in zip(v, step, strict=True)]) for step in constant]
    alphas = [reference_rates(leaves, kind, spec, j) for j in range(STEPS)]
    assert_close(list(grads[len(theta) :]), list(torch.autograd.grad(alphas, leaves, minus)), 1e-12)


def graph_of(tensor: Tensor) -> set[str]:
    names, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None:
            names.add(type(node).__name__)
            stack += [parent for parent, _ in node.next_functions]
    return names


@pytest.mark.parametrize("gradient", ["explicit", "autograd"])
def test_first_order_builds_no_graph_inside_the_gradient(gradient: str) -> None:
    """The reference code computed second derivatives and dropped them; here only the updates are recorded. (The fused form never has a
    graph; that it keeps nothing for second derivatives is counted above.)"""
    model = generic(SPECS["relu"], gradient=gradient)
    assert {"ThresholdBackwardBackward0"} & graph_of(model(observe(2, TASKS))[0].weight)
    model.second_order = 0.0
    assert graph_of(model(observe(2, TASKS))[0].weight) == {"AddcmulBackward0", "AccumulateGrad"}


@every_spec
@every_gradient
def test_halfway_is_the_average_after_one_step(name: str, gradient: str) -> None:
    """One step is linear in the blend; several are not, see the reference above. The value never depends on it."""
    spec = SPECS[name]
    context, query = observe(spec.in_dim, TASKS), observe(spec.in_dim, TASKS, seed=1)
    model = generic(spec, steps=1, gradient=gradient)
    grads, values = {}, {}
    for blend in (0.0, 0.5, 1.0):
        model.second_order = blend
        values[blend], grads[blend] = tensors(model(context)), meta_gradients(model, context, query)
    assert_close(values[0.5], values[1.0], 1e-15)
    assert_close(values[0.0], values[1.0], 1e-15)
    assert_close(grads[0.5], [(a + b) / 2 for a, b in zip(grads[0.0], grads[1.0], strict=True)], 1e-13)
    assert any((a - b).abs().max() > 1e-3 * b.abs().max() for a, b in zip(grads[0.0], grads[1.0], strict=True))  # they are not the same


@pytest.mark.parametrize("blend", [-0.1, 1.1, math.nan])
def test_blend_out_of_range_is_refused(blend: float) -> None:
    model = generic(SPECS["relu"])
    model.second_order = blend
    with pytest.raises(ValueError, match=r"second_order must lie in \[0, 1\]"):
        model(observe(2, TASKS))


# --------------------------------------------------------------------------------------------------------------- rates


def test_number_of_rates() -> None:
    spec = SPECS["fourier-3d"]
    tensors_of, parameters = 2 * len(spec.shapes), spec.n_params
    counts = {kind: sum(raw.numel() for raw in Rates(spec, InnerLoopConfig(steps=4, rates=kind)).parameters()) for kind in RATE_KINDS}
    assert counts == {"global": 1, "step": 4, "tensor": tensors_of, "parameter": parameters, "parameter_step": 4 * parameters}


@every_kind
@pytest.mark.parametrize("constraint", ["free", "clip", "softplus"])
def test_rates_start_at_the_initial_rate(kind: str, constraint: str) -> None:
    for start in (1e-1, 5e-3, 2.0):
        rates = Rates(SPECS["relu"], InnerLoopConfig(rates=kind, constraint=constraint, init_rate=start)).double()
        for alpha in tensors(rates(0)):
            torch.testing.assert_close(alpha, torch.full_like(alpha, start), rtol=1e-6, atol=0)  # the rates are made in float32


@every_kind
def test_every_rate_reaches_the_parameters_it_is_named_for(kind: str) -> None:
    """All raw values differ: whoever shares what it should not, or mixes tensors or steps, gives another vector."""
    spec = SPECS["relu"]
    rates = distinct(spec, kind)
    raw = list(rates.parameters())
    assert len({value for r in raw for value in r.reshape(-1).tolist()}) == sum(r.numel() for r in raw)
    seen = []
    for step in range(STEPS):
        flat = [a.expand(shape).reshape(-1) for a, shape in zip(tensors(rates(step)), [t.shape for t in tensors(generic(spec).theta)], strict=True)]
        assert torch.equal(torch.cat(flat), reference_rates(raw, kind, spec, step))
        seen.append(torch.cat(flat))
    assert all(torch.equal(seen[0], other) != (kind in ("step", "parameter_step")) for other in seen[1:])


@every_kind
def test_clipped_rates_are_projected_and_no_others(kind: str) -> None:
    for constraint in ("free", "clip", "softplus"):
        model = generic(SPECS["relu"], rates=kind, constraint=constraint)
        with torch.no_grad():
            for raw in model.rates.parameters():
                raw.sub_(raw.mean() + 0.01)  # about half of them negative, or the only one
        before = [raw.detach().clone() for raw in model.rates.parameters()]
        theta = [t.detach().clone() for t in tensors(model.theta)]
        model.project()
        expected = [raw.clamp(min=0) for raw in before] if constraint == "clip" else before
        assert all(torch.equal(a, b) for a, b in zip(model.rates.parameters(), expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(tensors(model.theta), theta, strict=True))
        lowest = min(alpha.min().item() for step in range(STEPS) for alpha in tensors(model.rates(step)))
        assert (lowest < 0) if constraint == "free" else (lowest >= 0) if constraint == "clip" else (lowest > 0)
        assert all(raw.requires_grad for raw in model.rates.parameters())


def test_projection_lets_clipped_rates_return() -> None:
    """A rate at zero still has its gradient, so that training can raise it again."""
    model = generic(SPECS["sine"], constraint="clip")
    with torch.no_grad():
        for raw in model.rates.parameters():
            raw.fill_(-1.0)
    model.project()
    context, query = observe(2, TASKS), observe(2, TASKS, seed=1)
    assert_same(layers([t[0] for t in tensors(model(context))]), model.theta)  # no step at all
    assert all(torch.autograd.grad(meta_loss(model, context, query), list(model.rates.parameters()))[i].any() for i in range(6))


# ------------------------------------------------------------------------------------------------ more steps than trained


@every_kind
def test_further_steps_repeat_the_last_rates(kind: str) -> None:
    """The reference code fell back silently on another rate. Two steps more are two steps of the last trained rates, to the last bit."""
    context = observe(2, TASKS)
    model = generic(SPECS["relu"], rates=kind)
    path = model.trajectory(context, steps=STEPS + 2)
    assert len(path) == STEPS + 3
    for ours, theirs in zip(path, model.trajectory(context), strict=False):
        assert_same(ours, theirs)

    phi = path[STEPS]
    for ours in path[STEPS + 1 :]:
        alpha = [a.expand(s) for a, s in zip(tensors(model.rates(STEPS - 1)), [t.shape for t in tensors(model.theta)], strict=True)]
        grads = tensors(inner_gradient(phi, context, model.spec, model.head))
        phi = layers([torch.addcmul(p, a, g, value=-1) for p, a, g in zip(tensors(phi), alpha, grads, strict=True)])
        assert_same(ours, phi)


@pytest.mark.parametrize("kind", ["global", "tensor", "parameter"])
def test_rates_without_steps_do_not_know_how_many_were_trained(kind: str) -> None:
    trained, longer = generic(SPECS["relu"], rates=kind), generic(SPECS["relu"], rates=kind, steps=STEPS + 2)
    context = observe(2, TASKS)
    assert_same(trained(context, steps=STEPS + 2), longer(context))


@every_kind
def test_further_steps_can_be_refused(kind: str) -> None:
    model = generic(SPECS["relu"], rates=kind, extra_steps="error")
    context = observe(2, TASKS)
    assert_same(model(context, steps=STEPS), model(context))
    with pytest.raises(ValueError, match="step 4 asked of a prior trained with 3"):
        model(context, steps=STEPS + 1)


@every_kind
def test_fewer_steps_are_the_start_of_the_path(kind: str) -> None:
    model, context = generic(SPECS["relu"], rates=kind), observe(2, TASKS)
    assert_same(model(context, steps=2), model.trajectory(context)[2])
    assert model.trajectory(context, steps=0) == [model.theta]


# ----------------------------------------------------------------------------------------------------------- trajectory


@every_gradient
@pytest.mark.parametrize("checkpoint", [False, True])
def test_trajectory_goes_from_theta_to_the_answer(gradient: str, checkpoint: bool) -> None:
    model, context = generic(SPECS["relu"], gradient=gradient, checkpoint=checkpoint), observe(2, TASKS)
    path = model.trajectory(context)
    assert len(path) == STEPS + 1
    assert all(a is b for a, b in zip(tensors(path[0]), tensors(model.theta), strict=True))
    assert_same(path[-1], model(context))
    assert all(t.shape[0] == TASKS for phi in path[1:] for t in tensors(phi))
    with torch.no_grad():
        losses = [model.head.loss(field(phi, context.x, model.spec), context.y) for phi in path]
    assert all((after < before).all() for before, after in pairwise(losses))  # it is a descent


@every_gradient
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("blend", [1.0, 0.5, 0.0])
def test_without_grad_mode_nothing_requires_grad(gradient: str, checkpoint: bool, blend: float) -> None:
    model, context = generic(SPECS["relu"], gradient=gradient, checkpoint=checkpoint), observe(2, TASKS)
    model.second_order = blend
    with_grad = model.trajectory(context)
    with torch.no_grad():
        path = model.trajectory(context)
    assert not any(t.requires_grad for phi in path[1:] for t in tensors(phi))
    assert all(t.requires_grad for phi in with_grad[1:] for t in tensors(phi))
    assert all(p.grad is None for p in model.parameters())
    for ours, theirs in zip(path, with_grad, strict=True):
        assert_close(tensors(ours), tensors(theirs), 1e-14)


@every_gradient
def test_a_frozen_prior_still_adapts(gradient: str) -> None:
    model, context = generic(SPECS["relu"], gradient=gradient), observe(2, TASKS)
    expected = model(context)
    model.requires_grad_(False)
    assert_close(tensors(model(context)), tensors(expected), 1e-14)


@every_gradient
def test_a_partly_frozen_prior_still_adapts(gradient: str) -> None:
    model, context = generic(SPECS["relu"], gradient=gradient), observe(2, TASKS)
    expected = model(context)
    model.theta[0].weight.requires_grad_(False)
    assert_close(tensors(model(context)), tensors(expected), 1e-14)


# --------------------------------------------------------------------------------------------- symmetry and independence


@every_spec
@every_gradient
def test_the_order_of_the_context_does_not_matter(name: str, gradient: str) -> None:
    spec = SPECS[name]
    context, query = observe(spec.in_dim, TASKS), observe(spec.in_dim, TASKS, seed=1)
    order = torch.randperm(POINTS, generator=seeded(2))
    shuffled = Observations(*(t[:, order] for t in context))
    model = generic(spec, gradient=gradient)
    assert_close(tensors(model(shuffled)), tensors(model(context)), 1e-13)
    assert_close(meta_gradients(model, shuffled, query), meta_gradients(model, context, query), 1e-12)


@every_spec
@every_gradient
def test_a_context_seen_twice_counts_once(name: str, gradient: str) -> None:
    """The inner loss is a mean over points, so that one set of rates serves any number of them."""
    spec = SPECS[name]
    context = observe(spec.in_dim, TASKS)
    model = generic(spec, gradient=gradient)
    twice = Observations(*(torch.cat((t, t), -2) for t in context))
    assert_close(tensors(model(twice)), tensors(model(context)), 1e-13)


@every_spec
@every_gradient
def test_equal_tasks_move_equally_whatever_their_number(name: str, gradient: str) -> None:
    """The inner loss is summed over tasks, never averaged."""
    spec = SPECS[name]
    one = observe(spec.in_dim, 1)
    many = Observations(*(t.expand(4, -1, -1) for t in one))
    model = generic(spec, gradient=gradient)
    assert_close(tensors(model(many)), [t.expand(4, *t.shape[1:]) for t in tensors(model(one))], 1e-13)


@every_kind
@every_gradient
def test_a_broken_task_breaks_no_other(kind: str, gradient: str) -> None:
    """Even NaN stays in its own task: the others keep every bit."""
    context = observe(2, TASKS)
    poisoned = Observations(context.x.clone(), context.y.clone())
    poisoned.x[1], poisoned.y[1] = math.nan, math.inf
    model = generic(SPECS["relu"], rates=kind, gradient=gradient)
    for ours, theirs in zip(tensors(model(poisoned)), tensors(model(context)), strict=True):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
        assert not torch.equal(ours[1], theirs[1])


@every_gradient
def test_no_gradient_flows_between_tasks(gradient: str) -> None:
    context = Observations(*(t.requires_grad_() for t in observe(2, TASKS)))
    model = generic(SPECS["relu"], gradient=gradient)
    dx, dy = torch.autograd.grad(sum(t[1].square().sum() for t in tensors(model(context))), [context.x, context.y])
    for grad in (dx, dy):
        assert grad[1].any() and not grad[[0, 2]].any()


def test_curvature_is_a_kronecker_product() -> None:
    """vec(L G R) = (L x R^T) vec(G) with rows one after the other, and L on the bias."""
    model = generic(SPECS["relu"], curvature="kronecker")
    grads = inner_gradient(model.theta, observe(2, TASKS), model.spec, model.head)
    assert model.curvature is not None
    for index, (ours, g) in enumerate(zip(model.curvature(grads), grads, strict=True)):
        left, right = model.curvature.left[index], model.curvature.right[index]
        for task in range(TASKS):
            torch.testing.assert_close(ours.weight[task].flatten(), torch.kron(left, right.mT.contiguous()) @ g.weight[task].flatten())
            torch.testing.assert_close(ours.bias[task], left @ g.bias[task])


@every_gradient
def test_curvature_starts_as_plain_rates(gradient: str) -> None:
    plain = generic(SPECS["relu"], rates="parameter_step", gradient=gradient)
    curved = MetaSDF(plain.spec, replace(plain.config, curvature="kronecker")).double()
    curved.load_state_dict(curved.state_dict() | plain.state_dict())
    assert_close(tensors(curved(observe(2, TASKS))), tensors(plain(observe(2, TASKS))), 1e-14)


@every_gradient
def test_curvature_in_checkpoints_and_low_precision(gradient: str) -> None:
    context, query = observe(2, TASKS, dtype=torch.float32), observe(2, TASKS, seed=1, dtype=torch.float32)
    model = generic(SPECS["relu"], curvature="kronecker", gradient=gradient, checkpoint=True).float()
    exact = meta_gradients(model, context, query)
    model.config = replace(model.config, checkpoint=False)
    assert_close(exact, meta_gradients(model, context, query), 1e-5)
    model.products = torch.bfloat16
    rounded = meta_gradients(model, context, query)
    assert all(g.dtype == torch.float32 for g in rounded)
    assert sum((a - b).norm() for a, b in zip(rounded, exact, strict=True)) < 0.1 * sum(b.norm() for b in exact)


@every_gradient
@pytest.mark.parametrize("products", [None, torch.bfloat16])
def test_a_loop_that_diverged_is_seen(gradient: str, products: torch.dtype | None) -> None:
    """NaN must not end as a zero inside: the integers of the fused ReLU take a negative NaN for a negative number."""
    model = MetaSDF(FieldSpec(width=32), InnerLoopConfig(gradient=gradient, init_rate=1e6), generator=seeded(0))
    model.products = products
    context, query = observe(2, TASKS, dtype=torch.float32), observe(2, TASKS, seed=1, dtype=torch.float32)
    out = field(model(context), query.x, model.spec, products=products)
    assert not out.isfinite().flatten(1).all(1).any()


# -------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"rates": "layer"}, "one of global, step, tensor, parameter, parameter_step, got 'layer'"),
        ({"constraint": "relu"}, "free, clip or softplus, got 'relu'"),
        ({"extra_steps": "wrap"}, "last or error, got 'wrap'"),
        ({"gradient": "numeric"}, "fused, explicit or autograd, got 'numeric'"),
        ({"curvature": "full"}, "diagonal or kronecker, got 'full'"),
        ({"init_rate": 0.0}, "init_rate must be positive, got 0.0"),
        ({"init_rate": -0.1}, "init_rate must be positive"),
        ({"init_rate": math.nan}, "init_rate must be positive, got nan"),
    ],
)
def test_config_refuses_what_it_cannot_mean(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InnerLoopConfig(**change)


def test_defaults_are_the_papers() -> None:
    """Supplement 2.2.2: 5 steps, rates per parameter from 1e-1; second order."""
    config = InnerLoopConfig()
    assert (config.steps, config.rates, config.init_rate, config.constraint) == (5, "parameter", 1e-1, "free")
    model = MetaSDF(FieldSpec(width=4))
    assert model.second_order == 1.0 and model.products is None
    assert isinstance(model.head, Distance) and model.head.norm == "squared"


def test_head_and_field_must_agree() -> None:
    class Two(Head):
        channels = 2

    with pytest.raises(ValueError, match="the head reads 2 outputs, the field has 1"):
        MetaSDF(FieldSpec(width=4), head=Two())


def test_the_generator_decides_theta() -> None:
    one, same, other = (MetaSDF(FieldSpec(width=4), generator=seeded(s)) for s in (1, 1, 2))
    assert_same(one.theta, same.theta)
    assert not torch.equal(one.theta[0].weight, other.theta[0].weight)


# ------------------------------------------------------------------------------------------------------------ pruned contexts


@every_spec
def test_gradient_pruning_keeps_the_points_that_pull_most_at_the_last_layer(name: str) -> None:
    """Against the gradient of each point's own loss, by autograd."""
    spec = SPECS[name]
    model, context = generic(spec, pruned="gradient", keep=0.25), observe(spec.in_dim, TASKS, n=20)
    phi = model(context)  # its own for each task
    kept = pruned(context, phi, 0, spec=spec, head=model.head, config=model.config)
    assert kept.x.shape == (TASKS, 5, spec.in_dim)
    for task in range(TASKS):
        own = tuple(Layer(w[task].detach().requires_grad_(), b[task].detach().requires_grad_()) for w, b in phi)
        sizes = []
        for x, y in zip(context.x[task], context.y[task], strict=True):
            loss = model.head.loss(field(own, x[None], spec), y[None])
            sizes.append(float(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(own[-1]))]).norm()))
        expected = sorted(range(20), key=lambda i: -sizes[i])[:5]
        assert {tuple(x) for x in kept.x[task].tolist()} == {tuple(x) for x in context.x[task, expected].tolist()}


def test_random_pruning_goes_round() -> None:
    spec, context = FieldSpec(width=4, hidden_layers=0), observe(2, TASKS, n=8)
    model = generic(spec, pruned="random", keep=0.25)
    parts = [pruned(context, model.theta, j, spec=spec, head=model.head, config=model.config) for j in range(5)]
    assert torch.equal(torch.cat([part.x for part in parts[:4]], -2), context.x) and torch.equal(parts[4].y, context.y[..., :2, :])


@pytest.mark.parametrize("way", ["random", "gradient"])
@every_gradient
def test_pruning_is_for_training(way: str, gradient: str) -> None:
    spec, context = SPECS["relu"], observe(SPECS["relu"].in_dim, TASKS)
    model, plain = generic(spec, pruned=way, gradient=gradient), generic(spec, gradient=gradient)
    assert all(torch.equal(a, b) for a, b in zip(tensors(model(context)), tensors(plain(context)), strict=True))
    model.pruning = True
    assert not torch.equal(model(context)[0].weight, plain(context)[0].weight)
    meta_gradients(model, context, observe(spec.in_dim, TASKS, seed=1))
