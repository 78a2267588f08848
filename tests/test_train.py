"""The training loop: its objective, its averages, and above all that a run survives whatever happens to it.

A run that was killed (SIGKILL in a real process, or an exception that nothing catches) and resumed must end with the very bits of a run that
was left alone. Fields are tiny, shapes are circles.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from metasdf import train as training
from metasdf.checkpoint import load_state, save_state
from metasdf.cli import cli
from metasdf.conditioning.base import Conditioner
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.data import loader
from metasdf.data.store import Store, StoreWriter
from metasdf.devices import bfloat16_pays
from metasdf.errors import CheckpointError, MetaSDFError, TrainingError, UsageError
from metasdf.experiments import Experiment, experiment, to_dict
from metasdf.fields import FieldSpec, Layer, Params, field, initialise
from metasdf.geometry.image import pixel_grid
from metasdf.heads import Distance
from metasdf.memory import model_bytes, task_bytes
from metasdf.prior import load
from metasdf.tasks import Draw, Observations, TaskBatch
from metasdf.train import Dropping, Limit, Trainer, meta_gradient, meta_loss, schedule

CPU = torch.device("cpu")
SIDE, TRAIN_SHAPES, BATCH = 12, 8, 4
STEPS = 12  # six epochs of two


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, so the files are those of that moment."""


class Watch:
    """A monitor that remembers, and that does something after given steps."""

    def __init__(self, **at: Callable[[], object]) -> None:
        self.at = {int(name.removeprefix("step")): action for name, action in at.items()}
        self.said: list[str] = []
        self.rows: list[dict[str, float]] = []
        self.each: Callable[[], object] = lambda: None

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.each()
        self.at.get(int(row["step"]), lambda: None)()

    def validated(self, row: dict[str, float]) -> None:
        pass


def write_circles(path: Path, *, seed: int = 0) -> Store:
    n, rng, grid = TRAIN_SHAPES + 2, np.random.default_rng(seed), pixel_grid(SIDE)
    centre, radius, angle = rng.uniform(-0.1, 0.1, (n, 1, 2)), rng.uniform(0.15, 0.3, (n, 1)), rng.uniform(0, 2 * np.pi, (n, 40))
    with StoreWriter(path, kind="image-sdf-2d", request={}, meta={"source": "circles", "resolution": SIDE, "licence": "none"}) as writer:
        writer.add("sdf", (np.linalg.norm(grid - centre, axis=-1) - radius).reshape(n, SIDE, SIDE).astype(np.float32))
        writer.add("contour_points", (centre + radius[..., None] * np.stack((np.cos(angle), np.sin(angle)), -1)).reshape(-1, 2).astype(np.float32))
        writer.add("contour_offsets", np.arange(n + 1) * 40)
        writer.splits = {"train": np.arange(TRAIN_SHAPES), "val": np.arange(TRAIN_SHAPES, n)}
    return Store.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_circles(tmp_path_factory.mktemp("train") / "circles")


CPU_TRAIN = {"warmup": 2, "ema": 0.9, "products": "bfloat16"}


def tiny(rule: str = "dense", *, preset: str = "cpu", field: dict[str, Any] | None = None, **train: Any) -> Experiment:
    e = experiment(f"mnist-{rule}", preset=preset)
    return replace(
        e, n_context=30, n_query=30, n_test=30,
        field=replace(e.field, **{"width": 16, "hidden_layers": 1, **(field or {})}),
        inner=replace(e.inner, steps=2),
        method=replace(e.method, code_dim=16, encoder=replace(e.method.encoder, width=16), full=replace(e.method.full, width=16),
                       codes=replace(e.method.codes, steps=5)),
        train=replace(e.train, **{**(CPU_TRAIN if preset == "cpu" else {}), "batch": BATCH, **train}),
    )  # fmt: skip


def trainer(run: Path, store: Store, e: Experiment | None = None, *, steps: int = STEPS, watch: Watch | None = None, **options: Any) -> Trainer:
    return Trainer(e or tiny(), store, run, Limit(None, steps), watch or Watch(), **{"device": CPU, "pictures": False, **options})


@contextmanager
def exactly() -> Iterator[None]:
    """Stores, fields and training in float64, where sums in another order give the same numbers even after steps that amplify rounding."""

    def stack(tasks: list[int], draws: list[Draw]) -> TaskBatch:
        return _double(real_stack(tasks, draws))

    def build(*arguments: Any, **options: Any) -> Conditioner:
        return real_build(*arguments, **options).double()

    real_stack, real_build = loader.stack, training.build_conditioner
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "stack", stack)
        patch.setattr(loader, "pixel_grid", lambda side: pixel_grid(side).astype(np.float64))
        patch.setattr(training, "build_conditioner", build)
        yield


def _double(batch: TaskBatch) -> TaskBatch:
    return TaskBatch(batch.task, *(Observations(o.x.double(), o.y.double()) for o in batch[1:]))


def assert_same_training(ours: Path, theirs: Path) -> None:
    """To the rounding of float64, amplified by a few steps of Muon (by some hundreds each, where a gradient hardly has a direction)."""
    a, b = tensors_of(ours), tensors_of(theirs)
    assert a.keys() == b.keys()
    for name, t in a.items():
        torch.testing.assert_close(t, b[name], rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    assert state_of(ours)["step"] == state_of(theirs)["step"]
    mine, yours = lines_of(ours)[-1], lines_of(theirs)[-1]
    assert all(mine[key] == pytest.approx(yours[key], rel=1e-7) for key in ("step", "val_mse", "val_mae", "val_n", "lr"))


def tensors_of(run: Path) -> dict[str, Tensor]:
    """Everything that is saved: model, averages, Adam's moments; and the prior."""
    prior = load_state(run / "prior.safetensors", kind="prior")[0]
    return load_state(run / "checkpoint.safetensors", kind="checkpoint")[0] | {f"prior.{name}": t for name, t in prior.items()}


def state_of(run: Path) -> dict[str, Any]:
    return load_state(run / "checkpoint.safetensors", kind="checkpoint")[1]


def lines_of(run: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_bits(ours: Path, theirs: Path) -> None:
    a, b = tensors_of(ours), tensors_of(theirs)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])] == []
    assert state_of(ours)["step"] == state_of(theirs)["step"]
    mine, yours = lines_of(ours)[-1], lines_of(theirs)[-1]
    assert all(mine[key] == yours[key] for key in ("step", "val_mse", "val_mae", "val_n", "lr"))


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def kill() -> None:
    raise Killed


# -- killed and resumed --------------------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Experiment] = {
    "dense": tiny(),
    "levelset": tiny("levelset"),
    "paper": tiny(preset="paper"),
    "sine": tiny(field={"activation": "sine", "init": "standard", "w0": 10.0}, products="float32"),
    "annealed": tiny(order="anneal", anneal=1.0),
    "adam": tiny(optimiser="adam"),
    "cnp4": tiny("dense-cnp4"),
    "concat": tiny("dense-concat", shapes=20),
    "hyper": tiny("levelset-hyper"),
    "latent": tiny("levelset-latent"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_resumes_bit_for_bit(store: Store, tmp_path: Path, variant: str) -> None:
    e = VARIANTS[variant]
    left_alone = trainer(tmp_path / "alone", store, e, checkpoint_seconds=0).fit()
    for step in (5, 9):  # twice: a resumed run is killed again
        with pytest.raises(Killed):
            trainer(tmp_path / "killed", store, e, checkpoint_seconds=0, watch=Watch(**{f"step{step}": kill})).fit()
        assert state_of(tmp_path / "killed")["step"] == step - 1
    watch = Watch()
    row = trainer(tmp_path / "killed", store, e, watch=watch).fit()
    assert watch.said[0].startswith(f"resuming {tmp_path / 'killed'} at step 8 ")
    assert [r["step"] for r in watch.rows] == [9, 10, 11, 12]
    assert_same_bits(tmp_path / "killed", tmp_path / "alone")
    assert row["val_mse"] == left_alone["val_mse"]
    moved = tensors_of(tmp_path / "alone")
    start = dict(trainer(tmp_path / "new", store, e).model.named_parameters())
    assert all(not torch.equal(moved[f"model.{name}"], p) for name, p in start.items())  # it was a training at all


def test_validation_and_checkpoints_in_between_change_nothing(store: Store, tmp_path: Path) -> None:
    trainer(tmp_path / "busy", store, checkpoint_seconds=0, validate_seconds=0).fit()
    trainer(tmp_path / "alone", store).fit()
    assert_same_bits(tmp_path / "busy", tmp_path / "alone")
    assert [row["step"] for row in lines_of(tmp_path / "busy")] == [*range(1, STEPS + 1), STEPS]


ARGS = ["--epochs", "6", "--threads", "1", "--no-pictures", "--device", "cpu", "--set", "field.width=16", "--set", "field.hidden_layers=1",
        "--set", "inner.steps=2", "--set", "train.batch=4", "--set", "n_context=30", "--set", "n_query=30", "--set", "n_test=30"]  # fmt: skip
SAVE_ALWAYS_AND_DIE_AT_STEP_7 = """
import os, signal
from metasdf import cli, progress, train

class Monitor(progress.TrainingMonitor):
    def step(self, row):
        if row["step"] == 7:
            os.kill(os.getpid(), signal.SIGKILL)

prepare = train.Trainer.__post_init__

def save_always(self):
    prepare(self)
    self.checkpoint_seconds = 0

train.Trainer.__post_init__ = save_always
progress.TrainingMonitor = Monitor
cli.main()
"""


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    source = str(Path(training.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options)


def command(store: Store, run: Path, name: str = "mnist-levelset") -> list[str]:
    return ["train", name, "--data", str(store.path), "--run", str(run), *ARGS]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_the_command_typed_again_after_sigkill(store: Store, tmp_path: Path) -> None:
    first = process("-c", SAVE_ALWAYS_AND_DIE_AT_STEP_7, *command(store, tmp_path / "killed"))
    first.communicate(timeout=600)
    assert first.returncode == -signal.SIGKILL
    assert state_of(tmp_path / "killed")["step"] == 6 and not (tmp_path / "killed" / "metrics.jsonl").exists()
    second = process("-m", "metasdf", *command(store, tmp_path / "killed"))
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err
    assert "at step 6 " in err and "done: 12 steps" in out
    alone = CliRunner().invoke(cli, command(store, tmp_path / "alone"))
    assert alone.exit_code == 0, alone.output
    assert_same_bits(tmp_path / "killed", tmp_path / "alone")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_sigterm_saves_and_says_so(store: Store, tmp_path: Path) -> None:
    """From outside, in the middle of a real process."""
    child = process("-m", "metasdf", *command(store, tmp_path / "run"), "--epochs", "1000000")
    assert child.stderr is not None
    try:
        for line in child.stderr:
            if line.startswith("step "):
                break
        child.terminate()
        out, err = child.communicate(timeout=600)
    finally:
        child.kill()
    assert child.returncode == 128 + signal.SIGTERM, err
    step = state_of(tmp_path / "run")["step"]
    assert step >= 1 and f"stopped by a signal at step {step:,}; everything is saved. The same command goes on from here." in out
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first(store: Store, tmp_path: Path, number: signal.Signals) -> None:
    stopped = trainer(tmp_path / "run", store, watch=Watch(step7=lambda: signal.raise_signal(number)))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert stopped.fit() == {}
    assert stopped.stop_signal == number and state_of(tmp_path / "run")["step"] == 7  # after the step in hand, not before
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    trainer(tmp_path / "run", store).fit()
    trainer(tmp_path / "alone", store).fit()
    assert_same_bits(tmp_path / "run", tmp_path / "alone")


def test_the_command_line_after_ctrl_c(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object, row: dict[str, float]) -> None:
        if row["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("metasdf.progress.TrainingMonitor.step", interrupt)
    result = CliRunner().invoke(cli, command(store, tmp_path / "run", "mnist-dense"))
    assert result.exit_code == 130
    assert "stopped by a signal at step 3; everything is saved. The same command goes on from here." in result.stdout


def test_a_second_ctrl_c_stops_at_once(store: Store, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", store, watch=Watch(step3=twice)).fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_sigterm_is_the_first_one_again(store: Store, tmp_path: Path) -> None:
    """A scheduler and torchrun may both send one: what is being saved must not be interrupted."""

    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    ours = trainer(tmp_path / "run", store, watch=Watch(step3=twice))
    assert ours.fit() == {} and ours.stop_signal == signal.SIGTERM and state_of(tmp_path / "run")["step"] == 3


def test_a_signal_during_the_last_validation_loses_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer(tmp_path / "run", store)
    validate = ours.validate

    def interrupted() -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return validate()

    monkeypatch.setattr(ours, "validate", interrupted)
    assert ours.fit()["val_n"] == 2
    assert ours.stop_signal == signal.SIGTERM and state_of(tmp_path / "run")["step"] == STEPS


# -- losses that are not finite ------------------------------------------------------------------------------------------------------------


def poison(ours: Trainer, *steps: int) -> None:
    """NaN distances in the batches of these steps, counted from 0."""
    batch = ours.loader.batch

    def poisoned(step: int) -> TaskBatch:
        good = batch(step)
        return good._replace(query=Observations(good.query.x, good.query.y * math.nan)) if step in steps else good

    ours.loader.batch = poisoned  # type: ignore[method-assign]


def assert_good(run: Path, store: Store) -> None:
    """The kept state is finite, can be loaded, and its prior is of use."""
    assert all(t.isfinite().all() for t in tensors_of(run).values())
    prior = load(run)
    sample = np.asarray(store.arrays["sdf"][0]).reshape(-1, 1)[::5]
    assert np.isfinite(prior.adapt(pixel_grid(SIDE)[::5], sample)(pixel_grid(SIDE))).all()


def test_a_huge_learning_rate_ends_with_a_good_state(store: Store, tmp_path: Path) -> None:
    watch = Watch()
    ours = trainer(tmp_path / "run", store, tiny(lr=1000.0, lr_rates=1000.0, warmup=0), watch=watch, steps=40, checkpoint_seconds=0)
    with pytest.raises(TrainingError, match="10 times in a row") as caught:
        ours.fit()
    assert caught.value.exit_code == 1 and caught.value.where == str(tmp_path / "run")
    assert "train.lr" in caught.value.fix and f"--init {tmp_path / 'run' / 'prior.safetensors'}" in caught.value.fix
    assert state_of(tmp_path / "run")["step"] < watch.rows[-1]["step"] - 8
    assert_good(tmp_path / "run", store)


def test_the_command_line_after_a_diverged_training(store: Store, tmp_path: Path) -> None:
    diverge = ["--set", "train.lr=1000", "--set", "train.lr_rates=1000", "--set", "train.warmup=0", "--epochs", "20"]
    result = CliRunner().invoke(cli, [*command(store, tmp_path / "run", "mnist-dense"), *diverge])
    assert result.exit_code == 1
    assert "error: the loss was not finite 10 times in a row" in result.stderr and "what to do: " in result.stderr
    assert "Traceback" not in result.output
    assert_good(tmp_path / "run", store)


def test_diverged_at_the_very_end_is_no_success(store: Store, tmp_path: Path) -> None:
    """Too late for ten in a row: the validation shows it."""
    watch = Watch()
    ours = trainer(tmp_path / "run", store, tiny(ema=0.0), steps=4, watch=watch, checkpoint_seconds=0)
    watch.at = {4: lambda: [p.data.fill_(math.nan) for p in ours.model.parameters()]}
    with pytest.raises(TrainingError, match="fits none of the validation shapes"):
        ours.fit()
    assert state_of(tmp_path / "run")["step"] == 3
    assert_good(tmp_path / "run", store)
    assert lines_of(tmp_path / "run")[-1]["val_mse"] is None


def test_a_poisoned_batch_is_left_out(store: Store, tmp_path: Path) -> None:
    watch = Watch()
    ours = trainer(tmp_path / "run", store, watch=watch)
    poison(ours, 5)
    seen: list[dict[str, Tensor]] = []
    watch.each = lambda: seen.append({name: p.detach().clone() for name, p in [*ours.model.named_parameters(), *ema_of(ours)]})
    ours.fit()
    assert [s for s in watch.said if "left out" in s] == ["step 6: the loss is not finite (nan), the batch is left out (1 in a row)"]
    assert all(torch.equal(seen[5][name], p) for name, p in seen[4].items())
    assert not all(torch.equal(seen[6][name], p) for name, p in seen[5].items())
    assert state_of(tmp_path / "run")["step"] == STEPS
    assert_good(tmp_path / "run", store)


def ema_of(ours: Trainer) -> Iterator[tuple[str, Tensor]]:
    return ((f"ema.{name}", p) for name, p in (ours.ema or {}).items())


def test_ten_poisoned_batches_keep_the_last_good_state(store: Store, tmp_path: Path) -> None:
    ours = trainer(tmp_path / "run", store, steps=16, checkpoint_seconds=0)
    poison(ours, *range(4, 16))
    with pytest.raises(TrainingError):
        ours.fit()
    assert state_of(tmp_path / "run")["step"] == 3  # its loss was seen to be finite
    assert_good(tmp_path / "run", store)
    trainer(tmp_path / "run", store, steps=16).fit()  # and the data mended, the same command goes on
    trainer(tmp_path / "alone", store, steps=16).fit()
    assert_same_bits(tmp_path / "run", tmp_path / "alone")


def test_nothing_good_from_the_start(store: Store, tmp_path: Path) -> None:
    ours = trainer(tmp_path / "run", store, steps=12)
    poison(ours, *range(12))
    with pytest.raises(TrainingError) as caught:
        ours.fit()
    assert "inner.init_rate" in caught.value.fix and "--init" not in caught.value.fix
    assert files(tmp_path / "run") == {"config.json"}
    trainer(tmp_path / "run", store, tiny(lr=5e-4)).fit()  # the folder can be used again, with other settings


def test_a_signal_while_batches_fail_keeps_the_last_good_state(store: Store, tmp_path: Path) -> None:
    ours = trainer(tmp_path / "run", store, watch=Watch(step6=lambda: signal.raise_signal(signal.SIGTERM)), checkpoint_seconds=0)
    poison(ours, 4, 5)
    ours.fit()
    assert state_of(tmp_path / "run")["step"] == 3


# -- what a run may change and what not ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps; tests only read it, or are refused."""
    run = tmp_path_factory.mktemp("finished") / "run"
    trainer(run, store, steps=2).fit()
    return run


def refused(run: Path, store: Store, e: Experiment, **options: Any) -> UsageError:
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} if run.is_dir() else run.read_bytes()
    with pytest.raises(UsageError) as caught:
        trainer(run, store, e, **options).fit()
    assert before == ({p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} if run.is_dir() else run.read_bytes())
    assert caught.value.exit_code == 2 and caught.value.fix and caught.value.cause
    return caught.value


def test_a_run_folder_holds_what_it_should(finished: Path, store: Store) -> None:
    assert files(finished) == {"config.json", "checkpoint.safetensors", "prior.safetensors", "metrics.jsonl"}
    config = json.loads((finished / "config.json").read_text())
    assert config["experiment"]["train"]["batch"] == BATCH and config["data"] == store.fingerprint and config["commit"] == "unknown"
    card = load(finished).card
    assert card["training"]["steps"] == 2 and card["training"]["shapes"] == TRAIN_SHAPES
    assert card["data"] == {"source": "circles", "licence": "none", "resolution": SIDE, "fingerprint": store.fingerprint}
    assert card["validation"]["val_mse"] == lines_of(finished)[-1]["val_mse"]
    assert card["misfit"]["n"] == lines_of(finished)[-1]["val_n"] and 0 < card["misfit"]["median"] <= card["misfit"]["p95"]


def test_a_changed_setting_is_named(finished: Path, store: Store) -> None:
    error = refused(finished, store, tiny(lr=5e-4, seed=3))
    assert "(train.lr: 0.002 -> 0.0005; train.seed: 0 -> 3)" in error.what


def test_another_preset_is_named(finished: Path, store: Store) -> None:
    assert "preset: cpu -> paper" in refused(finished, store, tiny(preset="paper")).what


def test_another_experiment(finished: Path, store: Store) -> None:
    assert refused(finished, store, tiny("levelset")).what == "this run folder belongs to mnist-dense, not to mnist-levelset"


def test_another_data_set(finished: Path, tmp_path: Path) -> None:
    assert "the data set differs" in refused(finished, write_circles(tmp_path / "other", seed=1), tiny()).what


def test_more_epochs_go_on(store: Store, tmp_path: Path) -> None:
    run, watch = tmp_path / "run", Watch()
    trainer(run, store, tiny(epochs=2), steps=4).fit()
    trainer(run, store, tiny(epochs=4), steps=8, watch=watch).fit()
    assert [row["step"] for row in watch.rows] == [5, 6, 7, 8]
    assert [row["step"] for row in lines_of(run)] == [4, 8]


def test_a_finished_run_says_so_and_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    run, watch = tmp_path / "run", Watch()
    first = trainer(run, store, steps=2).fit()
    before = tensors_of(run)
    again = trainer(run, store, steps=2, watch=watch).fit()
    assert any("has reached its end already" in text for text in watch.said) and not watch.rows
    assert again == first and len(lines_of(run)) == 1 and all(torch.equal(t, before[name]) for name, t in tensors_of(run).items())


def test_a_budget(store: Store, tmp_path: Path) -> None:
    watch = Watch()
    row = Trainer(tiny(), store, tmp_path / "run", Limit(0.3, None), watch, CPU, pictures=False).fit()
    assert row["progress"] == 1.0 and row["elapsed"] >= 0.3 and row["eta"] == 0.0
    progress = [r["progress"] for r in watch.rows]
    assert progress == sorted(progress) and progress[-1] == 1.0
    longer = Trainer(tiny(), store, tmp_path / "run", Limit(row["elapsed"] + 0.1, None), Watch(), CPU, pictures=False)
    assert longer.fit()["elapsed"] >= row["elapsed"] + 0.1 and longer.step > row["step"]


def test_a_folder_of_other_files(store: Store, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds other files" in refused(tmp_path, store, tiny()).what
    assert files(tmp_path) == {"thesis.txt"}


def test_a_file_in_place_of_the_run_folder(store: Store, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert refused(tmp_path / "run", store, tiny()).where == str(tmp_path / "run")


def test_a_file_in_place_of_a_folder_above(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"cannot write config\.json"):
        trainer(tmp_path / "file" / "run", store).fit()


def test_a_run_that_never_saved_starts_anew(store: Store, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    trainer(tmp_path / "run", store, steps=1).fit()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == store.fingerprint


# -- damaged files -------------------------------------------------------------------------------------------------------------------------


def damage(run: Path, source: Path, how: Callable[[bytes], bytes]) -> Path:
    run.mkdir()
    for name in ("config.json", "checkpoint.safetensors"):
        (run / name).write_bytes((source / name).read_bytes())
    (run / "checkpoint.safetensors").write_bytes(how((run / "checkpoint.safetensors").read_bytes()))
    return run


@pytest.mark.parametrize(
    "how",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-100] + bytes([b[-100] ^ 1]) + b[-99:],
     lambda b: b.replace(b"metasdf-check", b"metasdf-chick")],
    ids=["cut", "empty", "bit", "kind"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_kept(finished: Path, store: Store, tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    run = damage(tmp_path / "run", finished, how)
    before = (run / "checkpoint.safetensors").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        trainer(run, store).fit()
    assert caught.value.exit_code == 1 and caught.value.where == str(run / "checkpoint.safetensors") and caught.value.fix
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_a_prior_is_no_checkpoint(finished: Path, store: Store, tmp_path: Path) -> None:
    run = damage(tmp_path / "run", finished, lambda _: (finished / "prior.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="no metasdf checkpoint"):
        trainer(run, store).fit()


EXTRA = {"model.extra": torch.zeros(1), "optimiser.99.step": torch.zeros(()), "ema.extra": torch.zeros(1), "other": torch.zeros(1)}


@pytest.mark.parametrize("name", [*EXTRA, "-model._theta.0", "-ema._theta.0", "-optimiser.0.exp_avg", "-optimiser.3.step", "model._theta.0"])
def test_a_checkpoint_of_other_tensors(finished: Path, store: Store, tmp_path: Path, name: str) -> None:
    """One too many, one (-) too few, or one of another shape: as another version might have written it."""
    run = damage(tmp_path / "run", finished, lambda b: b)
    tensors, state = load_state(run / "checkpoint.safetensors", kind="checkpoint")
    if name.startswith("-"):
        del tensors[name[1:]]
    else:
        tensors[name] = EXTRA.get(name, torch.zeros(1))
    save_state(run / "checkpoint.safetensors", tensors, state, kind="checkpoint")
    with pytest.raises(CheckpointError, match="does not fit the run") as caught:
        trainer(run, store).fit()
    assert name.removeprefix("-").removeprefix("model.") in caught.value.what and caught.value.where == str(run / "checkpoint.safetensors")


# -- the step ------------------------------------------------------------------------------------------------------------------------------


def double(ours: Trainer) -> tuple[MetaSDF, TaskBatch]:
    """Model and first batch in float64, without the rounding of bfloat16."""
    assert isinstance(ours.model, MetaSDF)
    ours.model.products = None
    return ours.model.double(), _double(ours.loader.batch(0))


@pytest.mark.parametrize("norm", ["l1", "squared"])
def test_meta_loss_is_its_parts(store: Store, tmp_path: Path, norm: Any) -> None:
    model, batch = double(trainer(tmp_path, store))
    losses = []
    for k in range(BATCH):
        phi = model(Observations(batch.context.x[k], batch.context.y[k]))
        e = field(phi, batch.query.x[k], model.spec) - batch.query.y[k]
        losses.append(e.abs().mean() if norm == "l1" else e.square().mean())
    assert meta_loss(model, Distance(norm), batch).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-12)


def test_meta_loss_adds_what_the_method_asks(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = double(trainer(tmp_path, store))
    plain = meta_loss(model, Distance(), batch).item()
    asks: Callable[[TaskBatch], tuple[Params, Tensor]] = lambda b: (model(b.context), torch.tensor(0.5, dtype=torch.float64))  # noqa: E731
    monkeypatch.setattr(model, "training_params", asks)
    assert meta_loss(model, Distance(), batch).item() == pytest.approx(plain + 0.5, rel=1e-12)


def test_gradients_of_tasks_add_up(store: Store, tmp_path: Path) -> None:
    model, batch = double(trainer(tmp_path, store))
    meta_loss(model, Distance(), batch).backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for k in range(BATCH):
        one = TaskBatch(batch.task[k : k + 1], *(Observations(o.x[k : k + 1], o.y[k : k + 1]) for o in batch[1:]))
        (meta_loss(model, Distance(), one) / BATCH).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-9, atol=1e-12)


class Codes(Conditioner):
    """An auto-decoder in small: parameters from a code that each task owns, and a penalty on the codes."""

    def __init__(self, spec: FieldSpec, tasks: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.spec, self.shared = spec, initialise(spec, generator=generator)
        self.codes = nn.Parameter(torch.randn(tasks, spec.shapes[0][0], generator=generator))
        self.weights = nn.ParameterList([nn.Parameter(layer.weight) for layer in self.shared])

    def training_params(self, batch: TaskBatch) -> tuple[Params, Tensor]:
        z = self.codes[batch.task]
        first, *others = (Layer(w, layer.bias.to(w)) for w, layer in zip(self.weights, self.shared, strict=True))
        return (Layer(first.weight, first.bias + z), *others), 0.1 * z.square().sum(-1).mean()


@pytest.mark.parametrize("dropping", [None, Dropping(0.3, (0, 7))], ids=["whole", "dropout"])
@pytest.mark.parametrize("method", ["metasdf", "codes"])
@pytest.mark.parametrize("at_once", [None, 1, 2, 3, 5, 9])
def test_a_split_batch_gives_the_same_loss_and_gradient(
    store: Store, tmp_path: Path, method: str, at_once: int | None, dropping: Dropping | None
) -> None:
    """Five tasks, in uneven groups too; and in two parts that know of each other only by `of`."""
    model, batch = double(trainer(tmp_path, store, tiny(batch=5)))
    head = Distance("l1")
    conditioner = model if method == "metasdf" else Codes(model.spec, TRAIN_SHAPES).double()
    loss = meta_loss(conditioner, head, batch, dropping=dropping)
    loss.backward()
    whole = {name: p.grad.clone() for name, p in conditioner.named_parameters() if p.grad is not None}
    assert whole.keys() == {name for name, _ in conditioner.named_parameters()}
    for parts in ([(0, 5)], [(0, 3), (3, 5)]):
        conditioner.zero_grad()
        found = [meta_gradient(conditioner, head, training._part(batch, *part), dropping=dropping, at_once=at_once, of=5) for part in parts]
        assert sum(found).item() == pytest.approx(loss.item(), rel=1e-12) and not any(t.requires_grad for t in found)
        for name, p in conditioner.named_parameters():
            torch.testing.assert_close(p.grad, whole[name], rtol=1e-12, atol=1e-12 * float(whole[name].abs().max()))


def test_dropout_in_training(store: Store, tmp_path: Path) -> None:
    """Other units in every step and for every task, the same ones when it is asked again, and none at all when the prior is judged."""
    model, batch = double(trainer(tmp_path, store, tiny(batch=2)))
    twins = TaskBatch(batch.task, *(Observations(*(t[:1].expand_as(t) for t in o)) for o in (batch.context, batch.query)))

    def losses(dropping: Dropping | None) -> list[float]:
        return [meta_loss(model, Distance("l1"), training._part(twins, k, k + 1), dropping=dropping).item() for k in (0, 1)]

    assert losses(None)[0] == losses(None)[1]
    one, again, later = (losses(Dropping(0.3, (0, step))) for step in (1, 1, 2))
    assert one == again and len({*one, *later}) == 4
    dropped = trainer(tmp_path / "dropped", store, tiny(dropout=0.4, ema=0.0, products="float32"), steps=2)
    assert dropped._train_step() != trainer(tmp_path / "plain", store, tiny(ema=0.0, products="float32"))._train_step()
    assert dropped.validate()["val_mse"] == dropped.validate()["val_mse"]


def test_only_one_group_is_in_memory(store: Store, tmp_path: Path) -> None:
    """What autograd keeps of a group is gone before the next one begins."""
    model, batch = double(trainer(tmp_path, store, tiny(batch=6)))

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()

    def peak(at_once: int) -> int:
        alive: weakref.WeakSet[Kept] = weakref.WeakSet()
        most = 0

        def pack(tensor: Tensor) -> Kept:
            nonlocal most
            kept = Kept(tensor)
            alive.add(kept)
            most = max(most, sum(k.tensor.nbytes for k in alive))
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            meta_gradient(model, Distance(), batch, at_once=at_once)
        return most

    assert peak(1) < 0.25 * peak(6) and peak(2) < 0.45 * peak(6)


def test_first_order_is_the_gradient_at_the_adapted_parameters(store: Store, tmp_path: Path) -> None:
    """No graph goes through the inner gradient: d loss / d theta is d loss / d phi."""
    ours = trainer(tmp_path, store, tiny(order="first", clip=None))
    ours._train_step()
    model, batch = double(ours)
    assert model.second_order == 0.0
    model.zero_grad()
    meta_loss(model, ours.head, batch).backward()
    phi = tuple(Layer(*(t.detach().requires_grad_() for t in layer)) for layer in model(batch.context))
    ours.head.loss(field(phi, batch.query.x, model.spec), batch.query.y).mean().backward()
    for theta, adapted in zip(model.theta, phi, strict=True):
        for t, a in zip(theta, adapted, strict=True):
            assert a.grad is not None
            torch.testing.assert_close(t.grad, a.grad.sum(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"order": "second"}, [1.0] * 8), ({"order": "first"}, [0.0] * 8), ({"order": "anneal", "anneal": 0.5}, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
     ({"order": "anneal", "anneal": 0.0}, [0.0, *[1.0] * 7])],
)  # fmt: skip
def test_the_order_of_the_meta_gradient(store: Store, tmp_path: Path, settings: dict[str, Any], expected: list[float]) -> None:
    watch, seen = Watch(), []
    ours = trainer(tmp_path / "run", store, tiny(**settings), steps=8, watch=watch)
    watch.each = lambda: seen.append(ours.model.second_order)  # type: ignore[union-attr]
    ours.fit()
    assert seen == pytest.approx(expected)


def test_schedule() -> None:
    assert [schedule("constant", p) for p in (0.0, 0.5, 1.0)] == [1.0] * 3
    assert [schedule("cosine", p) for p in (0.0, 1 / 3, 0.5, 2 / 3, 1.0)] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_learning_rates_follow_warmup_and_cosine(store: Store, tmp_path: Path) -> None:
    watch, groups = Watch(), []
    ours = trainer(tmp_path / "run", store, tiny(lr=2e-3, lr_muon=4e-2, lr_rates=3e-2, lr_curvature=5e-2, warmup=4), steps=20, watch=watch)
    watch.each = lambda: groups.append([group["lr"] for group in ours.optimiser.param_groups])
    ours.fit()
    factor = [min(1.0, (k + 1) / 4) * 0.5 * (1 + math.cos(math.pi * k / 20)) for k in range(20)]
    for rate, found in zip((2e-3, 4e-2, 3e-2, 2e-3, 5e-2), zip(*groups, strict=True), strict=True):  # curvature: its thin matrices, then the others
        assert found == pytest.approx([rate * f for f in factor])
    assert [row["lr"] for row in watch.rows] == [theta for theta, *_ in groups]
    assert groups[-1][0] < 0.01 * 2e-3


def test_the_paper_trains_all_parameters_by_adam_at_one_rate(store: Store, tmp_path: Path) -> None:
    """Adam with its own defaults: the first step moves every parameter that has a gradient by the learning rate."""
    ours = trainer(tmp_path, store, tiny(preset="paper"))
    assert ours.ema is None and not any(g.get("orthogonal") or g.get("rows") for g in ours.optimiser.param_groups)
    assert {(g["base_lr"], g["betas"], g["eps"], g["weight_decay"], g["amsgrad"]) for g in ours.optimiser.param_groups} == {
        (1e-4, (0.9, 0.999), 1e-8, 0, False)
    }
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    ours._train_step()
    for name, p in ours.model.named_parameters():
        assert p.grad is not None
        expected = -1e-4 * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(p.detach() - before[name], expected, rtol=1e-3, atol=2e-8)


def test_each_parameter_is_in_one_group(store: Store, tmp_path: Path) -> None:
    ours = trainer(tmp_path, store, tiny(lr=2e-3, lr_muon=0.25, lr_rates=0.5, lr_curvature=0.75))
    theta, hidden, rates, thin, square = ours.optimiser.param_groups
    middle = ours.model.theta[1].weight  # type: ignore[union-attr]
    assert [id(p) for p in hidden["params"]] == [id(middle)] and hidden["orthogonal"]
    assert {id(p) for p in theta["params"]} == {id(t) for layer in ours.model.theta for t in layer} - {id(middle)}  # type: ignore[union-attr]
    assert {id(p) for p in rates["params"]} == {id(p) for p in ours.model.rates.parameters()}  # type: ignore[union-attr]
    curvature = ours.model.curvature  # type: ignore[union-attr]
    assert [tuple(p.shape) for p in thin["params"]] == [(1, 1), (2, 2)]  # left of the last layer, right of the first
    assert {id(p) for p in (*thin["params"], *square["params"])} == {id(p) for p in curvature.parameters()} and square["orthogonal"]
    assert [group["base_lr"] for group in ours.optimiser.param_groups] == [2e-3, 0.25, 0.5, 2e-3, 0.75]


def test_the_whole_gradient_is_clipped(store: Store, tmp_path: Path) -> None:
    def norm(clip: float | None) -> float:
        ours = trainer(tmp_path, store, tiny(clip=clip))
        ours._train_step()
        return math.sqrt(sum(float(p.grad.square().sum()) for p in ours.model.parameters() if p.grad is not None))

    free = norm(None)
    assert norm(free / 10) == pytest.approx(free / 10, rel=1e-4)
    assert norm(free * 10) == pytest.approx(free)


def test_clipped_rates_stay_at_or_above_zero(store: Store, tmp_path: Path) -> None:
    ours = trainer(tmp_path / "run", store, tiny(lr_rates=1.0, lr=1e-9), steps=1)
    ours._train_step()
    rates = torch.cat([p.detach().reshape(-1) for p in ours.model.rates.parameters()])  # type: ignore[union-attr]
    assert rates.min() == 0.0 and rates.max() > 0.1


def test_averaged_weights_by_hand(store: Store, tmp_path: Path) -> None:
    """theta_0 counts little after a few steps: the decay grows from 2/11 to its value."""
    watch, seen = Watch(), []
    ours = trainer(tmp_path / "run", store, tiny(ema=0.3), watch=watch, steps=6)
    average = {name: p.detach().double().clone() for name, p in ours.model.named_parameters()}
    watch.each = lambda: seen.append({name: p.detach().double().clone() for name, p in ours.model.named_parameters()})
    ours.fit()
    decays = [min(0.3, (1 + k) / (10 + k)) for k in range(1, 7)]
    assert decays[:3] == [2 / 11, 3 / 12, 0.3]
    for decay, parameters in zip(decays, seen, strict=True):
        average = {name: decay * a + (1 - decay) * parameters[name] for name, a in average.items()}
    prior = load_state(tmp_path / "run" / "prior.safetensors", kind="prior")[0]
    for name, a in average.items():
        torch.testing.assert_close(prior[name].double(), a, rtol=1e-5, atol=1e-7)
        assert torch.equal(prior[name], tensors_of(tmp_path / "run")[f"ema.{name}"])


def test_without_averaging_the_prior_is_the_model(store: Store, tmp_path: Path) -> None:
    trainer(tmp_path / "run", store, tiny(ema=0.0), steps=3).fit()
    tensors = tensors_of(tmp_path / "run")
    assert not any(name.startswith("ema.") for name in tensors)
    assert all(torch.equal(t, tensors[f"model.{name.removeprefix('prior.')}"]) for name, t in tensors.items() if name.startswith("prior."))


def test_validation_uses_averages_at_full_precision_and_gives_all_back(store: Store, tmp_path: Path) -> None:
    ours = trainer(tmp_path, store)
    for _ in range(3):
        ours._train_step()
    model = ours.model
    assert isinstance(model, MetaSDF) and ours.ema is not None
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(Killed), ours.averaged():
        assert model.products is None
        assert all(torch.equal(p, ours.ema[name]) and not torch.equal(p, before[name]) for name, p in model.named_parameters())
        raise Killed
    assert model.products == torch.bfloat16
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_loss_of_all_steps_fades_to_that_of_the_last(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MAML++: weight 1 on the mean over steps at the start, 0 after the fraction `multistep` of the training."""
    ours = trainer(tmp_path, store, tiny(products="float32", multistep=0.5), steps=4)
    batch, model, head = ours.loader.batch(0), ours.model, ours.head
    with torch.no_grad():
        losses = [float(head.loss(field(p, batch.query.x, model.spec), batch.query.y).mean()) for p in model.trajectory(batch.context)[1:]]
    assert float(meta_loss(model, head, batch).detach()) == pytest.approx(losses[-1], rel=1e-6)
    assert float(meta_loss(model, head, batch, early=0.25).detach()) == pytest.approx(0.75 * losses[-1] + 0.25 * sum(losses) / 2, rel=1e-6)
    seen = []
    real = training.meta_gradient
    monkeypatch.setattr(training, "meta_gradient", lambda *args, early, **kwargs: seen.append(early) or real(*args, early=early, **kwargs))
    ours.fit()
    assert seen == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("pays", [True, False])
def test_products_are_in_what_is_faster_here(pays: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "bfloat16_pays", lambda device: pays)
    watch = Watch()
    ours = trainer(tmp_path / "run", store, tiny(products="auto"), watch=watch)
    assert ours.model.products == ours.products == (torch.bfloat16 if pays else None)
    assert watch.said == ["products: bfloat16" if pays else "products: float32, bfloat16 is no faster here"]
    assert ours.export().card["training"]["products"] == ("bfloat16" if pays else "float32")
    sine = tiny(products="auto", field={"activation": "sine", "init": "standard"})
    assert trainer(tmp_path / "sine", store, sine).products is None


def test_a_run_of_an_older_version_goes_on() -> None:
    """Its configuration lacks fields that came later; their defaults mean what it did. Another value is a change."""
    config = to_dict(tiny())
    older = json.loads(json.dumps(config))
    del older["train"]["near"], older["head"], older["field"]["skip"]
    state = {"config": older, "data": "same"}
    training.refuse_changes(state, config, "same", Path("run"))
    with pytest.raises(UsageError, match=r"train\.near: 0\.0 -> 0\.5"):
        training.refuse_changes(state, to_dict(tiny(near=0.5)), "same", Path("run"))


def test_bfloat16_is_tried_out() -> None:
    assert bfloat16_pays(CPU) in (True, False)
    assert not bfloat16_pays(torch.device("meta"))  # no device on which it is known to work


def test_a_learning_rate_that_halves() -> None:
    assert [schedule("halve", progress, (0.25, 0.5)) for progress in (0.0, 0.24, 0.25, 0.5, 1.0)] == [1.0, 1.0, 0.5, 0.25, 0.25]
    assert schedule("halve", 0.9) == 1.0


def test_every_number_of_a_gradient_is_clipped(store: Store, tmp_path: Path) -> None:
    plain, clipped = (trainer(tmp_path / str(clip), store, tiny(products="float32", clip_value=clip, clip=None)) for clip in (None, 1e-4))
    for ours in (plain, clipped):
        ours._train_step()
    largest = max(float(p.grad.abs().max()) for _, p in plain._parameters() if p.grad is not None)
    assert largest > 1e-3
    for (_, p), (_, q) in zip(plain._parameters(), clipped._parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(q.grad, p.grad.clamp(-1e-4, 1e-4))


def test_validation_is_what_the_saved_prior_shows(store: Store, tmp_path: Path) -> None:
    from metasdf.evaluate import grid_errors

    row = trainer(tmp_path / "run", store, steps=4).fit()
    prior = load(tmp_path / "run")
    found = grid_errors(prior.conditioner, prior.head, store, indices=store.split("val"), rule="dense", n_context=30, seed=0, device=CPU)
    assert (row["val_mse"], row["val_mae"], row["val_n"]) == (found.mse[-1], found.mae[-1], 2)


def test_training_learns(store: Store, tmp_path: Path) -> None:
    watch = Watch()
    trainer(tmp_path / "run", store, tiny(lr=5e-3, warmup=0), steps=40, watch=watch).fit()
    losses = [row["loss"] for row in watch.rows]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_the_seed_is_the_run(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(5)  # of no consequence
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer(tmp_path / name, store, tiny(seed=seed), steps=2).fit()
    assert_same_bits(tmp_path / "a", tmp_path / "b")
    a, c = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "c")
    assert not torch.equal(a["model._theta.0"], c["model._theta.0"])


# -- --init --------------------------------------------------------------------------------------------------------------------------------


def test_a_run_can_start_from_a_prior(finished: Path, store: Store, tmp_path: Path) -> None:
    ours = trainer(tmp_path / "run", store, tiny(lr=5e-4), init=load(finished))
    prior = dict(load(finished).conditioner.named_parameters())
    assert ours.ema is not None
    assert all(torch.equal(p, prior[name]) and torch.equal(ours.ema[name], prior[name]) for name, p in ours.model.named_parameters())
    ours.fit()
    again = trainer(tmp_path / "run", store, tiny(lr=5e-4), init=load(finished), steps=14)  # resumed, not started again
    again.fit()
    assert again.step == 14 and any("at step 12 " in text for text in again.monitor.said)  # type: ignore[attr-defined]


def test_curvature_can_begin_from_a_prior_without(store: Store, tmp_path: Path) -> None:
    plain = replace(tiny(), inner=replace(tiny().inner, curvature="diagonal"))
    trainer(tmp_path / "plain", store, plain).fit()
    prior = load(tmp_path / "plain")
    ours = trainer(tmp_path / "run", store, tiny(), init=prior)
    context = ours.loader.batch(0).context
    with torch.no_grad(), ours.averaged():  # in full precision
        for a, b in zip(ours.model(context), prior.conditioner(context), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # to rounding
    ours.fit()
    with pytest.raises(UsageError, match="layers or rates than this experiment"):
        trainer(tmp_path / "other", store, plain, init=load(tmp_path / "run"))


def test_fourier_features_can_begin_from_a_prior_without(store: Store, tmp_path: Path) -> None:
    plain = replace(tiny(), field=replace(tiny().field, frequencies=0))
    trainer(tmp_path / "plain", store, plain).fit()
    prior = load(tmp_path / "plain")
    more = replace(plain, field=replace(plain.field, frequencies=2))
    ours = trainer(tmp_path / "run", store, more, init=prior)
    x = ours.loader.batch(0).context.x
    torch.testing.assert_close(field(ours.model.theta, x, more.field), field(prior.conditioner.theta, x, plain.field), rtol=1e-5, atol=1e-6)
    ours.fit()
    with pytest.raises(UsageError, match="layers or rates than this experiment"):  # the other way round would forget something
        trainer(tmp_path / "other", store, plain, init=load(tmp_path / "run"))


def test_a_narrower_field_begins_with_the_units_that_count(store: Store, tmp_path: Path) -> None:
    """Units that are off everywhere in the domain go first, and nothing changes by that: not even what adaptation makes of a shape."""
    e = tiny()
    trainer(tmp_path / "wide", store, e).fit()
    prior = load(tmp_path / "wide")
    model, dead = prior.conditioner, 2
    assert isinstance(model, MetaSDF)
    with torch.no_grad():
        for layer in model.theta[:-1]:  # hidden layers
            layer.weight[[1, 5]], layer.bias[[1, 5]] = 0.0, -1.0
    narrow = replace(e, field=replace(e.field, width=e.field.width - dead))
    ours = trainer(tmp_path / "narrow", store, narrow, init=prior)
    context = ours.loader.batch(0).context
    with torch.no_grad(), ours.averaged():
        for step, (phi, psi) in enumerate(zip(ours.model.trajectory(context), model.trajectory(context), strict=True)):
            mine, theirs = field(phi, context.x, narrow.field), field(psi, context.x, e.field)
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, step=step: f"step {step}: {text}")
    ours.fit()


MISMATCHES: dict[str, Experiment] = {
    "width": replace(tiny(), field=replace(tiny().field, width=17)),  # a narrower one could be had
    "method": tiny("dense-cnp4"),
    "rates": replace(tiny(), inner=replace(tiny().inner, rates="step")),
    "steps": replace(tiny(), inner=replace(tiny().inner, steps=3)),
    "softplus": replace(tiny(), inner=replace(tiny().inner, constraint="softplus")),  # the same shapes, another meaning
    "sine": tiny(field={"activation": "sine", "init": "standard"}, products="float32"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_prior_of_another_form_is_refused(finished: Path, store: Store, tmp_path: Path, case: str) -> None:
    with pytest.raises(UsageError, match="layers or rates than this experiment") as caught:
        trainer(tmp_path / "run", store, MISMATCHES[case], init=load(finished))
    assert caught.value.where == "mnist-dense" and caught.value.fix


# -- what cannot work is said before it starts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("e", "says"),
    [(tiny(field={"in_dim": 3}), "is for 3D shapes, the data set holds 2D ones"), (tiny(field={"out_dim": 2}), "2 outputs"),
     (tiny(field={"activation": "sine", "init": "standard"}), "a sine field cannot be trained with bfloat16 products"),
     (replace(tiny(), n_query=1000), "1000 query points asked of a shape with 144 samples")],
    ids=["in_dim", "out_dim", "sine", "points"],
)  # fmt: skip
def test_settings_that_do_not_fit(store: Store, tmp_path: Path, e: Experiment, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        trainer(tmp_path / "run", store, e).fit()
    assert "--data" in caught.value.fix if e.field.in_dim == 3 else "--set" in caught.value.fix


def test_too_little_memory(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "available_bytes", lambda device: 1000)
    with pytest.raises(TrainingError, match="a training step needs about") as caught:
        trainer(tmp_path / "run", store).fit()
    assert caught.value.exit_code == 1 and caught.value.where == "cpu"
    assert caught.value.fix == "fewer points: --set n_context=N --set n_query=N"
    with pytest.raises(TrainingError) as caught:
        trainer(tmp_path / "run", store, tiny(split=2)).fit()
    assert "even for 2 at a time" in caught.value.what and "leave train.split" in caught.value.fix
    monkeypatch.undo()
    trainer(tmp_path / "run", store, replace(tiny(), n_context=10), steps=1).fit()  # as it was advised, in the same folder


def short_of_memory(monkeypatch: pytest.MonkeyPatch, ours: Trainer, *, tasks: float, checkpoint: bool = False) -> None:
    """Free memory for that many tasks at a time, a little more than that."""
    one = training._part(ours.loader.batch(0), 0, 1)
    needs = task_bytes(ours.model, lambda: meta_loss(ours.model, ours.head, one, products=ours.products))
    free = 5 * model_bytes(ours.model.parameters()) + (tasks + 0.1) * needs[checkpoint]
    monkeypatch.setattr(training, "available_bytes", lambda device: int(free / 0.9))


WIDE = tiny(field={"width": 64, "hidden_layers": 2}, batch=8, products="float32", schedule="constant")


@pytest.mark.parametrize(
    ("tasks", "at_once", "says"), [(8, 8, None), (7, 4, "; so 4 at a time: about"), (3, 3, "; so 3 at a time: about"), (2, 2, "; so 2 at a time")]
)
def test_what_fits_is_chosen_and_said(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int, at_once: int, says: str) -> None:
    watch = Watch()
    ours = trainer(tmp_path / "run", store, WIDE, steps=1, watch=watch)
    short_of_memory(monkeypatch, ours, tasks=tasks)
    ours.fit()
    assert ours.at_once == at_once and not ours.model.config.checkpoint  # type: ignore[union-attr]
    (line,) = [text for text in watch.said if text.startswith("memory")]
    assert "GiB for a step of 8 shapes, " in line and (says in line if says else ";" not in line)


def test_inner_steps_are_computed_twice_where_groups_do_not_suffice(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = replace(WIDE, inner=replace(WIDE.inner, steps=5))
    watch = Watch()
    ours = trainer(tmp_path / "run", store, e, steps=1, watch=watch)
    short_of_memory(monkeypatch, ours, tasks=1, checkpoint=True)
    ours.fit()
    assert ours.at_once == 1 and ours.model.config.checkpoint  # type: ignore[union-attr]
    assert "; so 1 at a time, inner steps computed again (1.3 times the time): about" in watch.said[0]
    saved = state_of(tmp_path / "run")["config"]
    assert saved["inner"]["checkpoint"] is False and saved["train"]["split"] is None
    assert load(tmp_path / "run").experiment == e
    with pytest.raises(TrainingError) as caught:  # what the user says is obeyed
        trainer(tmp_path / "other", store, e, may_checkpoint=False).fit()
    assert "leave train.split and inner.checkpoint as they are" in caught.value.fix


def test_settings_of_the_user_are_obeyed(store: Store, tmp_path: Path) -> None:
    watch = Watch()
    ours = trainer(tmp_path / "run", store, replace(tiny(split=3), inner=replace(tiny().inner, checkpoint=True)), steps=1, watch=watch)
    ours.fit()
    assert ours.at_once == 3 and ours.model.config.checkpoint  # type: ignore[union-attr]
    assert "; so 3 at a time: about" in watch.said[0]
    many = trainer(tmp_path / "many", store, tiny(split=50), steps=1)
    many.fit()
    assert many.at_once == BATCH


def test_a_run_resumes_where_memory_is_short(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with other settings of split and checkpoint: the configuration is the same, and so are the numbers, to rounding."""
    run = tmp_path / "run"
    with exactly():
        trainer(tmp_path / "alone", store, WIDE, steps=6).fit()
        trainer(run, store, WIDE, steps=2).fit()
        ours = trainer(run, store, WIDE, steps=4)
        short_of_memory(monkeypatch, ours, tasks=3)
        ours.fit()
        assert ours.at_once == 3
        monkeypatch.undo()
        e = replace(WIDE, inner=replace(WIDE.inner, checkpoint=True), train=replace(WIDE.train, split=5))
        trainer(run, store, e, steps=6).fit()
    assert_same_training(run, tmp_path / "alone")


def test_memory_that_is_not_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "available_bytes", lambda device: None)
    watch = Watch()
    trainer(tmp_path / "run", store, steps=1, watch=watch).fit()
    assert watch.said[0].startswith("memory: about") and "free" not in watch.said[0]


def test_the_memory_of_a_first_order_step_is_smaller(store: Store, tmp_path: Path) -> None:
    def needed(order: str) -> float:
        e = replace(tiny(order=order), field=FieldSpec(width=64, init="spread"))
        ours = trainer(tmp_path, store, replace(e, inner=replace(e.inner, steps=5), n_context=70, n_query=70))  # points outweigh parameters
        ours.loader.batch_size = 1000
        ours._fit_memory()
        return float(ours.monitor.said[0].split()[2])  # type: ignore[attr-defined]

    assert needed("first") < 0.7 * needed("second")


def test_errors_are_ours() -> None:
    assert issubclass(TrainingError, MetaSDFError) and TrainingError("").exit_code == 1


# -- fewer shapes --------------------------------------------------------------------------------------------------------------------------


def test_fewer_shapes_are_the_same_few_in_every_run(store: Store, tmp_path: Path) -> None:
    e = tiny(shapes=5, epochs=3)
    first, again, other = (trainer(tmp_path / name, store, each).loader.indices.tolist()
                           for name, each in (("a", e), ("b", e), ("c", tiny(shapes=5, seed=1))))  # fmt: skip
    assert first == again == sorted(set(first)) and len(first) == 5 and set(first) < set(store.split("train").tolist())
    assert first != other
    assert trainer(tmp_path / "all", store, tiny(shapes=10**6)).loader.indices.tolist() == store.split("train").tolist()
    assert Limit.of(e, store) == Limit(None, 3 * (5 // BATCH)) and Limit.of(e, store, 60.0) == Limit(60.0, None)


def test_codes_have_their_own_rate_and_are_left_out_of_prior_and_average(store: Store, tmp_path: Path) -> None:
    ours = trainer(tmp_path / "run", store, tiny("dense-concat", lr_codes=0.5))
    codes = [g for g in ours.optimiser.param_groups if g.get("rows")]
    assert [g["base_lr"] for g in codes] == [0.5] and [tuple(p.shape) for p in codes[0]["params"]] == [(int(ours.loader.indices.max()) + 1, 16)]
    ours.fit()
    assert ours.ema is not None and "codes" not in ours.ema
    assert "codes" not in load(tmp_path / "run").conditioner.state_dict()
