"""Published experiments as typed values: one frozen dataclass each, presets derived by `replace`, fields overridden by name."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from dataclasses import field as setting
from functools import partial
from typing import Any, Literal

from metasdf.conditioning import deepsdf
from metasdf.conditioning.codes import AutoDecoderConfig
from metasdf.conditioning.encoders import SetEncoderConfig
from metasdf.conditioning.hypernetwork import BiasHypernetworkConfig, HypernetworkConfig
from metasdf.conditioning.inner_loop import InnerLoopConfig
from metasdf.conditioning.latent import LatentLoopConfig
from metasdf.conditioning.pointnet import ResnetPointNetConfig
from metasdf.errors import UsageError
from metasdf.fields import FieldSpec
from metasdf.heads import HeadKind, Norm
from metasdf.tasks import ContextRule


@dataclass(frozen=True)
class TrainConfig:
    """How a conditioner is trained. The defaults are the paper's 2D setting (supplement 2.2.4)."""

    batch: int = 32
    optimiser: Literal["adam", "muon"] = "adam"  # muon: Muon for the hidden weights of theta, Adam for the rest
    lr: float = 1e-4
    lr_muon: float = 1e-2  # learning rate of the weights that Muon takes
    lr_rates: float | None = None  # learning rate of the inner rates alpha; None: the same
    lr_curvature: float = 1e-2  # learning rate of the curvature matrices that Muon takes
    lr_codes: float | None = None  # learning rate of an auto-decoder's codes; None: the same
    shapes: int | None = None  # training shapes used, drawn by the seed; None: the whole split
    schedule: Literal["constant", "cosine", "halve"] = "constant"  # cosine decays to the end of the budget or of the epochs
    halve_at: tuple[float, ...] = ()  # of the schedule `halve`: fractions of the training after which the learning rate is half of what it was
    warmup: int = 0  # steps over which the learning rate rises linearly
    clip: float | None = None  # norm of the whole gradient
    clip_value: float | None = None  # absolute value of each of its numbers, before the norm
    ema: float = 0.0  # decay of the averaged weights that evaluation uses; 0: none
    products: Literal["float32", "bfloat16", "auto"] = "float32"  # precision of matrix products in training; auto: whichever is faster here
    order: Literal["second", "first", "anneal"] = "second"  # of the meta-gradient; anneal goes from first to second
    anneal: float = 0.2  # fraction of the training over which `anneal` raises the second-order part from 0 to 1
    multistep: float = 0.0  # fraction of the training over which the loss after every inner step counts, ever less, beside the last one's
    near: float = 0.0  # share of the query drawn near the surface, see tasks.NEAR
    mirror: tuple[int, ...] = ()  # axes along which a shape is reflected, or not, each time it is drawn: more shapes, of symmetric categories
    dropout: float = 0.0  # probability with which a hidden unit is switched off at a point of the query
    epochs: int = 50  # used where no wall-clock budget is given
    split: int | None = None  # tasks in memory at a time, the same numbers to rounding; None: chosen from free memory
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fine, rule in (
            ("batch", self.batch >= 1, "at least 1"),
            ("lr", 0 < self.lr <= 1000, "above 0 and at most 1000"),
            ("lr_muon", 0 < self.lr_muon <= 1000, "above 0 and at most 1000"),
            ("lr_curvature", 0 < self.lr_curvature <= 1000, "above 0 and at most 1000"),
            ("lr_rates", self.lr_rates is None or 0 <= self.lr_rates <= 1000, "none, or between 0 and 1000"),
            ("lr_codes", self.lr_codes is None or 0 <= self.lr_codes <= 1000, "none, or between 0 and 1000"),
            ("shapes", self.shapes is None or self.shapes >= 1, "none, or at least 1"),
            ("warmup", self.warmup >= 0, "at least 0"),
            ("clip", self.clip is None or self.clip > 0, "none, or above 0"),
            ("clip_value", self.clip_value is None or self.clip_value > 0, "none, or above 0"),
            ("halve_at", all(0 < at < 1 for at in self.halve_at), "fractions between 0 and 1"),
            ("ema", 0 <= self.ema < 1, "at least 0 and below 1"),
            ("anneal", 0 <= self.anneal <= 1, "between 0 and 1"),
            ("multistep", 0 <= self.multistep <= 1, "between 0 and 1"),
            ("near", 0 <= self.near <= 1, "between 0 and 1"),
            ("mirror", all(axis in (0, 1, 2) for axis in self.mirror), "axes of 0, 1, 2"),
            ("dropout", 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("split", self.split is None or self.split >= 1, "none, or at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not fine:
                raise ValueError(f"TrainConfig.{name} must be {rule}, got {getattr(self, name)}")


@dataclass(frozen=True)
class MethodConfig:
    """Which conditioner, and its parts; those that the kind does not have are not used. MetaSDF's own part is `Experiment.inner`."""

    kind: Literal["metasdf", "encoder", "codes", "latent"] = "metasdf"  # encoder: conditional neural process; codes: auto-decoder
    decoder: Literal["bias", "full"] = "bias"  # of a code: concatenation, or a hypernetwork for all parameters
    code_dim: int = 256  # not published for 2D; "256 hidden units" in all models
    encoder_kind: Literal["mean", "pointnet"] = "mean"  # how a context becomes a code: SetEncoder, or ResnetPointNet
    encoder: SetEncoderConfig = setting(default_factory=SetEncoderConfig)
    pointnet: ResnetPointNetConfig = setting(default_factory=ResnetPointNetConfig)
    bias: BiasHypernetworkConfig = setting(default_factory=BiasHypernetworkConfig)
    full: HypernetworkConfig = setting(default_factory=HypernetworkConfig)
    codes: AutoDecoderConfig = setting(default_factory=AutoDecoderConfig)
    latent: LatentLoopConfig = setting(default_factory=LatentLoopConfig)

    def __post_init__(self) -> None:
        if self.code_dim < 1:
            raise ValueError(f"MethodConfig.code_dim must be at least 1, got {self.code_dim}")


@dataclass(frozen=True)
class Experiment:
    """A prior to be learned: data rule, field, conditioner, losses and training."""

    name: str
    preset: str
    context: ContextRule
    n_context: int
    n_query: int
    n_test: int  # context points at test time, whatever training used
    field: FieldSpec = setting(default_factory=FieldSpec)
    method: MethodConfig = setting(default_factory=MethodConfig)
    inner: InnerLoopConfig = setting(default_factory=InnerLoopConfig)
    category: str | None = None  # of the shapes it is about; None: all of a data set
    head: HeadKind = "distance"  # distance_sign: two outputs and the composite loss, without norms
    inner_norm: Norm = "squared"
    outer_norm: Norm = "squared"
    clamp: float | None = None  # of predictions and distances in both losses, of the head `distance`; see heads.Distance
    train: TrainConfig = setting(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for name in ("n_context", "n_query", "n_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"Experiment.{name} must be at least 1, got {getattr(self, name)}")
        if any(axis >= self.field.in_dim for axis in self.train.mirror):
            raise ValueError(f"TrainConfig.mirror must be axes of a {self.field.in_dim}D shape, got {self.train.mirror}")
        if self.train.mirror and self.method.kind == "codes":
            raise ValueError("TrainConfig.mirror must be empty for an auto-decoder, whose code stands for a shape as it is")
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"Experiment.clamp must be none, or above 0, got {self.clamp}")


def mnist_dense() -> Experiment:
    """2D SDFs of MNIST digits from dense samples (supplement 2.2.2 and 2.2.4; losses squared as in the authors' notebooks).

    The supplement does not say how the 2D rates are shared; one per parameter (Meta-SGD) is read from the main paper's method section.
    The size of the query set is not published: as many as the context.
    """
    return Experiment(name="mnist-dense", preset="paper", context="dense", n_context=32**2, n_query=32**2, n_test=32**2)


def mnist_levelset() -> Experiment:
    """The same from 512 points of the zero level set; the query is dense SDF samples (supplement 2.2.4)."""
    return replace(mnist_dense(), name="mnist-levelset", context="levelset", n_context=512, n_test=512)


def with_fourier(experiment: Experiment, *, frequencies: int = 3, width: int = 253) -> Experiment:
    """Our variant of a 2D experiment: Fourier features (Tancik et al. 2020) beside the coordinates, and layers narrower by as many
    parameters as these cost: 132,573 against 132,609. The number of frequencies is measured, see docs/performance.md."""
    return replace(experiment, name=f"{experiment.name}-fourier", field=replace(experiment.field, frequencies=frequencies, width=width))


CATEGORIES = ("planes", "tables", "chairs")
MIRRORED = {"planes": (2,), "tables": (0, 2), "chairs": (0,)}  # left and right are alike, of tables front and back too; planes head for -x


def solid_dense(category: str) -> Experiment:
    """3D SDFs of a category from dense samples (supplement 3.2.2 and 3.2.3): 8 hidden layers of 512 units, composite loss inside and outside,
    rates per parameter and step from 5e-3, Adam 5e-4 for 500 epochs, half of it after 350, 64 shapes a batch.

    From the authors' code: 12,000 + 12,000 of 24,000 samples, 50,000 at test time, gradients clipped at 0.5 each, geometric initialisation.
    """
    return Experiment(
        name=f"{category}-dense", preset="paper", category=category, context="dense", n_context=12_000, n_query=12_000, n_test=50_000,
        field=FieldSpec(in_dim=3, out_dim=2, width=512, hidden_layers=7, init="geometric"), head="distance_sign", inner_norm="l1", outer_norm="l1",
        inner=InnerLoopConfig(rates="parameter_step", init_rate=5e-3),
        train=TrainConfig(batch=64, lr=5e-4, epochs=500, schedule="halve", halve_at=(0.7,), clip_value=0.5),
    )  # fmt: skip


def solid_levelset(category: str) -> Experiment:
    """The same from bare surface points: 5 hidden layers, one output, l1, 2,000 epochs with the learning rate halved every 500 (3.2.2, 3.2.3).

    The size of its contexts in training is not published; the authors' code tests with 10,000 points.
    """
    e = solid_dense(category)
    return replace(
        e, name=f"{category}-levelset", context="levelset", n_context=10_000, n_test=10_000, head="distance",
        field=replace(e.field, out_dim=1, hidden_layers=4), train=replace(e.train, epochs=2000, halve_at=(0.25, 0.5, 0.75)),
    )  # fmt: skip


def solid_partial(category: str) -> Experiment:
    """Not of the paper: what one depth camera sees of the surface is the context."""
    return replace(solid_levelset(category), name=f"{category}-partial", context="partial", n_context=2048, n_test=2048)


def solid_oriented(category: str) -> Experiment:
    """Not of the paper: surface points with normals, as many scanners give them, are the context (`tasks.oriented`)."""
    return replace(solid_levelset(category), name=f"{category}-oriented", context="oriented")


def solid_deepsdf(category: str) -> Experiment:
    """The dense baseline, DeepSDF (3.2.2): see `conditioning.deepsdf`. l1, 2,000 epochs with the learning rate halved every 500, batch 64 (3.2.3).

    From DeepSDF's official code: 16,384 points of each shape a step, distances clamped at 0.1, codes learn at 1e-3; 8,000 points, others each time,
    in each step of the fit. In training it sees the query alone.
    """
    e = solid_dense(category)
    return replace(
        e, name=f"{category}-deepsdf", field=deepsdf.FIELD, n_context=1, n_query=16_384, head="distance", clamp=0.1,
        method=MethodConfig(kind="codes", decoder="bias", code_dim=deepsdf.CODE_DIM, bias=deepsdf.DECODER, codes=deepsdf.CODES),
        train=replace(e.train, epochs=2000, halve_at=(0.25, 0.5, 0.75), clip_value=None, lr_codes=1e-3, dropout=deepsdf.DROPOUT),
    )  # fmt: skip


def solid_pointnet(category: str) -> Experiment:
    """The level-set baseline, a ResNet PointNet encoder before a field of 5 hidden layers of 512 units (3.2.2), trained as the others (3.2.3).

    Where the code enters is not published: at the input and the third layer, as in 2D.
    """
    e = solid_levelset(category)
    return replace(
        e, name=f"{category}-pointnet", method=MethodConfig(kind="encoder", encoder_kind="pointnet", decoder="bias", code_dim=256),
        train=replace(e.train, clip_value=None),
    )  # fmt: skip


SOLIDS = {
    "dense": solid_dense, "levelset": solid_levelset, "partial": solid_partial, "oriented": solid_oriented, "deepsdf": solid_deepsdf,
    "pointnet": solid_pointnet,
}  # fmt: skip
METHODS = {
    "cnp4": MethodConfig(kind="encoder", encoder=SetEncoderConfig(layers=4)),
    "cnp9": MethodConfig(kind="encoder", encoder=SetEncoderConfig(layers=9)),
    "concat": MethodConfig(kind="codes", decoder="bias"),
    "hyper": MethodConfig(kind="codes", decoder="full"),
    "latent": MethodConfig(kind="latent", decoder="bias"),  # not of the paper: as in Functa and COIN++
}


def with_method(experiment: Experiment, name: str) -> Experiment:
    """The same experiment by another method: conditional neural process with a set encoder of 4 or 9 layers, auto-decoder with concatenation
    or with a hypernetwork (supplement 2.1 and 2.2.2), inner loop on a code.

    Auto-decoders train for 150 epochs, the others for 50 (2.2.4). In training they see the query alone: their level-set experiment differs
    from the dense one in what a new code is fitted to.
    """
    method = METHODS[name]
    epochs = 150 if method.kind == "codes" else experiment.train.epochs
    return replace(experiment, name=f"{experiment.name}-{name}", method=method, train=replace(experiment.train, epochs=epochs))


def cpu_preset(experiment: Experiment) -> Experiment:
    """The same network and data, fitted to a wall-clock budget on a CPU: fewer shapes and points a step, larger and decaying learning rates.
    In 3D a smaller network too.

    Departures from the paper, for MetaSDF each measured at equal cost (results/recipes). For all methods: Muon for the hidden weights, l1
    outside, averaged weights, bfloat16 products where they are faster, biases spread over the domain.
    """
    if experiment.field.in_dim == 3:
        return _cpu_solid(experiment)
    common = replace(
        experiment,
        preset="cpu",
        n_context=512 if experiment.context == "dense" else 256,  # a digit has some 230 contour points: more only repeat them
        n_query=512,
        field=replace(experiment.field, init="spread"),
        outer_norm="l1",
        train=replace(experiment.train, optimiser="muon", schedule="cosine", warmup=20, clip=1.0, ema=0.998, products="auto"),
    )
    own = {"metasdf": _cpu_metasdf, "codes": _cpu_codes}
    return own.get(experiment.method.kind, _cpu_encoder)(common)


def _cpu_metasdf(e: Experiment) -> Experiment:
    """4 shapes a step; rates per step too, learned thirty times faster than theta, starting at 0.01 since biases spread over the domain make
    0.1 diverge (0.002 with Fourier features); curvature beside the rates."""
    init_rate = 0.002 if e.field.frequencies else 0.01
    return replace(
        e,
        inner=replace(e.inner, rates="parameter_step", init_rate=init_rate, constraint="clip", curvature="kronecker"),
        train=replace(e.train, batch=4, lr=2e-3, lr_muon=1e-2, lr_rates=6e-2, lr_curvature=3e-2),
    )


def _cpu_solid(e: Experiment) -> Experiment:
    """3D: five layers of 128 units that see three Fourier frequencies (more: `_small_metasdf`), in place of up to nine of 512; the recipe of 2D, and
    a twentieth of the points or less. Squared errors inside, which these rates suit better than l1 (results/recipes/solids)."""
    small = replace(
        e, preset="cpu", n_context=512, n_query=512, n_test=4096 if e.context == "dense" else 2048,
        field=FieldSpec(in_dim=3, out_dim=e.field.out_dim, width=128, hidden_layers=3, frequencies=3, init="spread"),
        train=replace(
            e.train, batch=4, optimiser="muon", lr=1e-3, lr_muon=5e-3, schedule="cosine", halve_at=(), warmup=20, clip=1.0, clip_value=None,
            ema=0.998, products="auto", mirror=() if e.method.kind == "codes" else MIRRORED.get(e.category or "", ()),
        ),
    )  # fmt: skip
    own = {"metasdf": _small_metasdf, "codes": _small_deepsdf}
    return own.get(e.method.kind, _small_pointnet)(small)


def _small_metasdf(e: Experiment) -> Experiment:
    """Half the learning rates of 2D, at which one batch in a hundred diverges here. Seven frequencies where distances tell of thin parts: from bare
    points five make more signs wrong, and codes do better with three (results/trials)."""
    frequencies = 7 if e.context == "dense" else e.field.frequencies
    e = _cpu_metasdf(replace(e, inner_norm="squared", field=replace(e.field, frequencies=frequencies)))
    return replace(e, train=replace(e.train, lr=1e-3, lr_muon=5e-3, lr_rates=3e-2, lr_curvature=1.5e-2))


def _small_deepsdf(e: Experiment) -> Experiment:
    """The field of the other methods, and codes so small that it starts within the clamp; more points a step, which cost little without inner
    steps; no normalised weights, which Muon does not need, and no dropout, which small networks do not (results/trials)."""
    return replace(
        e, n_context=1, n_query=2048, field=replace(e.field, init="uniform"),
        method=replace(e.method, code_dim=64, bias=replace(e.method.bias, layers=(0, 2), weight_norm=False),
                       codes=replace(e.method.codes, points=1024, init_norm=0.25)),
        train=replace(e.train, batch=8, lr_muon=1e-2, lr_codes=1e-2, dropout=0.0),
    )  # fmt: skip


def _small_pointnet(e: Experiment) -> Experiment:
    """A narrower encoder."""
    return replace(e, n_context=1024, n_query=1024, method=replace(e.method, code_dim=128, pointnet=replace(e.method.pointnet, width=128)))


def _cpu_encoder(e: Experiment) -> Experiment:
    """Conditional neural processes, and the loop on a code: as few shapes a step as MetaSDF, and faster hidden weights, but not those of nine layers
    (results/recipes/methods)."""
    return replace(e, train=replace(e.train, batch=4, lr=1e-3, lr_muon=2e-2 if e.method.encoder.layers < 9 else 1e-2))


def _cpu_codes(e: Experiment) -> Experiment:
    """Auto-decoders see fewer shapes, each of them often: 4,000 some 30 times in a quarter of an hour, where all would have two visits. More shapes
    a step, too, are better for them (results/recipes/methods). Each step of a fit sees a quarter of a dense context, in a quarter of the time.

    A hypernetwork's steps take three times as long, in training and in fits: it sees 1,500 shapes, and fits make half as many steps, twice as long.
    """
    codes, shapes = replace(e.method.codes, points=256), 4000
    if e.method.decoder == "full":
        codes, shapes = replace(codes, steps=400, lr=1e-2), 1500
    return replace(
        e, method=replace(e.method, codes=codes), train=replace(e.train, batch=16, lr=1e-3, lr_muon=1e-2, lr_codes=1e-2, shapes=shapes)
    )


def _published(context: Callable[[], Experiment]) -> dict[str, Callable[[], Experiment]]:
    """An experiment, its variant with Fourier features, and the same by every other method."""
    name = context().name
    others = {f"{name}-{method}": partial(_by, method, context) for method in METHODS}
    return {name: context, f"{name}-fourier": lambda: with_fourier(context()), **others}


def _by(method: str, context: Callable[[], Experiment]) -> Experiment:
    return with_method(context(), method)


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    **_published(mnist_dense), **_published(mnist_levelset),
    **{f"{category}-{name}": partial(solid, category) for category in CATEGORIES for name, solid in SOLIDS.items()},
}  # fmt: skip
PRESETS = {"paper": lambda experiment: experiment, "cpu": cpu_preset}


def experiment(name: str, *, preset: str = "cpu") -> Experiment:
    """The experiment of that name. Raises UsageError, with the nearest names, for one that does not exist."""
    if name not in EXPERIMENTS:
        raise UsageError(f"there is no experiment {name!r}", cause="a misspelt name", fix=f"one of: {', '.join(EXPERIMENTS)}")
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", fix=f"one of: {', '.join(PRESETS)}")
    return PRESETS[preset](EXPERIMENTS[name]())


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries, as JSON would give them back: with lists for tuples."""
    return asdict(config, dict_factory=lambda items: {key: list(value) if isinstance(value, tuple) else value for key, value in items})


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """The inverse of `to_dict`. Raises ValueError for unknown or badly typed fields."""
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} must be a group of fields, got {values!r}")
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    for name, value in values.items():
        if not is_dataclass(hints[name]) and not _is_a(hints[name], value):
            raise ValueError(f"{cls.__name__}.{name} cannot be {value!r}")
    return cls(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return from_dict(hint, value)
    return tuple(value) if typing.get_origin(hint) is tuple else value  # JSON has lists alone


def _is_a(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_is_a(typing.get_args(hint)[0], each) for each in value)
    if origin in (types.UnionType, typing.Union):
        return any(_is_a(arg, value) for arg in typing.get_args(hint))
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if hint is float else hint)


def override(config: Any, path: str, text: str, *, group: str = "") -> Any:
    """`config` with the field at a dotted path set from text, e.g. override(e, "train.lr", "3e-4"). Raises UsageError on a bad name or value.

    `group` is where `config` stands in a larger one ("train."), for the messages.
    """
    name, _, rest = path.partition(".")
    names = [f.name for f in fields(config)]
    if name not in names:
        raise UsageError(f"{type(config).__name__} has no field {name!r}", cause="a misspelt name in --set",
                         fix=f"one of: {', '.join(names)}")
    value = getattr(config, name)
    try:
        if rest:
            if not is_dataclass(value):
                raise UsageError(f"{name!r} is a single value, it has no field {rest!r}", fix=f"--set {group}{name}=VALUE")
            return replace(config, **{name: override(value, rest, text, group=f"{group}{name}.")})
        return replace(config, **{name: _parse(typing.get_type_hints(type(config))[name], text)})
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"cannot set {group}{path} to {text!r}", cause=str(error),
                         fix="see the allowed values with: metasdf train NAME --show") from error  # fmt: skip


def _parse(hint: Any, text: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        if text not in allowed:
            raise ValueError(f"it must be one of {', '.join(allowed)}")
        return text
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none":
            return None
        return _parse(next(arg for arg in typing.get_args(hint) if arg is not type(None)), text)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("it must be true or false")
        return text.lower() == "true"
    if origin is tuple:
        return tuple(_parse(typing.get_args(hint)[0], part) for part in text.strip("()[]").split(",") if part.strip())
    if hint in (int, float, str):
        return hint(text)
    raise ValueError("it is a group of fields: set them one by one, for example train.lr=3e-4")
