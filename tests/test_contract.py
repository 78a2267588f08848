"""What every conditioner keeps, whatever its method: one test over all methods x {2D, 3D} x {dense, level set}, in float64.

A new method is one line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metasdf.conditioning.base import Conditioner, Decoder, EncodeDecode
from metasdf.conditioning.codes import AutoDecoder, AutoDecoderConfig
from metasdf.conditioning.encoders import SetEncoder, SetEncoderConfig
from metasdf.conditioning.hypernetwork import BiasHypernetwork, BiasHypernetworkConfig, Hypernetwork, HypernetworkConfig
from metasdf.conditioning.inner_loop import RATE_KINDS, InnerLoopConfig
from metasdf.conditioning.latent import LATENT_RATE_KINDS, LatentLoop, LatentLoopConfig
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.conditioning.pointnet import ResnetPointNet, ResnetPointNetConfig
from metasdf.fields import FieldSpec, Params, field
from metasdf.heads import Distance, DistanceAndSign, Head
from metasdf.tasks import RULES, Draw, Observations, ShapeSamples, TaskBatch, stack

TASKS, CONTEXT, QUERY = 3, 24, 16

Make = Callable[[int, torch.Generator], Conditioner]


def metasdf(*, field: dict | None = None, head: type[Head] | None = None, **config: object) -> Make:
    spec, loop = {"width": 8, "hidden_layers": 1, **(field or {})}, InnerLoopConfig(**{"steps": 3, "init_rate": 1e-2, **config})
    return lambda d, generator: MetaSDF(FieldSpec(in_dim=d, **spec), loop, head=None if head is None else head(), generator=generator)


def pointnet(kind: str, **config: object) -> Make:
    config = ResnetPointNetConfig(**{"blocks": 3, "width": 8, **config})
    return lambda d, generator: EncodeDecode(ResnetPointNet(d, config, code_dim=6, generator=generator), decoder(kind, d, generator))


def decoder(kind: str, d: int, generator: torch.Generator) -> Decoder:
    if kind == "deepsdf":
        spec = FieldSpec(in_dim=d, width=16, hidden_layers=3, skip=(2,), narrow=6 + d)
        return BiasHypernetwork(spec, BiasHypernetworkConfig((0, 2), weight_norm=True), code_dim=6, generator=generator)
    spec = FieldSpec(in_dim=d, width=8, hidden_layers=1)
    if kind == "bias":
        return BiasHypernetwork(spec, code_dim=6, generator=generator)
    return Hypernetwork(spec, HypernetworkConfig(width=8), code_dim=6, generator=generator)


def encode_decode(layers: int, kind: str) -> Make:
    config = SetEncoderConfig(layers=layers, width=8)
    return lambda d, generator: EncodeDecode(SetEncoder(d, config, code_dim=6, generator=generator), decoder(kind, d, generator))


def auto_decoder(kind: str) -> Make:
    config = AutoDecoderConfig(steps=10, lr=0.1)
    return lambda d, generator: AutoDecoder(decoder(kind, d, generator), config, n_tasks=TASKS, generator=generator)


def latent_loop(kind: str, **config: object) -> Make:
    return lambda d, generator: LatentLoop(decoder(kind, d, generator), LatentLoopConfig(**config))


# Name -> maker of a small conditioner for fields over d dimensions; it must know at least TASKS tasks, if it knows tasks at all.
METHODS: dict[str, Make] = {
    **{f"metasdf-{kind}": metasdf(rates=kind) for kind in RATE_KINDS},
    "metasdf-softplus": metasdf(rates="step", constraint="softplus"),
    "metasdf-clip": metasdf(rates="parameter_step", constraint="clip"),
    "metasdf-autograd": metasdf(gradient="autograd"),
    "metasdf-kronecker": metasdf(curvature="kronecker"),
    "metasdf-checkpoint": metasdf(checkpoint=True, rates="parameter_step"),
    "metasdf-spread": metasdf(field={"init": "spread"}, rates="step"),
    "metasdf-geometric": metasdf(field={"init": "geometric"}),
    "metasdf-fourier": metasdf(field={"frequencies": 3}, rates="tensor"),
    "metasdf-geometric-fourier": metasdf(field={"init": "geometric", "frequencies": 2}),
    "metasdf-skip": metasdf(field={"skip": (1,), "narrow": 2}, gradient="explicit"),
    "metasdf-sine": metasdf(field={"activation": "sine", "w0": 10.0}, init_rate=1e-3),
    "metasdf-composite": metasdf(field={"out_dim": 2}, head=DistanceAndSign),
    "metasdf-composite-autograd": metasdf(field={"out_dim": 2}, head=DistanceAndSign, gradient="autograd"),
    "cnp-4": encode_decode(4, "bias"),
    "cnp-9": encode_decode(9, "bias"),
    "set-encoder-hypernetwork": encode_decode(4, "full"),
    "auto-decoder-concatenation": auto_decoder("bias"),
    "auto-decoder-hypernetwork": auto_decoder("full"),
    "pointnet": pointnet("bias"),
    "pointnet-values-hypernetwork": pointnet("full", values=True, blocks=1),
    "deepsdf": auto_decoder("deepsdf"),
    **{f"latent-bias-{kind}": latent_loop("bias", rates=kind) for kind in LATENT_RATE_KINDS},
    "latent-hypernetwork": latent_loop("full", constraint="clip"),
}

every_method = pytest.mark.parametrize("method", METHODS)
both_dimensions = pytest.mark.parametrize("d", [2, 3])
both_rules = pytest.mark.parametrize("rule", ["dense", "levelset"])


def build(method: str, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Conditioner:
    return METHODS[method](d, torch.Generator().manual_seed(seed)).to(dtype)


def head_of(model: Conditioner) -> Head:
    return getattr(model, "head", None) or Distance()


def sphere(rng: np.random.Generator, d: int) -> ShapeSamples:
    """A circle or sphere of random place and size: its distances are known exactly."""
    centre, radius = rng.uniform(-0.3, 0.3, d), rng.uniform(0.2, 0.6)
    x = rng.uniform(-1, 1, (100, d))
    directions = rng.normal(size=(50, d))
    surface = centre + radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return ShapeSamples(x, np.linalg.norm(x - centre, axis=1, keepdims=True) - radius, surface)


def tasks(d: int, rule: str, *, n_context: int = CONTEXT) -> TaskBatch:
    rng = np.random.default_rng(0)
    draws: list[Draw] = [RULES[rule](rng, sphere(rng, d), n_context=n_context, n_query=QUERY) for _ in range(TASKS)]
    return stack(list(range(TASKS)), draws)


def outputs(model: Conditioner, context: Observations, x: Tensor) -> Tensor:
    """The adapted fields at x: what two conditioners must share to be the same, whatever their parameters look like."""
    return field(model(context), x, model.spec)


def tensors(params: Params) -> list[Tensor]:
    return [t for layer in params for t in layer]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@every_method
@both_dimensions
@both_rules
def test_parameters_fit_the_field(method: str, d: int, rule: str) -> None:
    model, batch = build(method, d), tasks(d, rule)
    params, prior_loss = model.training_params(batch)
    for phi in (model(batch.context), params):
        assert len(phi) == len(model.spec.shapes)
        for (weight, bias), (out, inn) in zip(phi, model.spec.shapes, strict=True):
            assert tuple(weight.shape) in {(out, inn), (TASKS, out, inn)}  # shared or per task
            assert tuple(bias.shape) in {(out,), (TASKS, out)}
        assert any(t.shape[0] == TASKS and t.dim() == n + 1 for layer in phi for t, n in zip(layer, (2, 1), strict=True))
        out = field(phi, batch.query.x, model.spec)
        assert out.shape == (TASKS, QUERY, model.spec.out_dim) and out.isfinite().all()
        assert head_of(model).to_sdf(out).shape == (TASKS, QUERY, 1)
    assert prior_loss.shape == () and prior_loss.isfinite()


@every_method
@both_dimensions
@both_rules
def test_the_context_matters(method: str, d: int, rule: str) -> None:
    model, batch = build(method, d), tasks(d, rule)
    elsewhere = Observations(*(t.roll(1, 0) for t in batch.context))
    x = batch.query.x[:1].expand(TASKS, -1, -1)
    out, moved = outputs(model, batch.context, x), outputs(model, elsewhere, x)
    assert_close(moved, out.roll(1, 0))  # tasks change places with their contexts
    assert (out - moved).abs().amax((-2, -1)).min() > 1e-6


@every_method
@both_dimensions
@both_rules
def test_a_gradient_reaches_every_parameter(method: str, d: int, rule: str) -> None:
    """Of the query loss, through the context; an auto-decoder's is through the codes of its tasks instead, as training has it: its codes are
    parameters, and `forward`, which fits new ones, never uses them. Single ReLU units may be dead at the start; a whole tensor may not."""
    model, batch = build(method, d), tasks(d, rule)
    params, prior_loss = model.training_params(batch)
    (head_of(model).loss(field(params, batch.query.x, model.spec), batch.query.y).mean() + prior_loss).backward()
    assert list(model.parameters())
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} has no gradient"
        grad = p.grad.to_dense()  # that of codes is sparse
        assert grad.isfinite().all(), f"{name} has a gradient that is not finite"
        assert grad.any(), f"the gradient of {name} is zero"
    if isinstance(model, MetaSDF) and model.config.rates in ("step", "parameter_step"):
        for name, p in model.rates.named_parameters():
            assert p.grad.reshape(len(p), -1).any(1).all(), f"{name}: a step has no gradient"


@every_method
@both_dimensions
@both_rules
def test_the_order_of_the_context_does_not_matter(method: str, d: int, rule: str) -> None:
    model, batch = build(method, d), tasks(d, rule)
    order = torch.randperm(CONTEXT, generator=torch.Generator().manual_seed(1))
    shuffled = Observations(*(t[:, order] for t in batch.context))
    assert_close(outputs(model, shuffled, batch.query.x), outputs(model, batch.context, batch.query.x))


@every_method
@both_dimensions
@both_rules
def test_tasks_are_independent(method: str, d: int, rule: str) -> None:
    """Another context of the second task changes nothing for the others; and each task alone, with or without batch, is what it is in company."""
    model, batch = build(method, d), tasks(d, rule)
    x = batch.query.x
    out = outputs(model, batch.context, x)
    changed = Observations(*(t.clone() for t in batch.context))
    changed.x[1] *= 0.5
    other = outputs(model, changed, x)
    assert_close(other[[0, 2]], out[[0, 2]])
    assert (other[1] - out[1]).abs().max() > 1e-6
    for b in range(TASKS):
        assert_close(outputs(model, Observations(*(t[b : b + 1] for t in batch.context)), x[b : b + 1]), out[b : b + 1])
        assert_close(outputs(model, Observations(*(t[b] for t in batch.context)), x[b]), out[b])


@every_method
@both_dimensions
@both_rules
@pytest.mark.parametrize("n_context", [1, 2 * CONTEXT])
def test_the_context_has_any_size(method: str, d: int, rule: str, n_context: int) -> None:
    model, batch = build(method, d), tasks(d, rule, n_context=n_context)
    assert batch.context.x.shape == (TASKS, n_context, d)
    assert outputs(model, batch.context, batch.query.x).isfinite().all()


@every_method
@both_dimensions
@both_rules
def test_saved_is_loaded(method: str, d: int, rule: str, tmp_path: Path) -> None:
    """Through safetensors into a conditioner made with another seed: identical output."""
    model, other, batch = build(method, d), build(method, d, seed=1), tasks(d, rule)
    out = outputs(model, batch.context, batch.query.x)
    assert not torch.equal(outputs(other, batch.context, batch.query.x), out)
    save_file(model.state_dict(), tmp_path / "prior.safetensors")
    other.load_state_dict(load_file(tmp_path / "prior.safetensors"))
    assert torch.equal(outputs(other, batch.context, batch.query.x), out)


@every_method
@both_dimensions
@both_rules
def test_adapting_leaves_the_prior_alone(method: str, d: int, rule: str) -> None:
    """No state, no gradient and no randomness is left behind, and without grad mode nothing requires grad."""
    model, batch = build(method, d), tasks(d, rule)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    out = outputs(model, batch.context, batch.query.x)
    with torch.no_grad():
        phi = model(batch.context)
    assert not any(t.requires_grad for t in tensors(phi) if all(t is not p for p in model.parameters()))
    assert_close(field(phi, batch.query.x, model.spec), out)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@every_method
@both_dimensions
@both_rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_dtype_follows_the_inputs(method: str, d: int, rule: str, dtype: torch.dtype) -> None:
    batch = tasks(d, rule)
    context, query = (Observations(*(t.to(dtype) for t in o)) for o in (batch.context, batch.query))
    model = build(method, d, dtype=dtype)
    params, prior_loss = model.training_params(TaskBatch(batch.task, context, query))
    assert {t.dtype for t in tensors(model(context)) + tensors(params)} == {prior_loss.dtype} == {dtype}
    out = field(params, query.x, model.spec)
    assert out.dtype == head_of(model).loss(out, query.y).dtype == dtype
    if dtype == torch.float32:  # and float32 is the float64 answer, rounded
        exact = outputs(build(method, d), batch.context, batch.query.x)
        assert (outputs(model, context, query.x) - exact).abs().max() < 1e-4 * max(1.0, exact.abs().max().item())


@every_method
@both_dimensions
def test_device_follows_the_inputs(method: str, d: int) -> None:
    """On tensors without data, so that no accelerator is needed: a constant made on another device would show."""
    model, batch = build(method, d).to("meta"), tasks(d, "dense").to(torch.device("meta"))
    params, prior_loss = model.training_params(batch)
    assert {t.device.type for t in [*tensors(model(batch.context)), *tensors(params), prior_loss]} == {"meta"}
    out = field(params, batch.query.x, model.spec)
    assert out.device.type == head_of(model).loss(out, batch.query.y).device.type == "meta"


@every_method
@both_dimensions
def test_projection_keeps_a_working_prior(method: str, d: int) -> None:
    """`project` is called after every optimiser step: on a fresh prior it must change nothing, and twice is once."""
    model, batch = build(method, d), tasks(d, "dense")
    out = outputs(model, batch.context, batch.query.x)
    model.project()
    model.project()
    assert torch.equal(outputs(model, batch.context, batch.query.x), out)
