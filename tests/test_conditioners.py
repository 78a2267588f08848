"""Encoders, decoders, auto-decoders, the inner loop on a code: supplement section 1, closed forms, twins, finite differences, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from metasdf.conditioning import deepsdf
from metasdf.conditioning.base import Decoder, EncodeDecode, in_turn
from metasdf.conditioning.codes import AutoDecoder, AutoDecoderConfig
from metasdf.conditioning.encoders import SetEncoder, SetEncoderConfig
from metasdf.conditioning.hypernetwork import BiasHypernetwork, BiasHypernetworkConfig, Hypernetwork, HypernetworkConfig
from metasdf.conditioning.latent import LATENT_RATE_KINDS, LatentLoop, LatentLoopConfig
from metasdf.conditioning.pointnet import ResnetPointNet, ResnetPointNetConfig
from metasdf.fields import FieldSpec, encode, field, initialise
from metasdf.heads import Distance, Head
from metasdf.tasks import Observations, TaskBatch

TASKS, POINTS, CODE = 3, 9, 5
SPECS = {
    "relu": FieldSpec(width=6, hidden_layers=1),
    "sine": FieldSpec(width=6, hidden_layers=1, activation="sine", w0=2.0),
    "fourier-3d": FieldSpec(in_dim=3, width=5, hidden_layers=1, frequencies=1),
}
DECODERS: dict[str, Callable[..., Decoder]] = {
    "bias": BiasHypernetwork,
    "deepsdf": lambda spec, **options: BiasHypernetwork(
        replace(spec, skip=(1,), narrow=1), BiasHypernetworkConfig((0, 1), weight_norm=True), **options
    ),
    "full": lambda spec, **options: Hypernetwork(spec, HypernetworkConfig(width=7, deviation=0.5), **options),
}
every_spec = pytest.mark.parametrize("name", SPECS)
every_decoder = pytest.mark.parametrize("kind", DECODERS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def decoder(kind: str, name: str = "relu", *, seed: int = 0) -> Decoder:
    """At a generic point: with biases of zero, a point where a whole layer is off sits at the kinks of the next."""
    model = DECODERS[kind](SPECS[name], code_dim=CODE, generator=seeded(seed)).double()
    with torch.no_grad():
        for index, p in enumerate(model.parameters()):
            p.add_(0.1 * normal(*p.shape, seed=100 + index))
    return model


def observe(d: int, *batch: int, n: int = POINTS, seed: int = 0) -> Observations:
    """Distances to a circle or sphere of its own for each task."""
    x = torch.rand(*batch, n, d, generator=seeded(seed), dtype=torch.float64) * 2 - 1
    centre, radius = normal(*batch, 1, d, seed=seed + 1) * 0.2, normal(*batch, 1, 1, seed=seed + 2) * 0.1 + 0.5
    return Observations(x, (x - centre).norm(dim=-1, keepdim=True) - radius)


def alone(context: Observations, b: int) -> Observations:
    return Observations(context.x[b], context.y[b])


def assert_close(ours: Tensor, theirs: Tensor, *, tol: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


class Vector(Head):
    """Several outputs, each compared with a number of its own, mean e^2: a field that is linear in the code then has closed forms."""

    channels = CODE

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        return (out - y).square().mean((-2, -1))


def linear() -> tuple[BiasHypernetwork, Tensor]:
    """A decoder whose code is a bias of the outputs, Phi(x) + W z, and that square W."""
    spec = FieldSpec(width=4, hidden_layers=0, out_dim=CODE)
    model = BiasHypernetwork(spec, BiasHypernetworkConfig(layers=(1,)), code_dim=CODE).double()
    w = torch.eye(CODE, dtype=torch.float64) + 0.3 * normal(CODE, CODE, seed=4)
    with torch.no_grad():
        model.hyper[0].copy_(w)
    return model, w


def generated(model: Decoder, z: Tensor) -> Observations:
    """What the decoder's fields of these codes are at random points."""
    x = torch.rand(*z.shape[:-1], POINTS, model.spec.in_dim, generator=seeded(8), dtype=torch.float64) * 2 - 1
    return Observations(x, field(model(z), x, model.spec).detach())


# -------------------------------------------------------------------------------------------------------- supplement, section 1


@every_spec
@pytest.mark.parametrize("layers", [(0,), (2,), (0, 2), (0, 1, 2)])
def test_concatenation_is_the_bias_hypernetwork(name: str, layers: tuple[int, ...]) -> None:
    """Eq. 2, W (h || z) + b, with z beside the layer's input at every point, and eq. 3: same outputs, same gradients of all there is."""
    spec = SPECS[name]
    model = BiasHypernetwork(spec, BiasHypernetworkConfig(layers), code_dim=CODE, generator=seeded(1)).double()
    with torch.no_grad():
        for index, p in enumerate(model.parameters()):
            p.add_(0.1 * normal(*p.shape, seed=100 + index))  # no bias is zero
    z, x = normal(TASKS, CODE, seed=2).requires_grad_(), normal(TASKS, POINTS, spec.in_dim, seed=3).requires_grad_()
    towards = normal(TASKS, POINTS, 1, seed=4)

    hypo, hyper = list(model.hypo), dict(zip(layers, model.hyper, strict=True))
    wide = [torch.cat((w, hyper[i]), 1) if i in hyper else w for i, w in enumerate(hypo[0::2])]
    wide, bias = [w.detach().requires_grad_() for w in wide], [b.detach().requires_grad_() for b in hypo[1::2]]
    h = encode(x, spec)
    for i, (w, b) in enumerate(zip(wide, bias, strict=True)):
        if i in layers:
            h = torch.cat((h, z[:, None].expand(-1, POINTS, -1)), -1)
        h = h @ w.T + b
        if i < len(wide) - 1:
            h = h.relu() if spec.activation == "relu" else (spec.w0 * h).sin()
    eq2 = torch.autograd.grad((h * towards).sum(), [z, x, *wide, *bias])

    params = model(z)
    assert [p.weight.dim() for p in params] == [2, 2, 2]
    assert [p.bias.dim() for p in params] == [2 if i in layers else 1 for i in range(3)]
    out = field(params, x, spec)
    assert_close(out, h, tol=1e-12)
    eq3 = torch.autograd.grad((out * towards).sum(), [z, x, *hypo[0::2], *hypo[1::2], *model.hyper])
    for i, (ours, theirs) in enumerate(zip(eq3[2:5], eq2[2:5], strict=True)):
        together = torch.cat((ours, eq3[8 + layers.index(i)]), 1) if i in layers else ours
        assert_close(together, theirs, tol=1e-12)
    for ours, theirs in zip((*eq3[:2], *eq3[5:8]), (*eq2[:2], *eq2[5:]), strict=True):
        assert_close(ours, theirs, tol=1e-12)


# ------------------------------------------------------------------------------------------------------------------ DeepSDF


class PlainDeepSDF(nn.Module):
    """DeepSDF's decoder as one writes it down: code and x go in, and in again at layer `again` beside the hidden features."""

    def __init__(self, dims: list[int], again: int) -> None:
        super().__init__()
        self.again = again
        layers = [nn.Linear(inn, out).double() for inn, out in pairwise(dims)]
        layers = [weight_norm(layer) if index < len(layers) - 1 else layer for index, layer in enumerate(layers)]
        layers[again - 1] = weight_norm(nn.Linear(dims[again - 1], dims[again] - dims[0]).double())
        self.layers = nn.ModuleList(layers)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        start = torch.cat((z.unsqueeze(-2).expand(*x.shape[:-1], -1), x), -1)
        h = start
        for index, layer in enumerate(self.layers):
            if index == self.again:
                h = torch.cat((h, start), -1)
            h = layer(h)
            if index < len(self.layers) - 1:
                h = h.relu()
        return h


def small_deepsdf(**config: object) -> BiasHypernetwork:
    spec = replace(deepsdf.FIELD, width=16, hidden_layers=5, skip=(3,), narrow=CODE + 3)
    return BiasHypernetwork(spec, replace(deepsdf.DECODER, layers=(0, 3), **config), code_dim=CODE, generator=seeded(1)).double()


@torch.no_grad()
def literal(model: BiasHypernetwork) -> PlainDeepSDF:
    """The same weights, at a generic point where no length is that of its direction; code columns stand before those of the coordinates."""
    plain = PlainDeepSDF([CODE + 3, *[16] * 6, 1], again=3)
    for index, p in enumerate(model.parameters()):
        p.add_(0.1 * normal(*p.shape, seed=100 + index))
    for index, layer in enumerate(plain.layers):
        weight, *code = model._matrices(index)
        if code:
            weight = torch.cat((weight[:, :-3], code[0], weight[:, -3:]), 1)
        layer.bias.copy_(model.hypo[2 * index + 1])
        if index < len(plain.layers) - 1:
            layer.parametrizations.weight.original0.copy_(model.lengths[index].unsqueeze(1))
            layer.parametrizations.weight.original1.copy_(weight)
        else:
            layer.weight.copy_(weight)
    return plain


def test_deepsdf_is_concatenation_with_weight_norm() -> None:
    """Coordinates, code and weights of torch's own modules: same outputs, same gradients of all there is."""
    model = small_deepsdf()
    plain = literal(model)
    z, x, towards = normal(TASKS, CODE, seed=2).requires_grad_(), normal(TASKS, POINTS, 3, seed=3).requires_grad_(), normal(TASKS, POINTS, 1, seed=4)
    out, expected = field(model(z), x, model.spec), plain(z, x)
    assert_close(out, expected, tol=1e-12)
    own = [*model.hypo[1::2], *model.lengths, *(model._matrices(i)[0] for i in range(7)), *model.hyper]
    ours = torch.autograd.grad((out * towards).sum(), [z, x, *own])
    directions = [layer.parametrizations.weight.original1 for layer in plain.layers[:-1]]
    lengths = [layer.parametrizations.weight.original0 for layer in plain.layers[:-1]]
    theirs = torch.autograd.grad((expected * towards).sum(), [z, x, *(p.bias for p in plain.layers), *lengths, *directions, plain.layers[-1].weight])
    for a, b in zip(ours[:9], theirs[:9], strict=True):
        assert_close(a, b, tol=1e-12)
    for a, b in zip(ours[9:15], theirs[9:15], strict=True):
        assert_close(a, b.squeeze(1), tol=1e-12)
    for index in range(7):
        a, b = ours[15 + index], theirs[15 + index]
        if index in (0, 3):
            a = torch.cat((a[:, :-3], ours[22 + index // 3], a[:, -3:]), 1)
        assert_close(a, b, tol=1e-12)


def test_weight_norm_is_a_length_times_a_direction() -> None:
    """Each row of (W_hypo || W_hyper) is as long as its g, whatever v; the field starts as it does without, and the last layer has neither."""
    model, plain = small_deepsdf(), small_deepsdf(weight_norm=False)
    assert not list(plain.lengths) and len(model.lengths) == 6
    z = normal(TASKS, CODE, seed=2)
    start = model(z)
    for ours, theirs in zip(start, plain(z), strict=True):
        assert_close(ours.weight, theirs.weight, tol=1e-6)  # lengths were found in float32
        assert_close(ours.bias, theirs.bias, tol=1e-6)
    with torch.no_grad():
        for index, length in enumerate(model.lengths):
            for v in model._matrices(index):
                v.mul_(torch.linspace(0.5, 3.0, len(v), dtype=v.dtype).unsqueeze(1))
            length.mul_(2.0)
    for index, (ours, before) in enumerate(zip(model(z), start, strict=True)):
        assert_close(ours.weight, before.weight * (2.0 if index < 6 else 1.0), tol=1e-12)
        bias = model.hypo[2 * index + 1]
        assert_close(ours.bias - bias, (before.bias - bias) * 2.0, tol=1e-12)
    row = torch.cat((model(z)[3].weight, model(torch.eye(CODE, dtype=z.dtype))[3].bias.T - model.hypo[7].unsqueeze(1)), 1)
    assert_close(row.norm(dim=1), model.lengths[3], tol=1e-12)


def test_deepsdf_has_the_published_size() -> None:
    """Affine maps 259 -> 512 -> 512 -> 512 -> 253, then 512 (of them 259 entered again) five times, to 1; and a length for each hidden unit."""
    model = BiasHypernetwork(deepsdf.FIELD, deepsdf.DECODER, code_dim=deepsdf.CODE_DIM)
    maps = [(259, 512), (512, 512), (512, 512), (512, 253), *[(512, 512)] * 4, (512, 1)]
    assert sum(p.numel() for p in model.parameters()) == sum((inn + 1) * out for inn, out in maps) + 7 * 512 + 253 == 1_843_195


# ------------------------------------------------------------------------------------------------------------------ PointNet


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_pointnet_point_by_point(values: bool, blocks: int) -> None:
    """Every point by itself, its features beside the maximum over all points: same codes, same gradients."""
    model = ResnetPointNet(3, ResnetPointNetConfig(blocks=blocks, width=4, values=values), code_dim=CODE, generator=seeded(0)).double()
    context = observe(3, TASKS)
    codes = []
    for x, y in zip(*context, strict=True):
        features = [model.first(torch.cat((x[i], y[i])) if values else x[i]) for i in range(POINTS)]
        for index, block in enumerate(model.blocks):
            if index:
                most = torch.stack(features).max(0).values
                features = [torch.cat((h, most)) for h in features]
            features = [block.shortcut @ u + block.outer(block.inner(u.relu()).relu()) for u in features]
        codes.append(model.last(torch.stack(features).max(0).values.relu()))
    ours, theirs, parameters = model(context), torch.stack(codes), list(model.parameters())
    assert_close(ours, theirs, tol=1e-12)
    towards = normal(TASKS, CODE, seed=1)
    for a, b in zip(*(torch.autograd.grad((z * towards).sum(), parameters) for z in (ours, theirs)), strict=True):
        assert_close(a, b, tol=1e-12)


def test_pointnet_layers_and_parameters() -> None:
    """The paper's: 5 blocks of 512 units, 1,024 numbers in each, and a code of 256."""
    with torch.device("meta"):
        model = ResnetPointNet(3)
    assert sum(p.numel() for p in model.parameters()) == 4 * 1024 + 5 * (1025 * 512 + 513 * 512 + 1024 * 512) + 513 * 256 == 6_694_144


def test_a_fresh_pointnet() -> None:
    """Its generator decides all of it; codes have about unit entries, which is what decoders expect; bfloat16 products give the same rounded."""
    model, again, other = (ResnetPointNet(3, ResnetPointNetConfig(width=128), generator=seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    context = Observations(*(t.float() for t in observe(3, TASKS, n=50)))
    with torch.no_grad():
        z, low = model(context), model(context, products=torch.bfloat16)
    assert z.shape == (TASKS, 256) and 0.5 < z.std() < 2.0
    assert low.dtype == torch.float32 and 0 < (low - z).norm() < 0.03 * z.norm()


def test_pointnet_reads_values_where_asked() -> None:
    context = observe(3, TASKS)
    level = Observations(context.x, torch.zeros_like(context.y))
    for values in (False, True):
        model = ResnetPointNet(3, ResnetPointNetConfig(width=8, values=values), code_dim=CODE, generator=seeded(0)).double()
        assert torch.equal(model(context), model(level)) != values


def test_pointnet_is_a_maximum() -> None:
    """Points seen again change nothing, whichever and however often."""
    model, context = ResnetPointNet(3, ResnetPointNetConfig(width=8), code_dim=CODE).double(), observe(3, TASKS)
    again = Observations(*(torch.cat((t, t[:, 2:5], t[:, 2:3]), 1) for t in context))
    assert_close(model(again), model(context), tol=1e-12)


# ------------------------------------------------------------------------------------------------------------ encoders, decoders


@pytest.mark.parametrize(("layers", "n_params"), [(4, 198_400), (9, 527_360)])
def test_set_encoder_layers_and_parameters(layers: int, n_params: int) -> None:
    """(3 + 1) 256 for the first layer of a plane's points, (256 + 1) 256 for each other; the code has 256 numbers."""
    model = SetEncoder(2, SetEncoderConfig(layers=layers))
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == layers
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == layers - 1
    assert sum(p.numel() for p in model.parameters()) == n_params == 4 * 256 + (layers - 1) * 257 * 256
    assert model(Observations(torch.zeros(7, 2), torch.zeros(7, 1))).shape == (256,)


def test_decoder_layers_and_parameters() -> None:
    """The paper's field has 132,609 parameters. Concatenation adds 256 x 256 at two layers; a hypernetwork four trunks and 257 weights for each."""
    spec = FieldSpec()
    assert sum(p.numel() for p in BiasHypernetwork(spec).parameters()) == 132_609 + 2 * 256**2 == 263_681
    with torch.device("meta"):
        model = Hypernetwork(spec)
    assert [sum(isinstance(m, nn.Linear) for m in net) for net in model.nets] == [3] * 4
    assert sum(p.numel() for p in model.parameters()) == 4 * 2 * 257 * 256 + 257 * 132_609 == 34_606_849


def test_the_last_layer_commutes_with_the_mean() -> None:
    model, context = SetEncoder(3, SetEncoderConfig(layers=3, width=7), code_dim=CODE).double(), observe(3, 2, TASKS)
    assert_close(model(context), model.mlp(torch.cat((context.x, context.y), -1)).mean(-2), tol=1e-12)


def test_a_context_seen_twice_counts_once() -> None:
    model, context = SetEncoder(2, SetEncoderConfig(width=7), code_dim=CODE).double(), observe(2, TASKS)
    assert_close(model(Observations(*(torch.cat((t, t), -2) for t in context))), model(context), tol=1e-12)


@pytest.mark.parametrize("init", ["standard", "spread", "geometric"])
def test_the_zero_code_is_a_fresh_field(init: str) -> None:
    spec = FieldSpec(width=16, init=init)
    model = BiasHypernetwork(spec, code_dim=CODE, generator=seeded(3))
    for ours, theirs in zip(model(torch.zeros(CODE)), initialise(spec, generator=seeded(3)), strict=True):
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize(("activation", "std"), [("relu", 1.0), ("sine", 1 / 30)])
def test_a_unit_code_moves_the_conditional_biases_by_one(activation: str, std: float) -> None:
    model = BiasHypernetwork(FieldSpec(activation=activation), generator=seeded(0))
    z = torch.randn(500, 256, generator=seeded(1))
    for layer in (0, 2):
        moved = model(z)[layer].bias - model(torch.zeros(256))[layer].bias
        assert moved.std().item() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("init", ["standard", "geometric"])
def test_hypernetwork_starts_near_one_fresh_field(init: str) -> None:
    """Weights keep the size of a fresh field's (Kaiming's for ReLU), whatever the layer; codes move them by about `deviation` of that."""
    spec = FieldSpec(width=32, init=init)
    model = Hypernetwork(spec, HypernetworkConfig(deviation=0.1), generator=seeded(0))
    z = torch.randn(200, 256, generator=seeded(1))
    with torch.no_grad():
        params = model(z)
    for layer, start in zip(params, initialise(spec, generator=seeded(0)), strict=True):
        size = start.weight.square().mean().sqrt().item()
        assert layer.weight.square().mean().sqrt().item() == pytest.approx(size, rel=0.03)
        assert 0.05 * size < layer.weight.std(0).mean().item() < 0.15 * size
        assert (layer.weight.mean(0) - start.weight).abs().mean().item() < 0.15 * size
    nearly = Hypernetwork(spec, HypernetworkConfig(deviation=1e-9), generator=seeded(0))
    x = torch.rand(50, 2, generator=seeded(2)) - 0.5
    torch.testing.assert_close(field(nearly(z[0]), x, spec), field(initialise(spec, generator=seeded(0)), x, spec), rtol=1e-4, atol=1e-5)


def test_a_gradient_reaches_the_zero_code() -> None:
    """Where fitting starts: no unit of the hypernetwork has its kink there."""
    for kind in DECODERS:
        model, context = decoder(kind), observe(2)
        z = torch.zeros(CODE, dtype=torch.float64, requires_grad=True)
        Distance().loss(field(model(z), context.x, model.spec), context.y).backward()
        assert z.grad is not None and z.grad.abs().min() > 1e-8


# ---------------------------------------------------------------------------------------------------------------- auto-decoder


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_fit_recovers_the_code_that_made_the_data(weight: float) -> None:
    """For a field linear in z the loss is |W (z - z*)|^2 / c + weight |z|^2 / n: least squares without a prior, ridge regression with one."""
    model, w = linear()
    z = normal(TASKS, CODE, seed=5) * torch.tensor([[0.1], [1.0], [3.0]], dtype=torch.float64)
    ad = AutoDecoder(model, AutoDecoderConfig(prior_weight=weight, steps=1500, lr=0.1, decay=0.01), n_tasks=0, head=Vector())
    normal_matrix = w.T @ w / CODE
    exact = torch.linalg.solve(normal_matrix + weight / CODE * torch.eye(CODE), normal_matrix @ z.T).T
    assert_close(ad.fit(generated(model, z)), exact, tol=1e-6)
    assert weight or torch.equal(exact.round(decimals=9), z.round(decimals=9))


@every_decoder
@every_spec
def test_fit_is_adam(kind: str, name: str) -> None:
    """torch's own, with the learning rate cut after half of the steps, on the loss and penalty written out."""
    model, context = decoder(kind, name), observe(SPECS[name].in_dim, TASKS)
    config = AutoDecoderConfig(steps=7, lr=0.05, decay=0.2, prior_weight=0.01)
    path = list(AutoDecoder(model, config, n_tasks=0).fitting(context))
    assert len(path) == 8 and not path[0].any()
    z = torch.zeros(TASKS, CODE, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([z], lr=0.05)
    for j, ours in enumerate(path[1:]):
        adam.param_groups[0]["lr"] = 0.05 if j < 3.5 else 0.01
        e = field(model(z), context.x, model.spec) - context.y
        adam.zero_grad()
        (e.square().mean((1, 2)).sum() + 0.01 * z.square().sum() / CODE).backward()
        adam.step()
        assert_close(ours, z.detach())


@every_decoder
@pytest.mark.parametrize("norm", ["squared", "l1"])
def test_fitting_lowers_the_loss(kind: str, norm: str) -> None:
    model, head = decoder(kind), Distance(norm)
    context = generated(model, 0.5 * normal(TASKS, CODE, seed=3))
    ad = AutoDecoder(model, AutoDecoderConfig(steps=100, lr=0.1, prior_weight=0.0), n_tasks=0, head=head)
    before, after = (head.loss(field(model(ad.fit(context, steps=n)), context.x, model.spec), context.y) for n in (0, 100))
    assert (after < 0.2 * before).all()


def test_codes_of_the_batch_and_their_penalty() -> None:
    ad = AutoDecoder(decoder("bias"), AutoDecoderConfig(prior_weight=0.7), n_tasks=6, generator=seeded(1)).double()
    context = observe(2, 2)
    batch = TaskBatch(torch.tensor([4, 1]), context, context)
    params, prior_loss = ad.training_params(batch)
    for ours, theirs in zip(params, ad.decoder(ad.codes[[4, 1]]), strict=True):
        assert torch.equal(ours.bias, theirs.bias)
    assert prior_loss.detach().item() == pytest.approx(0.7 * float(ad.codes[[4, 1]].detach().square().sum()) / (2 * CODE), rel=1e-12)
    (field(params, context.x, ad.spec).sum() + prior_loss).backward()
    assert ad.codes is not None and ad.codes.grad is not None
    assert ad.codes.grad.to_dense().any(1).tolist() == [False, True, False, False, True, False]
    with pytest.raises(IndexError):
        ad.training_params(TaskBatch(torch.tensor([6, 0]), context, context))


def test_codes_start_with_the_norm_asked_for() -> None:
    codes = AutoDecoder(BiasHypernetwork(FieldSpec(width=4)), AutoDecoderConfig(init_norm=2.0), n_tasks=400, generator=seeded(0)).codes
    assert codes.shape == (400, 256)
    assert codes.std().item() == pytest.approx(2.0 / math.sqrt(256), rel=0.02) and abs(codes.mean().item()) < 1e-3


@every_decoder
@pytest.mark.parametrize("patience", [0, 5])
def test_unequal_tasks_do_not_see_each_other(kind: str, patience: int) -> None:
    """One starts close to its solution, one is off by a factor of 1000, one is NaN: each ends where it ends alone."""
    model = decoder(kind)
    context = generated(model, normal(4, CODE, seed=3) * torch.tensor([[0.1], [1.0], [1.0], [1.0]]))
    context.y[2] *= 1000.0
    context.y[3] = math.nan
    ad = AutoDecoder(model, AutoDecoderConfig(steps=40, lr=0.05, patience=patience, prior_weight=0.0), n_tasks=0)
    together = ad.fit(context)
    for b in range(3):
        assert_close(together[b], ad.fit(alone(context, b)))
    assert together[:3].isfinite().all() and together[3].isnan().all()


def test_a_fit_that_sees_a_part_at_a_time() -> None:
    """Every point has its turn before one has a second; the solution is that of the whole context, and always the same."""
    model, _ = linear()
    z = normal(2, CODE, seed=3)
    context = generated(model, z)
    config = AutoDecoderConfig(steps=1500, lr=0.1, decay=0.01, prior_weight=0.0, points=5)
    ad = AutoDecoder(model, config, n_tasks=0, head=Vector())
    n, parts = context.x.shape[-2], in_turn(context, 5)
    seen = torch.cat([parts(j).x[0] for j in range(n)])  # n steps of 5 points: each one 5 times
    assert {tuple(row) for row in seen[:n].tolist()} == {tuple(row) for row in context.x[0].tolist()}
    assert len(seen) == 5 * n and torch.equal(seen[:n].sort(0).values, seen[n : 2 * n].sort(0).values)
    assert_close(ad.fit(context), z, tol=1e-6)
    assert torch.equal(ad.fit(context), ad.fit(context))
    assert in_turn(alone(context, 0)._replace(x=context.x[0, :5]), 5)(3).x.shape == (5, context.x.shape[-1])


def test_early_stop_holds_one_task_and_ends_with_the_last() -> None:
    """The loss of a linear field falls until Adam swings around the minimum: easy tasks stop sooner, and stay."""
    model, _ = linear()
    context = generated(model, torch.tensor([[0.0], [0.2], [2.0]], dtype=torch.float64) * normal(TASKS, CODE, seed=5).sign())
    ad = AutoDecoder(model, AutoDecoderConfig(steps=2000, lr=0.05, decay=1.0, patience=5, prior_weight=0.0), n_tasks=0, head=Vector())
    path = torch.stack(list(ad.fitting(context)))
    moves = (path[1:] != path[:-1]).any(-1)  # step, task
    stopped = moves.long().sum(0)
    assert moves.long().diff(dim=0).le(0).all()  # none starts again
    assert stopped[0] < stopped[1] < stopped[2] == len(path) - 1 < 2000
    assert [len(list(ad.fitting(alone(context, b)))) - 1 for b in (1, 2)] == stopped[1:].tolist()


@every_decoder
def test_fitting_leaves_no_graph_and_no_state(kind: str) -> None:
    ad, context = AutoDecoder(decoder(kind), AutoDecoderConfig(steps=3), n_tasks=2).double(), observe(2, TASKS)
    first = ad.fit(context)
    assert not first.requires_grad and torch.equal(ad.fit(context), first)
    assert all(p.grad is None and p.requires_grad for p in ad.parameters())
    assert ad.fit(observe(2, 2, TASKS)).shape == (2, TASKS, CODE)


# --------------------------------------------------------------------------------------------------------- inner loop on a code


@pytest.mark.parametrize("kind", LATENT_RATE_KINDS)
def test_latent_loop_of_a_linear_field(kind: str) -> None:
    """z_{j+1} = z_j - alpha_j * 2/c W^T W (z_j - z*); rates beyond the trained steps are the last ones."""
    model, w = linear()
    z = normal(TASKS, CODE, seed=5)
    loop = LatentLoop(model, LatentLoopConfig(steps=3, rates=kind), head=Vector()).double()
    with torch.no_grad():
        loop.rates.mul_(1 + torch.rand(loop.rates.shape, generator=seeded(6)))
    expected, rates = torch.zeros_like(z), loop.rates.detach()
    path = loop.codes(generated(model, z), steps=5)
    assert len(path) == 6
    for j, ours in enumerate(path):
        assert_close(ours, expected)
        rate = rates[min(j, 2)] if kind in ("step", "parameter_step") else rates
        expected = expected - rate * (2 / CODE * (expected - z) @ w.T @ w)


@every_decoder
@pytest.mark.parametrize(("name", "rates"), [(name, "parameter_step") for name in SPECS] + [("sine", kind) for kind in LATENT_RATE_KINDS[:-1]])
def test_latent_meta_gradient_by_finite_differences(kind: str, name: str, rates: str) -> None:
    """In the decoder's parameters and in the rates, along a random direction of each tensor."""
    spec = SPECS[name]
    loop = LatentLoop(decoder(kind, name), LatentLoopConfig(steps=3, rates=rates, init_rate=0.4)).double()
    context, query = observe(spec.in_dim, TASKS), observe(spec.in_dim, TASKS, seed=20)

    def loss() -> Tensor:
        return Distance().loss(field(loop(context), query.x, loop.spec), query.y).mean()

    loss().backward()
    eps = 1e-6
    for index, p in enumerate(loop.parameters()):
        direction = normal(*p.shape, seed=index)
        assert p.grad is not None and p.grad.any()
        with torch.no_grad():
            p.add_(direction, alpha=eps)
            up = loss()
            p.add_(direction, alpha=-2 * eps)
            down = loss()
            p.add_(direction, alpha=eps)
        torch.testing.assert_close((p.grad * direction).sum(), (up - down) / (2 * eps), rtol=1e-5, atol=1e-8)


@every_decoder
def test_first_order_is_first_order(kind: str) -> None:
    """Codes move by constants: the gradient is that of the last decoding, and of the rates; halfway is the average after one step."""
    loop = LatentLoop(decoder(kind), LatentLoopConfig(steps=1)).double()
    context, query = observe(2, TASKS), observe(2, TASKS, seed=20)

    def gradients(share: float) -> list[Tensor]:
        loop.second_order = share
        loss = Distance().loss(field(loop(context), query.x, loop.spec), query.y).mean()
        return list(torch.autograd.grad(loss, list(loop.parameters())))

    with torch.no_grad():
        z = loop.codes(context)
    by_hand = z[0] + loop.rates / loop.rates.detach() * (z[1] - z[0])
    loss = Distance().loss(field(loop.decoder(by_hand), query.x, loop.spec), query.y).mean()
    first, half, second = gradients(0.0), gradients(0.5), gradients(1.0)
    for a, b in zip(first, torch.autograd.grad(loss, list(loop.parameters())), strict=True):
        assert_close(a, b)
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(first, second, strict=True))
    for a, b, c in zip(first, half, second, strict=True):
        assert_close(b, (a + c) / 2)


@every_decoder
def test_a_frozen_latent_loop_still_adapts(kind: str) -> None:
    loop, context = LatentLoop(decoder(kind)).double(), observe(2, TASKS)
    z = loop.codes(context)[-1].detach()
    path = loop.requires_grad_(False).trajectory(context)
    assert len(path) == 4 and torch.equal(loop.codes(context)[-1], z)
    assert_close(path[-1][-1].bias, loop(context)[-1].bias)


def test_latent_rates_are_projected_where_asked() -> None:
    for constraint, left in (("free", -1.0), ("clip", 0.0)):
        loop = LatentLoop(decoder("bias"), LatentLoopConfig(constraint=constraint))
        with torch.no_grad():
            loop.rates[0] = -1.0
        loop.project()
        assert loop.rates[:2].tolist() == pytest.approx([left, 0.3])


# ---------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SetEncoderConfig(layers=1), "SetEncoderConfig.layers must be at least 2"),
        (lambda: SetEncoderConfig(width=0), "SetEncoderConfig.width must be at least 1"),
        (lambda: ResnetPointNetConfig(blocks=0), "ResnetPointNetConfig.blocks must be at least 1"),
        (lambda: ResnetPointNetConfig(width=0), "ResnetPointNetConfig.width must be at least 1"),
        (lambda: BiasHypernetworkConfig(layers=()), "rising order"),
        (lambda: BiasHypernetworkConfig(layers=(2, 0)), "rising order"),
        (lambda: BiasHypernetworkConfig(layers=(-1, 0)), "rising order"),
        (lambda: BiasHypernetwork(FieldSpec(hidden_layers=0)), "the field has layers 0 to 1"),
        (lambda: HypernetworkConfig(layers=0), "HypernetworkConfig.layers must be at least 1"),
        (lambda: HypernetworkConfig(deviation=0.0), "HypernetworkConfig.deviation must be positive"),
        (lambda: AutoDecoderConfig(init_norm=0.0), "AutoDecoderConfig.init_norm must be positive"),
        (lambda: AutoDecoderConfig(prior_weight=-1.0), "AutoDecoderConfig.prior_weight must be at least 0"),
        (lambda: AutoDecoderConfig(steps=0), "AutoDecoderConfig.steps must be at least 1"),
        (lambda: AutoDecoderConfig(lr=math.nan), "AutoDecoderConfig.lr must be positive"),
        (lambda: AutoDecoderConfig(decay=2.0), "AutoDecoderConfig.decay must be above 0 and at most 1"),
        (lambda: AutoDecoderConfig(patience=-1), "AutoDecoderConfig.patience must be at least 0"),
        (lambda: AutoDecoderConfig(tolerance=1.0), "AutoDecoderConfig.tolerance must be at least 0 and below 1"),
        (lambda: LatentLoopConfig(steps=0), "LatentLoopConfig.steps must be at least 1"),
        (lambda: LatentLoopConfig(rates="tensor"), "LatentLoopConfig.rates must be one of"),
        (lambda: LatentLoopConfig(init_rate=-0.1), "LatentLoopConfig.init_rate must be positive"),
        (lambda: LatentLoopConfig(constraint="softplus"), "LatentLoopConfig.constraint must be free or clip"),
        (lambda: EncodeDecode(SetEncoder(2, code_dim=8), decoder("bias")), "codes of 8 numbers, the decoder reads 5"),
        (lambda: AutoDecoder(decoder("bias"), n_tasks=1, head=Vector()), "the head reads 5 outputs, the field has 1"),
        (lambda: LatentLoop(decoder("bias"), head=Vector()), "the head reads 5 outputs, the field has 1"),
        (lambda: AutoDecoder(decoder("bias"), n_tasks=1).fit(observe(2), steps=-1), "steps must not be negative"),
        (lambda: LatentLoop(decoder("bias"))(observe(2), steps=-1), "steps must not be negative"),
        (lambda: AutoDecoder(decoder("bias"), n_tasks=1).fit(observe(2, n=0)), "the context is empty"),
        (lambda: LatentLoop(decoder("bias"))(observe(2, n=0)), "the context is empty"),
        (lambda: SetEncoder(2)(observe(2, n=0)), "the context is empty"),
        (lambda: ResnetPointNet(2, ResnetPointNetConfig(width=4))(observe(2, n=0)), "the context is empty"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
