"""Fields against plain modules of torch, their explicit gradients against autograd, and what initialisation promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from metasdf.conditioning import deepsdf
from metasdf.experiments import from_dict, to_dict
from metasdf.fields import Dropout, FieldSpec, Layer, Params, encode, field, field_vjp, initialise

SPECS = {
    "relu": FieldSpec(width=9),
    "relu-two-outputs": FieldSpec(width=9, hidden_layers=1, out_dim=2),
    "relu-shallow": FieldSpec(width=9, hidden_layers=0),
    "sine": FieldSpec(width=9, hidden_layers=1, activation="sine"),
    "fourier": FieldSpec(width=9, hidden_layers=1, frequencies=3),
    "fourier-sine": FieldSpec(width=9, hidden_layers=1, frequencies=2, activation="sine", w0=3.0, out_dim=2),
    "skip": FieldSpec(width=9, skip=(2,), narrow=4),
    "skip-fourier-sine": FieldSpec(width=9, hidden_layers=1, frequencies=1, activation="sine", w0=3.0, skip=(1, 2)),
}
# Which tensors have one value per task: (batch of the coordinates, weights per task, biases per task), the last two by layer index.
SHARING = {
    "no-batch": ((), lambda i: False, lambda i: False),
    "all-shared": ((3,), lambda i: False, lambda i: False),
    "all-per-task": ((3,), lambda i: True, lambda i: True),
    "biases-per-task": ((3,), lambda i: False, lambda i: True),
    "weights-per-task": ((3,), lambda i: True, lambda i: False),
    "layers-alternate": ((3,), lambda i: i % 2 == 0, lambda i: i % 2 == 0),
    "one-task": ((1,), lambda i: True, lambda i: False),
    "batch-of-batches": ((2, 3), lambda i: i != 1, lambda i: i != 0),
}
both_dimensions = pytest.mark.parametrize("d", [2, 3])
every_spec = pytest.mark.parametrize("name", SPECS)
every_sharing = pytest.mark.parametrize("sharing", SHARING)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64).mul(2).sub(1).to(dtype)


def example(spec: FieldSpec, sharing: str, *, n: int = 11, dtype: torch.dtype = torch.float64) -> tuple[Params, Tensor]:
    """Parameters at a generic point (no bias is zero), shared between tasks as `sharing` says, and coordinates."""
    batch, weight_per_task, bias_per_task = SHARING[sharing]
    g = seeded(len(sharing))

    def normal(batch: tuple[int, ...], shape: tuple[int, ...], scale: float) -> Tensor:
        return (scale * torch.randn(*batch, *shape, generator=g, dtype=torch.float64)).to(dtype)

    layers = []
    for i, (out, inn) in enumerate(spec.shapes):
        scale = math.sqrt(2.0 / inn) if spec.activation == "relu" or i == 0 else math.sqrt(2.0 / inn) / spec.w0
        weight = normal(batch if weight_per_task(i) else (), (out, inn), scale)
        layers.append(Layer(weight, normal(batch if bias_per_task(i) else (), (out,), 0.3 * scale)))
    return tuple(layers), uniform(*batch, n, spec.in_dim, seed=1, dtype=dtype)


def of_task(params: Params, index: tuple[int, ...]) -> Params:
    """The parameters of one task, shared tensors as they are."""
    return tuple(Layer(w if w.dim() == 2 else w[index], b if b.dim() == 1 else b[index]) for w, b in params)


def expanded(params: Params, batch: tuple[int, ...]) -> list[Tensor]:
    """A leaf of its own for every task."""
    flat = [t.expand(*batch, *t.shape[-n:]) for layer in params for t, n in zip(layer, (2, 1), strict=True)]
    return [t.detach().clone().requires_grad_() for t in flat]


def layered(flat: list[Tensor]) -> Params:
    return tuple(Layer(w, b) for w, b in zip(flat[0::2], flat[1::2], strict=True))


class Sine(nn.Module):
    def __init__(self, w0: float) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, z: Tensor) -> Tensor:
        return (self.w0 * z).sin()


def plain_features(x: Tensor, frequencies: int) -> Tensor:
    """Fourier features of (N, d) written out: x, then all sines, then all cosines, coordinate by coordinate."""
    columns = [x[:, i] for i in range(x.shape[1])]
    for function in (torch.sin, torch.cos):
        columns += [function(2**k * math.pi * x[:, i]) for i in range(x.shape[1]) for k in range(frequencies)]
    return torch.stack(columns, 1)


class PlainNetwork(nn.Module):
    """The same network of one task, built from the modules of torch."""

    def __init__(self, params: Params, spec: FieldSpec) -> None:
        super().__init__()
        self.activation = nn.ReLU() if spec.activation == "relu" else Sine(spec.w0)
        self.skip = spec.skip
        self.layers = nn.ModuleList()
        for weight, bias in params:
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
            self.layers.append(linear)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for index, layer in enumerate(self.layers):
            if index:
                h = self.activation(h)
            h = layer(torch.cat((h, x), 1) if index in self.skip else h)
        return h


def plain_field(params: Params, x: Tensor, spec: FieldSpec) -> Tensor:
    """Task by task through `PlainNetwork`."""
    batch = x.shape[:-2]
    if not batch:
        return PlainNetwork(params, spec)(plain_features(x, spec.frequencies)).detach()
    out = torch.empty(*x.shape[:-1], spec.out_dim, dtype=x.dtype)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in batch]).reshape(-1, len(batch)).tolist():
        out[tuple(index)] = PlainNetwork(of_task(params, tuple(index)), spec)(plain_features(x[tuple(index)], spec.frequencies)).detach()
    return out


# ---------------------------------------------------------------------------------------------------------------- values


@both_dimensions
@every_sharing
@every_spec
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)], ids=["float32", "float64"])
def test_field_is_the_network_it_describes(name: str, sharing: str, d: int, dtype: torch.dtype, tolerance: float) -> None:
    spec = replace(SPECS[name], in_dim=d)
    params, x = example(spec, sharing, dtype=dtype)
    out = field(params, x, spec)
    assert out.dtype == dtype
    torch.testing.assert_close(out, plain_field(params, x, spec), rtol=tolerance, atol=tolerance)


def test_layer_shapes_follow_the_papers_words() -> None:
    # "four layers (i.e., two hidden layers)", 256 units: hidden layers are those from hidden to hidden.
    assert FieldSpec().shapes == ((256, 2), (256, 256), (256, 256), (1, 256))
    spec = FieldSpec(in_dim=3, frequencies=5, width=7, hidden_layers=1, out_dim=2)
    assert spec.shapes == ((7, 33), (7, 7), (2, 7))
    assert spec.n_params == sum(t.numel() for layer in initialise(spec) for t in layer)


def test_coordinates_enter_again_beside_fewer_hidden_units() -> None:
    """DeepSDF's fifth layer reads 253 hidden units beside 3 coordinates and, which the field does not know of, 256 numbers of code: 512."""
    assert deepsdf.FIELD.shapes == ((512, 3), (512, 512), (512, 512), (253, 512), (512, 256), *[(512, 512)] * 3, (1, 512))
    assert FieldSpec(width=7, frequencies=1, skip=(1, 3)).shapes == ((7, 6), (7, 13), (7, 7), (1, 13))
    assert from_dict(FieldSpec, to_dict(deepsdf.FIELD)) == deepsdf.FIELD


def test_fourier_features_are_off_by_default() -> None:
    x = uniform(4, 2, seed=0)
    assert encode(x, FieldSpec()) is x


@both_dimensions
@pytest.mark.parametrize("activation", ["relu", "sine"])
def test_concatenating_a_code_is_a_bias_per_task(d: int, activation: str) -> None:
    """Supplement section 1: eq. 2, W (x || z) + b, and eq. 3, W_hypo x + (W_hyper z + b), are the same field.

    As in the paper the code enters twice: beside the coordinates and again at the third layer. Here it is repeated per point, once; the library
    never does that, it gives layers 0 and 2 a bias per task and shares all weights.
    """
    tasks, n, code = 4, 13, 6
    spec = FieldSpec(in_dim=d, width=8, activation=activation, w0=2.0)
    g = seeded(3)
    z = torch.randn(tasks, code, generator=g, dtype=torch.float64)
    x = uniform(tasks, n, d, seed=4)
    wide = [torch.randn(out, inn + (code if i in (0, 2) else 0), generator=g, dtype=torch.float64) for i, (out, inn) in enumerate(spec.shapes)]
    bias = [torch.randn(out, generator=g, dtype=torch.float64) for out, _ in spec.shapes]

    h = x
    for i, (w, b) in enumerate(zip(wide, bias, strict=True)):  # eq. 2
        if i in (0, 2):
            h = torch.cat((h, z[:, None].expand(-1, n, -1)), -1)
        h = h @ w.T + b
        if i < 3:
            h = h.relu() if activation == "relu" else (2.0 * h).sin()

    params = []
    for i, (w, b) in enumerate(zip(wide, bias, strict=True)):  # eq. 3
        inn = spec.shapes[i][1]
        params.append(Layer(w[:, :inn], z @ w[:, inn:].T + b if i in (0, 2) else b))
    assert [layer.bias.dim() for layer in params] == [2, 1, 2, 1]
    torch.testing.assert_close(field(tuple(params), x, spec), h, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- gradients


@both_dimensions
@every_sharing
@every_spec
def test_vjp_is_the_gradient_of_each_task(name: str, sharing: str, d: int) -> None:
    """Even a tensor that every task shares gets one gradient per task."""
    spec = replace(SPECS[name], in_dim=d)
    params, x = example(spec, sharing)
    batch = x.shape[:-2]
    out, vjp = field_vjp(params, x, spec)
    assert torch.equal(out, field(params, x, spec))
    g = uniform(*out.shape, seed=2)
    grads = [t for layer in vjp(g) for t in layer]

    own = expanded(params, batch)
    by_autograd = torch.autograd.grad(field(layered(own), x, spec), own, g)
    for ours, theirs in zip(grads, by_autograd, strict=True):
        assert ours.shape == theirs.shape  # (*B, out, in) or (*B, out)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)

    _, by_func = torch.func.vjp(lambda p: field(p, x, spec), layered([t.detach() for t in own]))
    for ours, theirs in zip(grads, [t for layer in by_func(g)[0] for t in layer], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@every_spec
def test_vjp_of_shared_parameters_sums_to_the_shared_gradient(name: str) -> None:
    """What torch.func gives for a shared theta is the sum over tasks of ours."""
    spec = SPECS[name]
    params, x = example(spec, "all-shared")
    out, vjp = field_vjp(params, x, spec)
    g = uniform(*out.shape, seed=2)
    _, shared = torch.func.vjp(lambda p: field(p, x, spec), params)
    for ours, theirs in zip(vjp(g), shared(g)[0], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.sum(0), b, rtol=1e-11, atol=1e-12)


@both_dimensions
@every_spec
@pytest.mark.parametrize("sharing", ["all-shared", "all-per-task", "biases-per-task", "weights-per-task", "no-batch"])
def test_vjp_is_differentiated_like_double_backward(name: str, sharing: str, d: int) -> None:
    """<v, vjp(g)> differentiated by params, x and g: one plain backward here, double backward there. ReLU included, away from its kink."""
    spec = replace(SPECS[name], in_dim=d)
    params, x = example(spec, sharing)
    flat = [t.requires_grad_() for layer in params for t in layer]
    x.requires_grad_()
    g = uniform(*x.shape[:-1], spec.out_dim, seed=2).requires_grad_()
    _, vjp = field_vjp(params, x, spec)
    grads = [t for layer in vjp(g) for t in layer]
    v = [uniform(*t.shape, seed=3 + i) for i, t in enumerate(grads)]
    ours = torch.autograd.grad(sum((a * b).sum() for a, b in zip(grads, v, strict=True)), [*flat, x, g], allow_unused=True)

    own = [t.expand(*x.shape[:-2], *t.shape[-n:]) for layer in params for t, n in zip(layer, (2, 1), strict=True)]
    first = torch.autograd.grad(field(layered(own), x, spec), own, g, create_graph=True)
    theirs = torch.autograd.grad(sum((a * b).sum() for a, b in zip(first, v, strict=True)), [*flat, x, g], allow_unused=True)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a is None or b is None:  # piecewise linear in the biases, and linear in the last one: nothing to differentiate
            assert not (a if a is not None else torch.zeros(1)).any() and not (b if b is not None else torch.zeros(1)).any(), index
        else:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * max(1.0, b.abs().max().item()))


@both_dimensions
@pytest.mark.parametrize(("skip", "narrow"), [((), 0), ((1, 2), 1)])
def test_vjp_passes_the_finite_differences_of_its_own_derivatives(d: int, skip: tuple[int, ...], narrow: int) -> None:
    """For the smooth field, torch's gradcheck of (theta, x, g) -> vjp(g), with tensors shared and per task, and one derivative further."""
    spec = FieldSpec(in_dim=d, width=3, hidden_layers=1, activation="sine", w0=2.0, skip=skip, narrow=narrow)
    params, x = example(spec, "layers-alternate", n=3)
    flat = [t.requires_grad_() for layer in params for t in layer]
    g = uniform(*x.shape[:-1], 1, seed=2).requires_grad_()

    def gradient(x: Tensor, g: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        out, vjp = field_vjp(layered(list(flat)), x, spec)
        return (out, *(t for layer in vjp(g) for t in layer))

    inputs = (x.requires_grad_(), g, *flat)
    assert torch.autograd.gradcheck(gradient, inputs, eps=1e-6, atol=1e-7, rtol=1e-6)
    assert torch.autograd.gradgradcheck(gradient, inputs, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)


def test_vjp_keeps_the_dtype_of_the_parameters() -> None:
    for dtype in (torch.float32, torch.float64):
        params, x = example(SPECS["relu"], "all-shared", dtype=dtype)
        for products in (None, torch.bfloat16):
            out, vjp = field_vjp(params, x, SPECS["relu"], products=products)
            assert {t.dtype for layer in vjp(torch.ones_like(out)) for t in layer} == {out.dtype} == {dtype}


# -------------------------------------------------------------------------------------------------------- initialisation


def fresh(spec: FieldSpec, seed: int, dtype: torch.dtype = torch.float64) -> Params:
    return initialise(spec, generator=seeded(seed), dtype=dtype)


def test_uniform_initialisation_is_torchs_own() -> None:
    """Weights and biases fill +-1/sqrt(inputs), as those of torch.nn.Linear do."""
    for (weight, bias), (_, inn) in zip(fresh(spec := FieldSpec(width=400, init="uniform"), 0), spec.shapes, strict=True):
        bound = inn**-0.5
        assert weight.abs().max() <= bound and bias.abs().max() <= bound
        if weight.numel() > 1000:
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("activation", "init"), [("relu", "standard"), ("relu", "spread"), ("relu", "geometric"), ("relu", "uniform"),
                                                  ("sine", "standard")])  # fmt: skip
def test_initialisation_depends_on_its_generator_alone(activation: str, init: str) -> None:
    spec = FieldSpec(width=6, activation=activation, init=init)
    torch.manual_seed(98)  # the global generator must not matter
    one = fresh(spec, 1)
    torch.manual_seed(99)
    again, other = fresh(spec, 1), fresh(spec, 2)
    assert all(torch.equal(a, b) for p, q in zip(one, again, strict=True) for a, b in zip(p, q, strict=True))
    assert all(not torch.equal(p.weight, q.weight) for p, q in zip(one, other, strict=True))
    assert tuple(tuple(layer.weight.shape) for layer in one) == spec.shapes
    assert {t.dtype for layer in fresh(spec, 1, torch.float32) for t in layer} == {torch.float32}


def assert_std(t: Tensor, expected: float, sigmas: float = 5.0) -> None:
    """The standard deviation of a normal sample of this size has the relative error 1 / sqrt(2 n)."""
    assert abs(t.std().item() / expected - 1) < sigmas / math.sqrt(2 * t.numel()), f"std {t.std().item()}, expected {expected}"


@both_dimensions
def test_kaiming_statistics(d: int) -> None:
    spec = FieldSpec(in_dim=d, width=384, frequencies=4 * (d - 2))
    for (weight, bias), (_, inn) in zip(fresh(spec, 0), spec.shapes, strict=True):
        assert_std(weight, math.sqrt(2.0 / inn))
        assert abs(weight.mean().item()) < 5 * math.sqrt(2.0 / inn / weight.numel())
        assert not bias.any()
    inside = (fresh(spec, 0)[1].weight.abs() < math.sqrt(2.0 / spec.width)).double().mean().item()
    assert abs(inside - 0.6827) < 0.01  # a normal distribution, not a uniform one (0.577)


@both_dimensions
@pytest.mark.parametrize("skip", [(), (2,)])
def test_spread_starts_no_unit_dead_or_linear(d: int, skip: tuple[int, ...]) -> None:
    """Kaiming weights; every hidden unit is on at some points of the domain and off at others, where standard biases leave a part dead."""
    spec = FieldSpec(in_dim=d, width=384, init="spread", skip=skip)
    params = fresh(spec, 0)
    h = x = uniform(4000, d, seed=1) / 2  # the cube of side 1
    for index, ((weight, bias), (_, inn)) in enumerate(zip(params[:-1], spec.shapes, strict=False)):
        assert_std(weight, math.sqrt(2.0 / inn))
        h = ((torch.cat((h, x), 1) if index in skip else h) @ weight.T + bias).relu()
        on = (h > 0).double().mean(0)
        assert ((on == 0) | (on == 1)).double().mean() < 0.01  # but for kinks that only cut a corner off
        assert 0.4 < on.mean() < 0.6
    assert not params[-1].bias.any()
    standard = fresh(FieldSpec(in_dim=d, width=384), 0)
    h = uniform(4000, d, seed=1) / 2
    for weight, bias in standard[:2]:
        h = (h @ weight.T + bias).relu()
    assert (h > 0).any(0).double().mean() < 0.99


@both_dimensions
def test_kaiming_keeps_the_variance_from_layer_to_layer(d: int) -> None:
    """He et al.: the mean square of the values before the activation is the same in every layer."""
    spec = FieldSpec(in_dim=d, width=384, hidden_layers=3)
    h, squares = uniform(200, d, seed=1), []
    for weight, bias in fresh(spec, 0)[:-1]:
        z = h @ weight.T + bias
        squares.append(z.square().mean().item())
        h = z.relu()
    assert max(squares) / min(squares) < 1.35


@both_dimensions
def test_siren_statistics(d: int) -> None:
    """Sitzmann et al. 2020, 3.2: U(-1/n, 1/n) first, U(-sqrt(6/n)/w0, sqrt(6/n)/w0) after; then sin's arguments are near N(0, 1)."""
    spec = FieldSpec(in_dim=d, width=384, activation="sine")
    params = fresh(spec, 0)
    for index, ((weight, bias), (_, inn)) in enumerate(zip(params, spec.shapes, strict=True)):
        bound = 1.0 / inn if index == 0 else math.sqrt(6.0 / inn) / 30.0
        assert 0.97 * bound < weight.abs().max().item() <= bound
        assert_std(weight, bound / math.sqrt(3))
        assert bias.abs().max().item() <= 1.0 / math.sqrt(inn) and bias.any()
    h = uniform(400, d, seed=1)
    for index, (weight, _) in enumerate(params[:-1]):
        z = 30.0 * h @ weight.T  # the rule is derived without biases
        if index:
            assert 0.9 < z.std().item() < 1.1
        h = z.sin()


def test_siren_scales_with_its_frequency() -> None:
    slow, fast = (FieldSpec(width=64, activation="sine", w0=w0) for w0 in (10.0, 40.0))
    ratio = [(p.weight / q.weight).mean().item() for p, q in zip(fresh(slow, 0), fresh(fast, 0), strict=True)]
    assert ratio == pytest.approx([1.0, 4.0, 4.0, 4.0])


def sphere_errors(spec: FieldSpec, seeds: int) -> Tensor:
    """Phi(x) - (|x| - 1/2) of fresh fields, (seeds, points)."""
    x = uniform(300, spec.in_dim, seed=7)
    with torch.no_grad():
        outs = torch.stack([field(fresh(spec, s), x, spec) for s in range(seeds)])
    return (outs - (x.norm(dim=-1, keepdim=True) - 0.5)).squeeze(-1)


@both_dimensions
@pytest.mark.parametrize(("frequencies", "skip"), [(0, ()), (3, ()), (0, (2, 3)), (3, (1,))])
def test_geometric_initialisation_is_a_sphere(d: int, frequencies: int, skip: tuple[int, ...]) -> None:
    """Atzmon and Lipman 2020, theorem 1, holds for infinite width: at 512 one draw is off by 0.07 to 0.09 (rms), the mean of 12 hardly."""
    spec = FieldSpec(in_dim=d, width=512, init="geometric", frequencies=frequencies, skip=skip)
    errors = sphere_errors(spec, 12)
    assert errors.square().mean().sqrt() < 0.12
    assert errors.mean(0).abs().max() < 0.10  # at every point
    assert abs(errors.mean()) < 0.03


@both_dimensions
def test_geometric_initialisation_converges_with_the_width(d: int) -> None:
    """The error falls like 1 / sqrt(width), as of any mean over units: four times from 32 to 512."""
    spec = FieldSpec(in_dim=d, hidden_layers=1, init="geometric")
    narrow, wide = (sphere_errors(replace(spec, width=width), 12).square().mean().sqrt().item() for width in (32, 512))
    assert 3 < narrow / wide < 6


@both_dimensions
@pytest.mark.parametrize("hidden_layers", [0, 2, 6])
def test_geometric_initialisation_has_the_signs_of_a_sphere(d: int, hidden_layers: int) -> None:
    spec = FieldSpec(in_dim=d, width=256, hidden_layers=hidden_layers, init="geometric")
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * d)
    for seed in range(5):
        params = fresh(spec, seed)
        assert field(params, torch.zeros(1, d, dtype=torch.float64), spec).item() == -0.5  # biases are zero: exact
        assert (field(params, corners, spec) > 0).all()


# ------------------------------------------------------------------------------------------------------ products in bfloat16

BF16_STEP = 2.0**-8  # relative spacing of bfloat16


@both_dimensions
@pytest.mark.parametrize("sharing", ["no-batch", "all-shared", "all-per-task", "biases-per-task"])
@pytest.mark.parametrize(("frequencies", "skip"), [(0, ()), (5, ()), (1, (1, 2))])
def test_bf16_products_stay_close_to_float32(d: int, sharing: str, frequencies: int, skip: tuple[int, ...]) -> None:
    """Values within 4 % of their scale (0.4 to 3 % in practice); gradients within 20 % in norm: kinks, as the next test shows by avoiding them.

    A unit within rounding of its kink is on in one precision and off in the other. They are few, but in a sum over points that cancels to the
    square root of its length, as for errors of random signs, they weigh the square root of their share.
    """
    spec = FieldSpec(in_dim=d, width=64, frequencies=frequencies, skip=skip)
    params, x = example(spec, sharing, n=200, dtype=torch.float32)
    full, full_vjp = field_vjp(params, x, spec)
    low, low_vjp = field_vjp(params, x, spec, products=torch.bfloat16)
    assert low.dtype == torch.float32 and not torch.equal(low, full)
    assert (low - full).abs().max() < 0.04 * full.abs().max()
    assert relative_errors(low_vjp, full_vjp, uniform(*full.shape, seed=5, dtype=torch.float32)).max() < 0.20


@both_dimensions
@pytest.mark.parametrize("frequencies", [0, 5])
def test_bf16_gradient_is_close_away_from_kinks(d: int, frequencies: int) -> None:
    """Biases hold every unit well inside its linear region: then the gradient of every tensor is within 1 %, whatever the signs of the errors."""
    spec = FieldSpec(in_dim=d, width=64, frequencies=frequencies)
    params, x = example(spec, "biases-per-task", n=200, dtype=torch.float32)
    held, h = [], plain_features(x.flatten(0, 1), frequencies).unflatten(0, x.shape[:2])
    for index, (weight, bias) in enumerate(params):
        z = h @ weight.T
        sign = torch.ones(weight.shape[0])
        if index < 3:  # on and off units in turn, at least one standard deviation from the kink
            sign[::2] = -1.0
            bias = sign * (z.abs().amax((0, 1)) + z.std())
        held.append(Layer(weight, bias.expand(3, -1)))
        h = (z + bias.unsqueeze(-2)).relu()
    full, full_vjp = field_vjp(tuple(held), x, spec)
    low, low_vjp = field_vjp(tuple(held), x, spec, products=torch.bfloat16)
    assert (low - full).abs().max() < 0.04 * full.abs().max()
    for g in (torch.ones_like(full), uniform(*full.shape, seed=5, dtype=torch.float32)):
        assert relative_errors(low_vjp, full_vjp, g).max() < 0.01


def relative_errors(ours: Callable[[Tensor], Params], theirs: Callable[[Tensor], Params], g: Tensor) -> Tensor:
    """Of each tensor, in norm."""
    pairs = [(a, b) for p, q in zip(ours(g), theirs(g), strict=True) for a, b in zip(p, q, strict=True)]
    assert all(a.shape == b.shape for a, b in pairs)
    return torch.stack([(a - b).norm() / b.norm() for a, b in pairs])


def steep(at: float, *, again: bool = False) -> tuple[Params, FieldSpec]:
    """Phi(x) = 128 (x_0 - at), so that the coordinate decides every digit; all parameters are exact in bfloat16. again: in the second layer."""
    spec = FieldSpec(in_dim=2, width=1, hidden_layers=0, skip=(1,) if again else ())
    line = torch.tensor([[128.0, 0.0]]), torch.tensor([-128.0 * at])
    if again:
        return (Layer(torch.zeros(1, 2), torch.zeros(1)), Layer(torch.cat((torch.ones(1, 1), line[0]), 1), line[1])), spec
    return (Layer(*line), Layer(torch.ones(1, 1), torch.zeros(1))), spec


@pytest.mark.parametrize("again", [False, True])
def test_bf16_products_keep_the_precision_of_coordinates(again: bool) -> None:
    """Near 3/4 one bfloat16 moves in steps of 1/256: a 256th of the image. Two of them keep 16 bits, as the field needs for its zero set."""
    params, spec = steep(at=0.75, again=again)
    offsets = torch.arange(1, 8) * 2.0**-12  # all of them round to 3/4 in bfloat16
    x = torch.stack((0.75 + offsets, torch.zeros(7)), -1)
    assert (x[:, 0].bfloat16().float() == 0.75).all()
    full = field(params, x, spec)
    split = field(params, x, spec, products=torch.bfloat16)
    plain = field(params, x.bfloat16().float(), spec, products=torch.bfloat16)
    assert not plain.any()  # a plain cast loses all of it
    assert ((split - full).abs() <= BF16_STEP * full.abs()).all()


@pytest.mark.parametrize("again", [False, True])
def test_bf16_gradient_keeps_the_precision_of_coordinates(again: bool) -> None:
    """The gradient of the first weight is g x: summed with opposite signs, only the low part of x is left of it."""
    params, spec = steep(at=0.0, again=again)
    x = torch.tensor([[0.75 + 2.0**-11, 0.0], [0.75, 0.0]])
    g = torch.tensor([[1.0], [-1.0]])
    exact = 2.0**-11
    for coordinates, expected in ((x, exact), (x.bfloat16().float(), 0.0)):
        _, vjp = field_vjp(params, coordinates, spec, products=torch.bfloat16)
        assert vjp(g)[again].weight[0, int(again)].item() == expected


def test_products_in_the_own_dtype_change_nothing() -> None:
    for name in ("relu", "sine"):
        params, x = example(SPECS[name], "all-per-task", dtype=torch.float32)
        assert torch.equal(field(params, x, SPECS[name], products=torch.float32), field(params, x, SPECS[name]))


def test_sine_refuses_low_precision() -> None:
    params, x = example(SPECS["sine"], "all-shared", dtype=torch.float32)
    with pytest.raises(ValueError, match="full precision: use products=None"):
        field(params, x, SPECS["sine"], products=torch.bfloat16)


# --------------------------------------------------------------------------------------------------------------- dropout


def copying(hidden_layers: int) -> tuple[Params, FieldSpec]:
    """Phi(x) = x where x > 0, through every hidden layer: what becomes of each unit is seen."""
    spec = FieldSpec(in_dim=50, width=50, hidden_layers=hidden_layers, out_dim=50)
    return tuple(Layer(torch.eye(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)) for _ in spec.shapes), spec


@pytest.mark.parametrize("hidden_layers", [0, 1, 2])
def test_dropout_switches_hidden_units_off_and_keeps_the_mean(hidden_layers: int) -> None:
    """In every hidden layer anew, at every point, and not at the outputs: of the units (1 - p)^layers are left, each larger by as much."""
    params, spec = copying(hidden_layers)
    x, left = torch.rand(400, 50, generator=seeded(1), dtype=torch.float64) + 0.1, 0.75 ** (hidden_layers + 1)
    share = field(params, x, spec, dropout=Dropout(0.25, [7])) / x
    on = share > 0
    torch.testing.assert_close(share, on.double() / left, rtol=1e-12, atol=0)
    sigma = math.sqrt(left * (1 - left) / on.numel())
    assert abs(on.double().mean().item() - left) < 5 * sigma
    for dim, n in ((0, 400), (1, 50)):  # no unit and no point is favoured
        assert on.double().mean(dim).std().item() == pytest.approx(math.sqrt(left * (1 - left) / n), rel=0.5)


def test_dropout_of_a_task_does_not_depend_on_its_company() -> None:
    spec = SPECS["skip"]
    params, x = example(spec, "biases-per-task")
    torch.manual_seed(98)  # the global generator must not matter, and is left alone
    out = field(params, x, spec, dropout=Dropout(0.3, [5, 6, 7]))
    assert torch.initial_seed() == 98 and torch.equal(torch.rand(1), torch.rand(1, generator=seeded(98)))
    assert not torch.equal(out, field(params, x, spec)) and not torch.equal(out, field(params, x, spec, dropout=Dropout(0.3, [6, 5, 7])))
    for b in range(3):
        torch.testing.assert_close(field(of_task(params, (b,)), x[b], spec, dropout=Dropout(0.3, [5 + b])), out[b], rtol=1e-12, atol=1e-12)
    assert torch.equal(field(params, x, spec, dropout=Dropout(0.0, [5, 6, 7])), field(params, x, spec))


def test_no_gradient_passes_a_unit_that_is_off() -> None:
    params, spec = copying(0)
    x = (torch.rand(5, 50, generator=seeded(1), dtype=torch.float64) + 0.1).requires_grad_()
    out = field(params, x, spec, dropout=Dropout(0.5, [7]))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, 2.0 * (out > 0).double())


@pytest.mark.parametrize("p", [-0.1, 1.0, math.nan])
def test_dropout_refuses_what_is_no_share(p: float) -> None:
    with pytest.raises(ValueError, match=r"Dropout\.p must be at least 0 and below 1"):
        Dropout(p, [0])


def test_dropout_wants_a_seed_for_each_task() -> None:
    params, x = example(SPECS["relu"], "all-shared")
    with pytest.raises(ValueError, match="dropout has 2 seeds for 3 tasks"):
        field(params, x, SPECS["relu"], dropout=Dropout(0.1, [1, 2]))


# ---------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_dim": 0}, "in_dim must be at least 1, got 0"),
        ({"out_dim": 0}, "out_dim must be at least 1"),
        ({"width": 0}, "width must be at least 1"),
        ({"hidden_layers": -1}, "hidden_layers must be at least 0, got -1"),
        ({"frequencies": -1}, "frequencies must be at least 0"),
        ({"activation": "tanh"}, "'relu' or 'sine', got 'tanh'"),
        ({"init": "zeros"}, "'standard', 'spread', 'geometric' or 'uniform', got 'zeros'"),
        ({"init": "geometric", "activation": "sine"}, "init='geometric' is meant for ReLU"),
        ({"init": "spread", "activation": "sine"}, "init='spread' is meant for ReLU"),
        ({"skip": (0,)}, r"layers from 1 to 3 in rising order, got \(0,\)"),
        ({"skip": (4,)}, "layers from 1 to 3 in rising order"),
        ({"skip": (2, 1)}, "layers from 1 to 3 in rising order"),
        ({"narrow": 3}, "and 0 without skip, got 3"),
        ({"skip": (1,), "narrow": 256}, "below the width"),
        ({"skip": (1,), "narrow": -1}, "at least 0"),
    ],
)
@pytest.mark.usefixtures("unwatched")
def test_spec_refuses_what_it_cannot_mean(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FieldSpec(**change)


@pytest.mark.usefixtures("unwatched")
def test_wrong_shapes_are_named() -> None:
    spec = FieldSpec(width=4, hidden_layers=0)
    params, x = example(spec, "no-batch")
    with pytest.raises(ValueError, match=r"\(\*B, N, 2\), got \(11, 3\)"):
        field(params, uniform(11, 3, seed=0), spec)
    with pytest.raises(ValueError, match="2 layers, got parameters for 1"):
        field(params[:1], x, spec)
    with pytest.raises(ValueError, match=r"layer 1: expected weight \(\*B, 1, 4\).*got \(4, 1\) and \(1,\)"):
        field((params[0], Layer(params[1].weight.T, params[1].bias)), x, spec)
    with pytest.raises(ValueError, match=r"layer 0: .* and bias \(\*B, 4\), got \(4, 2\) and \(3,\)"):
        field((Layer(params[0].weight, params[0].bias[:3]), params[1]), x, spec)
    with pytest.raises(ValueError, match=r"\(\*B, N, 2\), got \(2,\)"):
        field(params, x[0], spec)


def test_annotated_shapes_are_executed() -> None:
    """The hook in conftest.py: without it, these annotations would be mere text."""
    params, x = example(FieldSpec(), "no-batch")
    with pytest.raises(jaxtyping.TypeCheckError):
        field(params, x[0], FieldSpec())
    with pytest.raises(jaxtyping.TypeCheckError):
        field(params, x.numpy(), FieldSpec())
