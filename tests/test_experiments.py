"""The published numbers, and overriding them by name."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasdf.conditioning.codes import AutoDecoder
from metasdf.errors import UsageError
from metasdf.experiments import EXPERIMENTS, METHODS, PRESETS, Experiment, TrainConfig, experiment, from_dict, override, to_dict
from metasdf.fields import field
from metasdf.prior import build_conditioner

every_experiment = pytest.mark.parametrize("name", EXPERIMENTS)
every_2d = pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("mnist-")])
every_preset = pytest.mark.parametrize("preset", PRESETS)


@every_2d
def test_the_paper_preset_is_the_supplement(name: str) -> None:
    """Supplement 2.2.2 and 2.2.4; that the optimiser is Adam is seen in test_train."""
    e = experiment(name, preset="paper")
    context, _, method = name.removeprefix("mnist-").partition("-")
    points = {"dense": 1024, "levelset": 512}[context]
    assert (e.n_context, e.n_test) == (points, points)
    assert e.n_query == 1024
    assert e.context == context
    assert (e.train.batch, e.train.lr, e.train.epochs) == (32, 1e-4, 150 if method in ("concat", "hyper") else 50)
    assert e.train.shapes is None and e.train.lr_codes is None
    assert (e.train.schedule, e.train.warmup, e.train.clip, e.train.ema, e.train.lr_rates) == ("constant", 0, None, 0.0, None)
    assert (e.train.order, e.train.products) == ("second", "float32")
    assert (e.inner.steps, e.inner.init_rate, e.inner.rates, e.inner.constraint) == (5, 0.1, "parameter", "free")
    assert (e.inner_norm, e.outer_norm) == ("squared", "squared")
    fourier = method == "fourier"  # our variant: no more parameters than the paper's network
    assert (e.field.width, len(e.field.shapes), e.field.n_params) == ((253, 4, 132_573) if fourier else (256, 4, 132_609))
    assert (e.field.in_dim, e.field.out_dim, e.field.activation, e.field.init) == (2, 1, "relu", "standard")
    assert e.field.frequencies == (3 if fourier else 0)


def test_the_methods_are_the_supplements() -> None:
    """Supplement 2.1 (set encoders of 4 and 9 layers) and 2.2.2 (256 units; the code at the input and the third layer; hypernetworks of three
    layers)."""
    e = {name: experiment(f"mnist-dense-{name}", preset="paper").method for name in METHODS}
    assert [(m.kind, m.decoder) for m in e.values()] == [
        ("encoder", "bias"), ("encoder", "bias"), ("codes", "bias"), ("codes", "full"), ("latent", "bias")
    ]  # fmt: skip
    assert [(e[name].encoder.layers, e[name].encoder.width) for name in ("cnp4", "cnp9")] == [(4, 256), (9, 256)]
    assert all(m.bias.layers == (0, 2) for m in e.values()) and (e["hyper"].full.layers, e["hyper"].full.width) == (3, 256)


@pytest.mark.parametrize("category", ["planes", "tables", "chairs"])
def test_the_paper_preset_in_3d_is_the_supplement(category: str) -> None:
    """Supplement 3.2.2 and 3.2.3; points and clipping from the authors' code."""
    dense, levelset, partial, oriented = (experiment(f"{category}-{rule}", preset="paper") for rule in ("dense", "levelset", "partial", "oriented"))
    assert (dense.field.width, len(dense.field.shapes) - 1, dense.field.out_dim, dense.head) == (512, 8, 2, "distance_sign")
    assert (levelset.field.width, len(levelset.field.shapes) - 1, levelset.field.out_dim, levelset.head) == (512, 5, 1, "distance")
    for e in (dense, levelset):
        assert e.category == category and (e.inner_norm, e.outer_norm) == ("l1", "l1") and e.field.in_dim == 3
        assert (e.inner.steps, e.inner.init_rate, e.inner.rates) == (5, 5e-3, "parameter_step")
        assert (e.train.batch, e.train.lr, e.train.optimiser, e.train.schedule, e.train.clip_value) == (64, 5e-4, "adam", "halve", 0.5)
    assert [at * dense.train.epochs for at in dense.train.halve_at] == [350] and dense.train.epochs == 500
    assert [at * levelset.train.epochs for at in levelset.train.halve_at] == [500, 1000, 1500] and levelset.train.epochs == 2000
    assert (dense.n_context, dense.n_query, dense.n_test, levelset.n_test) == (12_000, 12_000, 50_000, 10_000)
    assert (partial.context, oriented.context) == ("partial", "oriented")


@pytest.mark.parametrize("category", ["planes", "tables", "chairs"])
def test_the_baselines_in_3d_are_the_supplements(category: str) -> None:
    """Supplement 3.2.2 and 3.2.3: 8 hidden layers of 512 with weight normalisation and codes of 256; 5 blocks of 512 to 256 numbers before 5 hidden
    layers of 512; l1, 2,000 epochs, halved every 500, 64 a batch. DeepSDF's own numbers from its code."""
    deepsdf, pointnet = (experiment(f"{category}-{method}", preset="paper") for method in ("deepsdf", "pointnet"))
    for e in (deepsdf, pointnet):
        assert e.category == category and (e.inner_norm, e.outer_norm, e.head) == ("l1", "l1", "distance")
        assert (e.train.batch, e.train.lr, e.train.epochs, e.train.optimiser, e.train.schedule) == (64, 5e-4, 2000, "adam", "halve")
        assert [at * e.train.epochs for at in e.train.halve_at] == [500, 1000, 1500]
        assert e.method.code_dim == 256 and e.method.decoder == "bias"
    assert (deepsdf.context, deepsdf.field.width, len(deepsdf.field.shapes) - 1) == ("dense", 512, 8)
    assert deepsdf.method.kind == "codes" and deepsdf.method.bias.weight_norm and deepsdf.method.bias.layers == (0, *deepsdf.field.skip) == (0, 4)
    assert (deepsdf.n_query, deepsdf.clamp, deepsdf.train.lr_codes, deepsdf.train.dropout) == (16_384, 0.1, 1e-3, 0.2)
    codes = deepsdf.method.codes
    assert (codes.steps, codes.lr, codes.decay, codes.points, codes.prior_weight) == (800, 5e-3, 0.1, 8000, 1e-4)
    assert (pointnet.context, pointnet.field.width, len(pointnet.field.shapes) - 1) == ("levelset", 512, 5)
    assert pointnet.method.encoder_kind == "pointnet" and (pointnet.method.pointnet.blocks, pointnet.method.pointnet.width) == (5, 512)


@every_preset
def test_deepsdf_starts_within_its_clamp(preset: str) -> None:
    """Beyond it there is no gradient: a field that starts there never learns."""
    e = experiment("tables-deepsdf", preset=preset)
    model = build_conditioner(e, n_tasks=8, generator=torch.Generator().manual_seed(0))
    assert isinstance(model, AutoDecoder) and model.codes is not None
    x = torch.rand(8, 200, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        out = field(model.decoder(model.codes), x, model.spec)
    assert e.clamp == 0.1 and out.abs().max() < e.clamp and out.std() > 1e-4


@every_2d
def test_the_cpu_preset_keeps_network_and_test(name: str) -> None:
    cpu, paper = experiment(name), experiment(name, preset="paper")
    assert cpu.preset == "cpu" and cpu.name == paper.name == name
    assert cpu.field.shapes == paper.field.shapes and cpu.inner.steps == paper.inner.steps
    assert (cpu.context, cpu.n_test) == (paper.context, paper.n_test)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="there is no experiment 'mnist'") as caught:
        experiment("mnist")
    assert caught.value.fix == f"one of: {', '.join(EXPERIMENTS)}"
    assert {"mnist-dense", "mnist-levelset", "mnist-dense-cnp9", "mnist-levelset-fourier"} < EXPERIMENTS.keys()
    with pytest.raises(UsageError, match="there is no preset 'fast'") as caught:
        experiment("mnist-dense", preset="fast")
    assert caught.value.fix == "one of: paper, cpu"


@every_experiment
@every_preset
def test_through_json_and_back(name: str, preset: str) -> None:
    e = experiment(name, preset=preset)
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(e)))) == e


OVERRIDES = [
    ("n_context", "77", 77),
    ("inner_norm", "l1", "l1"),
    ("train.lr", "3e-4", 3e-4),
    ("train.lr", "1", 1.0),
    ("train.lr_rates", "0.25", 0.25),
    ("train.lr_rates", "none", None),
    ("train.clip", "None", None),
    ("train.batch", "5", 5),
    ("train.split", "3", 3),
    ("train.split", "none", None),
    ("train.schedule", "constant", "constant"),
    ("train.order", "anneal", "anneal"),
    ("field.width", "16", 16),
    ("field.init", "geometric", "geometric"),
    ("inner.checkpoint", "true", True),
    ("inner.checkpoint", "False", False),
    ("inner.rates", "step", "step"),
    ("name", "my-digits", "my-digits"),
]


def at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("path", "text", "value"), OVERRIDES)
def test_override(path: str, text: str, value: object) -> None:
    e = experiment("mnist-dense")
    changed = override(e, path, text)
    assert at(changed, path) == value and type(at(changed, path)) is type(value)
    flat, was = leaves(to_dict(changed)), leaves(to_dict(e))
    assert {k for k in flat if flat[k] != was[k]} <= {path}  # and nothing else
    assert e == experiment("mnist-dense")  # the original stays as it was


def leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


BAD = [
    ("learning_rate", "1", "Experiment has no field 'learning_rate'", "train"),
    ("train.learning", "1", "TrainConfig has no field 'learning'", "lr_rates"),
    ("train..lr", "1", "TrainConfig has no field ''", "batch"),
    ("train.lr.x", "1", "'lr' is a single value, it has no field 'x'", "--set train.lr=VALUE"),
    ("train", "1", "cannot set train to '1'", "--show"),
    ("train.", "1", "cannot set train. to '1'", "--show"),
    ("train.lr", "fast", "cannot set train.lr to 'fast'", "--show"),
    ("train.lr", "", "cannot set train.lr to ''", "--show"),
    ("train.batch", "1.5", "cannot set train.batch to '1.5'", "--show"),
    ("train.batch", "none", "cannot set train.batch to 'none'", "--show"),
    ("train.schedule", "linear", "cannot set train.schedule to 'linear'", "--show"),
    ("inner.checkpoint", "1", "cannot set inner.checkpoint to '1'", "--show"),
    ("context", "sparse", "cannot set context to 'sparse'", "--show"),
]


@pytest.mark.parametrize(("path", "text", "what", "fix"), BAD)
def test_a_bad_override_says_what_would_do(path: str, text: str, what: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(experiment("mnist-dense"), path, text)
    assert caught.value.what == what and fix in caught.value.fix and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("path", "says"), [("train.schedule", "one of constant, cosine"), ("inner.checkpoint", "true or false"), ("train", "train.lr=3e-4")]
)
def test_allowed_values_are_named(path: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(experiment("mnist-dense"), path, "?")
    assert says in caught.value.cause


@pytest.mark.parametrize(
    "setting",
    ["train.batch=0", "train.epochs=0", "train.lr=0", "train.lr=nan", "train.lr=1e39", "train.lr=-1", "train.lr_rates=inf", "train.ema=1",
     "train.clip=0", "train.seed=-1", "train.warmup=-1", "train.anneal=2", "n_context=0", "n_query=-1", "n_test=0", "field.width=0", "inner.steps=0",
     "train.split=0", "train.dropout=1", "clamp=0"],
)  # fmt: skip
def test_values_without_sense_are_refused(setting: str) -> None:
    path, _, text = setting.partition("=")
    with pytest.raises(UsageError, match="cannot set") as caught:
        override(experiment("mnist-dense"), path, text)
    assert path.split(".")[-1] in caught.value.cause  # the field is named, with what it must be


@pytest.mark.parametrize(
    ("change", "says"),
    [({"colour": 1}, "no field colour"), ({"train": None}, "TrainConfig must be a group"), ({"n_context": "many"}, "n_context cannot be 'many'"),
     ({"n_context": True}, "n_context cannot be True"), ({"context": "sparse"}, "context cannot be 'sparse'"),
     ({"train": {"lr": None}}, "lr cannot be None"), ({"train": {"speed": 1}}, "TrainConfig has no field speed"),
     ({"inner": {"checkpoint": 1}}, "checkpoint cannot be 1"), ({"train": {"batch": 0}}, "batch must be at least 1")],
)  # fmt: skip
def test_from_dict_refuses_what_it_does_not_know(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_dict(Experiment, to_dict(experiment("mnist-dense")) | change)


def test_from_dict_takes_whole_numbers_for_real_ones() -> None:
    assert from_dict(TrainConfig, {"lr": 1, "clip": 2}) == TrainConfig(lr=1, clip=2)


TRAIN = st.builds(
    TrainConfig,
    batch=st.integers(1, 1000), lr=st.floats(1e-9, 1000), lr_rates=st.none() | st.floats(0, 1000), schedule=st.sampled_from(["constant", "cosine"]),
    warmup=st.integers(0, 1000), clip=st.none() | st.floats(1e-9), ema=st.floats(0, 1, exclude_max=True), order=st.sampled_from(["second", "first"]),
    epochs=st.integers(1, 10**6), split=st.none() | st.integers(1, 1000), seed=st.integers(0, 2**60),
)  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(TRAIN)
def test_any_config_survives_json_and_text(train: TrainConfig) -> None:
    """Through a run folder, and typed field by field after --set."""
    e = replace(experiment("mnist-dense"), train=train)
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(e)))) == e
    typed = experiment("mnist-dense")
    for f in fields(train):
        typed = override(typed, f"train.{f.name}", str(getattr(train, f.name)))
    assert typed == e


def test_every_field_can_be_typed() -> None:
    """All leaves of all groups: their own value as text gives the same experiment."""
    e = experiment("mnist-levelset")
    for path, value in leaves(to_dict(e)).items():
        assert override(e, path, str(value)) == e, path
    assert all(is_dataclass(getattr(e, name)) for name in ("field", "inner", "train"))


def test_configs_are_values() -> None:
    e = experiment("mnist-dense")
    assert hash(e) == hash(experiment("mnist-dense"))

    @dataclass(frozen=True)
    class Other:
        size: int = 1

    assert override(Other(), "size", "2") == Other(2)
    with pytest.raises(AttributeError):
        e.n_context = 3  # type: ignore[misc]


def test_mirrors() -> None:
    assert override(experiment("planes-dense"), "train.mirror", "0,2").train.mirror == (0, 2)
    assert from_dict(Experiment, to_dict(experiment("tables-levelset"))).train.mirror == (0, 2)
    assert not any(experiment(name, preset="paper").train.mirror for name in EXPERIMENTS)
    for name, axes, what in (("mnist-dense", "2", "axes of a 2D shape"), ("chairs-deepsdf", "0", "must be empty for an auto-decoder")):
        with pytest.raises(UsageError) as caught:
            override(experiment(name), "train.mirror", axes)
        assert what in str(caught.value)
