"""One plain training loop for every method: meta_loss, step, validate, checkpoint. The same command resumes where it stopped."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as setting
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metasdf import familiar
from metasdf.checkpoint import load_state, plain, save_state, write_json
from metasdf.conditioning.base import Conditioner
from metasdf.conditioning.codes import CODES
from metasdf.conditioning.inner_loop import FEW
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.data.loader import Loader, check_dim, rows_of
from metasdf.data.store import Store
from metasdf.devices import bfloat16_pays
from metasdf.distributed import Group
from metasdf.errors import CheckpointError, TrainingError, UsageError
from metasdf.experiments import Experiment, from_dict, to_dict
from metasdf.fields import Dropout, Params, field
from metasdf.heads import Head, make_head
from metasdf.memory import AGAIN, AGAIN_IN_RUNS, GIB, available_bytes, choose, model_bytes, return_freed_memory, task_bytes
from metasdf.optim import GroupedAdam
from metasdf.prior import Prior, build_conditioner, load
from metasdf.tasks import Observations, TaskBatch
from metasdf.transfer import load_into

OUTER = "outer"  # prefix of the outer loss's own parameters
MIN_HIDDEN = 16  # weights with fewer inputs or outputs are not hidden ones
MAX_ASPECT = 4  # nor are those that give so many times more outputs: a hypernetwork's last layer
MAX_BAD_STEPS = 10  # losses in a row that are not finite before training stops
# Of a run's configuration: how long, how it goes through memory, and how codes are fitted afterwards.
MAY_CHANGE = ("train.epochs", "train.split", "inner.checkpoint",
              *(f"method.codes.{name}" for name in ("steps", "lr", "decay", "patience", "tolerance", "points")))  # fmt: skip
SUBSET, UNITS = 2, 3  # what a random stream is for, beside the loader's: the shapes of a smaller training set; units that are switched off
PRODUCTS = {"float32": None, "bfloat16": torch.bfloat16}


class Dropping(NamedTuple):
    """Dropout of a step: each task's draw depends on the stream and its index alone, whatever its company."""

    p: float
    stream: tuple[int, ...]

    def __call__(self, task: Tensor) -> Dropout:
        seeds = (np.random.SeedSequence((*self.stream, index)).generate_state(1)[0] for index in task.tolist())
        return Dropout(self.p, [int(seed) for seed in seeds])


def meta_loss(
    model: Conditioner, head: Head, batch: TaskBatch, *, products: torch.dtype | None = None, early: float = 0.0, dropping: Dropping | None = None
) -> Tensor:
    """The one objective of all methods: mean over tasks of the head's loss on the query, plus the method's own prior loss.

    early: this share of it is the mean over the fields after each inner step, where a method has such steps (MAML++, Antoniou et al. 2019).
    """
    dropout = dropping(batch.task) if dropping else None

    def loss(params: Params) -> Tensor:
        return head.loss(field(params, batch.query.x, model.spec, products=products, dropout=dropout), batch.query.y).mean()

    if early and model.inner_steps:
        losses = [loss(params) for params in model.trajectory(batch.context)[1:]]
        return (1.0 - early) * losses[-1] + early * torch.stack(losses).mean()
    params, prior_loss = model.training_params(batch)
    return loss(params) + prior_loss


def meta_gradient(
    model: Conditioner, head: Head, batch: TaskBatch, *, products: torch.dtype | None = None, early: float = 0.0, dropping: Dropping | None = None,
    at_once: int | None = None, of: int | None = None,
) -> Tensor:  # fmt: skip
    """Adds the gradient of `meta_loss` over the batch to `.grad`, and returns the loss, (). Only the graph of `at_once` tasks is ever held.

    The loss is a mean over tasks, so a group of n of them counts n / B. A method's own prior loss must be such a mean too, or not depend on
    the tasks. of: B, where `batch` is only a part: losses and gradients of all parts then add up to those of the whole.
    """
    n = len(batch.task)
    total = batch.query.y.new_zeros(())
    for start in range(0, n, at_once or n):
        group = _part(batch, start, start + (at_once or n))
        loss = meta_loss(model, head, group, products=products, early=early, dropping=dropping) * (len(group.task) / (of or n))
        loss.backward()
        total += loss.detach()
    return total


def _part(batch: TaskBatch, start: int, stop: int) -> TaskBatch:
    return TaskBatch(batch.task[start:stop], *(Observations(o.x[start:stop], o.y[start:stop]) for o in batch[1:]))


class Limit(NamedTuple):
    """When training ends: after a wall-clock budget in seconds, or after a number of steps."""

    seconds: float | None
    steps: int | None

    @classmethod
    def of(cls, experiment: Experiment, store: Store, seconds: float | None = None) -> Limit:
        """A budget, or the epochs of the experiment over the shapes that it trains on."""
        if seconds is not None:
            return cls(seconds, None)
        shapes = len(training_shapes(store, experiment))
        return cls(None, experiment.train.epochs * (shapes // max(1, min(experiment.train.batch, shapes))))

    def progress(self, step: int, elapsed: float) -> float:
        if self.seconds is not None:
            return min(1.0, elapsed / self.seconds)
        assert self.steps is not None
        return min(1.0, step / self.steps)


class Monitor(Protocol):
    """Where progress is shown: the terminal, TensorBoard, nothing."""

    def say(self, text: str) -> None: ...
    def step(self, row: dict[str, float]) -> None: ...
    def validated(self, row: dict[str, float]) -> None: ...


class Quiet:
    """The monitor of all processes but the first."""

    def say(self, text: str) -> None:
        pass

    def step(self, row: dict[str, float]) -> None:
        pass

    def validated(self, row: dict[str, float]) -> None:
        pass


@dataclass
class Trainer:
    """The state of a run and the loop that advances it.

    In a group of processes each has the whole state and computes its part of every batch; the first one alone watches the clock, validates and
    writes (docs/scaling.md). may_checkpoint: whether `inner.checkpoint` may be switched on where memory is short.
    """

    experiment: Experiment
    store: Store
    run: Path
    limit: Limit
    monitor: Monitor
    device: torch.device
    init: Prior | None = None
    commit: str = "unknown"
    checkpoint_seconds: float = 60.0
    validate_seconds: float = 120.0
    validation_shapes: int = 100
    pictures: bool = True
    group: Group = setting(default_factory=Group)
    may_checkpoint: bool = True

    def __post_init__(self) -> None:
        e = self.experiment
        check_dim(self.store, e.field.in_dim, whose=e.name)
        self.loader = Loader(
            self.store, indices=training_shapes(self.store, e), rule=e.context, n_context=e.n_context, n_query=e.n_query,
            batch=e.train.batch, seed=e.train.seed, near=e.train.near, mirror=e.train.mirror, rank=self.group.rank, ranks=self.group.size,
        )
        _check_fits(e)
        n_tasks = int(self.loader.indices.max()) + 1
        self.model = build_conditioner(e, n_tasks=n_tasks, generator=torch.Generator().manual_seed(e.train.seed))
        if self.init is not None:
            load_into(self.model, self.init, e)
        self.model.to(self.device)
        self.head = make_head(e.head, e.outer_norm, clamp=e.clamp).to(self.device)
        self.products = self._products()
        self.model.products = self.products
        self.model.pruning = True
        self.optimiser = GroupedAdam(_parameter_groups(self._parameters(), e, products=self.products), lr=e.train.lr)
        self.ema = {name: p.detach().clone() for name, p in self._lasting()} if e.train.ema else None
        self.step = 0
        self.bad_steps = 0  # in a row
        self.elapsed = 0.0
        self.at_once = e.train.split  # tasks in memory at a time, None: all
        self.stop_signal: int | None = None  # what all processes know
        self._signal: int | None = None  # what this one was sent
        self._saved = False

    def _products(self) -> torch.dtype | None:
        """Precision of the matrix products, the same in all processes. Of "auto", bfloat16 where the field allows it and all devices gain by it."""
        t, field_allows = self.experiment.train, self.experiment.field.activation != "sine"
        slow = t.products == "auto" and not (field_allows and bfloat16_pays(self.device))
        (float32,) = self.group.agree(float(slow))
        if t.products != "auto":
            return PRODUCTS[t.products]
        self.monitor.say(f"products: {'float32' if float32 else 'bfloat16'}" + (", bfloat16 is no faster here" if float32 and field_allows else ""))
        return None if float32 else torch.bfloat16

    # -- the loop ----------------------------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Train to the limit; resume if the run folder holds a checkpoint. Returns the last validation row, empty if a signal ended it,
        and in all processes but the first."""
        self._refuse_strangers()
        if self.group.main:
            self._open_run()
        self._join()
        if self.limit.progress(self.step, self.elapsed) >= 1.0:
            self.monitor.say("the run has reached its end already; a longer --budget or more --epochs would go on")
            if row := self._ended():
                return row
        self._fit_memory()
        started = time.monotonic() - self.elapsed
        last_checkpoint = last_validation = self.elapsed
        window: list[float] = []
        with self._signals():
            while self.limit.progress(self.step, self.elapsed) < 1.0 and self.stop_signal is None:
                due = self.elapsed - last_checkpoint >= self.checkpoint_seconds
                loss = self._train_step(save=due or not self._saved)
                now = time.monotonic()
                self.elapsed = now - started
                window.append(now)
                window = window[-50:]
                rate = (len(window) - 1) * self.loader.batch_size / (window[-1] - window[0]) if len(window) > 1 else 0.0
                self.monitor.step(self._row(loss=loss, shapes_per_second=rate))
                self._agree()
                if due and not self.bad_steps:
                    last_checkpoint = self.elapsed
                if self.elapsed - last_validation >= self.validate_seconds:
                    if self.group.main:
                        self._log(self.validate())
                    self.elapsed = time.monotonic() - started
                    self._agree()
                    last_validation = self.elapsed
                    self._share()  # nothing new, unless the processors round differently
            row = self._finish() if self.group.main else {}
            self._agree()
        return row

    def _ended(self) -> dict[str, float]:
        """The last validation, where the run's prior is what would be made again; empty otherwise."""
        path = self.run / "prior.safetensors"
        if self.group.size > 1 or not path.exists():
            return {}
        prior = load(path)
        return dict(prior.card["validation"]) if prior.experiment == self.experiment else {}

    def _finish(self) -> dict[str, float]:
        if self.stop_signal is not None:
            if not self.bad_steps:
                self.save()
            return {}
        row = self.validate()
        self._log(row)
        if not row["val_n"]:
            raise self._diverged("the prior fits none of the validation shapes, every field is NaN or infinite")
        self.save(validation=row)
        return row

    def _agree(self) -> None:
        """The time is that of the first process, and a signal to one is a signal to all: so all take the same decisions."""
        self.elapsed, number = self.group.agree(self.elapsed if self.group.main else 0.0, self._signal or 0)
        self.stop_signal = int(number) or None

    def _train_step(self, *, save: bool = False) -> float:
        t = self.experiment.train
        progress = self.limit.progress(self.step, self.elapsed)
        factor = schedule(t.schedule, progress, t.halve_at) * min(1.0, (self.step + 1) / t.warmup if t.warmup else 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.model.second_order = {"second": 1.0, "first": 0.0, "anneal": min(1.0, progress / max(t.anneal, 1e-9))}[t.order]
        batch = self.loader.batch(self.step).to(self.device)
        self.optimiser.zero_grad(set_to_none=True)
        early = max(0.0, 1.0 - progress / t.multistep) if t.multistep else 0.0
        loss = meta_gradient(
            self.model, self.head, batch, products=self.products, early=early, at_once=self.at_once, of=self.loader.batch_size,
            dropping=Dropping(t.dropout, (t.seed, UNITS, self.step)) if t.dropout else None,
        )  # fmt: skip
        if self.group.size > 1:
            self._sum_gradients(loss)
        if t.clip_value is not None:
            torch.nn.utils.clip_grad_value_([p for _, p in self._lasting()], t.clip_value)
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self._lasting()], t.clip or math.inf)
        value = float(loss)
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            self._skip(value)
            return value
        self.bad_steps = 0
        if save:  # before the step: a state that just gave a finite loss, while the next one may have diverged
            self._saved = True
            if self.group.main:
                self.save()
        self.optimiser.step()
        self.model.project()
        self.step += 1
        if self.ema is not None:
            decay = min(t.ema, (1 + self.step) / (10 + self.step))  # short memory at first, so that the average leaves the start soon
            with torch.no_grad():
                for name, p in self._lasting():
                    self.ema[name].lerp_(p, 1.0 - decay)
        return value

    def _lasting(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters by name, without the codes of training shapes: no prior keeps those, and no batch sees more than a few."""
        return ((name, p) for name, p in self._parameters() if name != CODES)

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        """All that is trained: the model, and what the outer loss learns of itself."""
        yield from self.model.named_parameters()
        yield from self.head.named_parameters(prefix=OUTER)

    def _sum_gradients(self, loss: Tensor) -> None:
        parameters = [p for _, p in self._parameters()]
        for p in parameters:
            if p.grad is not None and p.grad.is_sparse:  # each process has the rows of its own tasks
                p.grad = p.grad.to_dense()
        self.group.sum([loss, *(p.grad for p in parameters if p.grad is not None)])

    def _skip(self, loss: float) -> None:
        """A batch on which the inner loop diverged is left out; a row of them ends the training; the last checkpoint is kept."""
        self.step += 1
        self.bad_steps += 1
        self.monitor.say(f"step {self.step:,}: the loss is not finite ({loss}), the batch is left out ({self.bad_steps} in a row)")
        if self.bad_steps >= MAX_BAD_STEPS:
            raise self._diverged(f"the loss was not finite {self.bad_steps} times in a row, up to step {self.step:,}")

    def _diverged(self, what: str) -> TrainingError:
        kept = self.checkpoint_path.exists()
        return TrainingError(
            what, where=self.run, cause="the learning rate or the inner rates are too large",
            fix="the last good state is kept in the run folder; start a new run with smaller --set train.lr or train.lr_rates, "
                f"from these weights with --init {self.run / 'prior.safetensors'}" if kept
            else "start again with a smaller --set inner.init_rate, train.lr or train.lr_rates",
        )  # fmt: skip

    def _row(self, **values: float) -> dict[str, float]:
        progress = self.limit.progress(self.step, self.elapsed)
        eta = self.elapsed * (1 - progress) / progress if progress > 0 else math.inf
        return {"step": self.step, "epoch": self.step / self.loader.steps_per_epoch, "elapsed": self.elapsed, "progress": progress,
                "eta": eta, "lr": self.optimiser.param_groups[0]["lr"], **values}  # fmt: skip

    # -- validation ----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, full-precision products and whole contexts, as it will be used."""
        current = {name: p.detach().clone() for name, p in self._parameters()}
        self.model.products, self.model.pruning = None, False
        try:
            self._assign(self.ema or current)
            yield
        finally:
            self._assign(current)
            self.model.products, self.model.pruning = self.products, True

    def validate(self) -> dict[str, float]:
        """MSE and MAE over all grid points of the first `validation_shapes` validation shapes; a tenth of them where codes must be fitted."""
        from metasdf.evaluate import grid_errors

        indices = self._validated()
        with self.averaged():
            errors = grid_errors(
                self.model, self.head, self.store, indices=indices, rule=self.experiment.context,
                n_context=self.experiment.n_test, seed=self.experiment.train.seed, device=self.device, every_step=False,
            )  # fmt: skip
            if self.pictures and self.experiment.field.in_dim == 2:
                from metasdf.report import draw_steps

                draw_steps(self.model, self.store, indices[:4], self.experiment,
                           path=self.run / "pictures" / f"step-{self.step:07d}.png", device=self.device)  # fmt: skip
        return self._row(val_mse=errors.mse[-1], val_mae=errors.mae[-1], val_n=errors.n)

    def _validated(self) -> NDArray[np.int64]:
        split = "val" if len(self.store.splits.get("val", ())) else "train"
        shapes = math.ceil(self.validation_shapes / (10 if self.experiment.method.kind == "codes" else 1))
        return rows_of(self.store, split, self.experiment.category)[:shapes]

    def _log(self, row: dict[str, float]) -> None:
        self.monitor.validated(row)
        with (self.run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(plain(row), allow_nan=False) + "\n")

    # -- saving and resuming -------------------------------------------------------------------------------------------------------

    @property
    def checkpoint_path(self) -> Path:
        return self.run / "checkpoint.safetensors"

    def save(self, *, validation: dict[str, float] | None = None) -> None:
        """Checkpoint (exact resume) and prior (averaged weights, for use), each written whole or not at all."""
        state = {"step": self.step, "bad_steps": self.bad_steps, "elapsed": self.elapsed,
                 "config": to_dict(self.experiment), "data": self.store.fingerprint}  # fmt: skip
        save_state(self.checkpoint_path, self._tensors(), state, kind="checkpoint")
        prior = self.export(validation)
        if validation:
            prior.card[familiar.KEY] = familiar.usual(prior.to(self.device), self.store, self._validated(), seed=self.experiment.train.seed)
        prior.save(self.run / "prior.safetensors")

    def _tensors(self) -> dict[str, Tensor]:
        """All that training changes."""
        tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in self._parameters()}
        for name, p in (self.ema or {}).items():
            tensors[f"ema.{name}"] = p
        for index, values in self.optimiser.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"optimiser.{index}.{key}"] = torch.as_tensor(value)
        return tensors

    def export(self, validation: dict[str, float] | None = None) -> Prior:
        model = build_conditioner(self.experiment)
        weights: dict[str, Tensor] = self.ema or dict(self._lasting())
        model.load_state_dict({name: p.detach().cpu() for name, p in weights.items() if not name.startswith(OUTER)})
        meta = self.store.meta
        init = self.init.card.get("training", {}) | {"prior": self.init.name} if self.init else None
        card = {
            "data": {k: meta[k] for k in ("source", "licence", "resolution") if k in meta} | {"fingerprint": self.store.fingerprint},
            "training": {"steps": self.step, "seconds": round(self.elapsed, 1), "shapes": len(self.loader.indices), "commit": self.commit,
                         "init": init, "products": "bfloat16" if self.products else "float32", "device": str(self.device),
                         "torch": torch.__version__},
            "validation": validation or {},
        }  # fmt: skip
        return Prior(self.experiment, model, card=card)

    def _open_run(self) -> None:
        config = to_dict(self.experiment)
        if self.checkpoint_path.exists():
            tensors, state = load_state(self.checkpoint_path, kind="checkpoint")
            refuse_changes(state, config, self.store.fingerprint, self.run)
            self._restore(tensors, state)
            self._saved = True
            self.monitor.say(f"resuming {self.run} at step {self.step:,} ({self.elapsed / 60:.1f} min trained)")
            return
        if self.run.exists() and not self.run.is_dir():
            raise UsageError("--run names a file", where=self.run, cause="a path given twice, or misspelt", fix="choose a folder, new or empty")
        if self.run.exists() and any(self.run.iterdir()) and not (self.run / "config.json").exists():
            raise UsageError("the run folder holds other files", where=self.run, cause="it was not made by metasdf train",
                             fix="choose an empty or new --run folder")  # fmt: skip
        write_json(self.run / "config.json", {"experiment": config, "data": self.store.fingerprint, "commit": self.commit})

    def _refuse_strangers(self) -> None:
        """Processes on several machines may have been given different things: the data set, the configuration, the end."""
        for what, text in (("the data set", self.store.fingerprint), ("the configuration", json.dumps([to_dict(self.experiment), self.limit]))):
            ranks = self.group.differing(text)
            if ranks:
                raise UsageError(f"{what} of process {', '.join(map(str, ranks))} is not that of process 0 (of {self.group.size})",
                                 where=self.store.path, cause="another file behind the same path on another machine, or another command",
                                 fix="give every process the same command and a copy of the same data set")  # fmt: skip

    def _join(self) -> None:
        """All processes go on from the state of the first, which alone reads the run folder."""
        if self.group.size == 1:
            return
        step, bad_steps, self.elapsed, saved, moments = self.group.agree(
            self.step, self.bad_steps, self.elapsed, self._saved, len(self.optimiser.state)
        )
        self.step, self.bad_steps, self._saved = int(step), int(bad_steps), bool(saved)
        if moments and not self.group.main:
            self._set_moments(self.optimiser.fresh_state())
        self._share()

    def _share(self) -> None:
        tensors = self._tensors()
        self.group.share([tensors[name] for name in sorted(tensors)])  # one order, whether made or loaded

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        try:
            names = [name for name, _ in self._parameters()]
            expected = {f"model.{name}" for name in names} | {f"ema.{name}" for name in self.ema or ()}
            if any(name.startswith("optimiser.") for name in tensors):  # none before the first step
                expected |= {f"optimiser.{i}.{key}" for i, keys in self.optimiser.fresh_state().items() for key in keys}
            if tensors.keys() != expected:
                raise ValueError(f"missing or unknown: {', '.join(sorted(tensors.keys() ^ expected)[:5])}")
            self._assign({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
            if self.ema is not None:
                self.ema = {name: tensors[f"ema.{name}"].to(self.device) for name in self.ema}
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("optimiser."):
                    _, index, key = name.split(".")
                    moments.setdefault(int(index), {})[key] = tensor
            self._set_moments(moments)
            self.step, self.bad_steps, self.elapsed = int(state["step"]), int(state["bad_steps"]), float(state["elapsed"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit the run ({error})", where=self.checkpoint_path,
                                  cause="it was written by another version",
                                  fix="start a new run; --init can take its prior.safetensors") from error  # fmt: skip

    def _set_moments(self, moments: dict[int, dict[str, Tensor]]) -> None:
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})

    @torch.no_grad()
    def _assign(self, values: dict[str, Tensor]) -> None:
        for name, p in self._parameters():
            if name not in values:
                continue  # codes, which have no average
            if values[name].shape != p.shape:
                raise ValueError(f"{name} has shape {tuple(values[name].shape)}, not {tuple(p.shape)}")
            p.copy_(values[name])

    # -- surroundings --------------------------------------------------------------------------------------------------------------

    def _fit_memory(self) -> None:
        """All tasks of a step at once where they fit; else in groups, or with inner steps computed again, whichever takes less time.

        None of it changes a number but by rounding. So it is no part of the configuration, and another machine may choose otherwise.
        Raises TrainingError where nothing fits.
        """
        e, group, model = self.experiment, self.group, self.model
        tasks = math.ceil(self.loader.batch_size / group.size)
        known = available_bytes(self.device)
        share = group.local if self.device.type == "cpu" else 1
        (lack,) = group.agree(-math.inf if known is None else -known / share)  # the process with the least decides for all
        free = -lack
        one = _part(self.loader.batch(0).to(self.device), 0, 1)
        early = 0.5 if e.train.multistep else 0.0
        dropping = Dropping(e.train.dropout, (0,)) if e.train.dropout else None
        needs = task_bytes(model, lambda: meta_loss(model, self.head, one, products=self.products, early=early, dropping=dropping),
                           first_order=e.train.order == "first")  # fmt: skip
        if isinstance(model, MetaSDF) and (model.config.checkpoint or not self.may_checkpoint):
            needs = {model.config.checkpoint: needs[model.config.checkpoint]}
        fixed = 5 * model_bytes(p for _, p in self._parameters())  # parameters, gradients, two moments, averages
        again = AGAIN_IN_RUNS if e.inner.steps > FEW else AGAIN
        choice = choose(tasks, needs, fixed=fixed, free=0.9 * free, split=e.train.split, again=again)
        if choice is None:
            fewest = min(e.train.split or 1, tasks)
            raise TrainingError(f"a training step needs about {(fixed + min(needs.values()) * fewest) / GIB:.2f} GiB even for {fewest} at a time, "
                                f"{free / GIB:.2f} GiB are free", where=str(self.device),
                                cause="the points per shape or the inner steps are too many for this machine",
                                fix="fewer points: --set n_context=N --set n_query=N" + (
                                    "; or leave train.split and inner.checkpoint as they are: what fits is then chosen"
                                    if e.train.split or len(needs) == 1 else ""))  # fmt: skip
        self.at_once = choice.at_once
        if isinstance(model, MetaSDF):
            model.config = replace(model.config, checkpoint=choice.checkpoint)
        if choice.checkpoint:
            return_freed_memory()
        whole = fixed + next(iter(needs.values())) * tasks
        line = f"memory: about {whole / GIB:.2f} GiB for a step of {tasks} shapes"
        line += f" on each of {group.size} processes" if group.size > 1 else ""
        line += f", {free / GIB:.1f} GiB free" if math.isfinite(free) else ""
        ways = [f"{choice.at_once} at a time"] if choice.at_once < tasks else []
        ways += [f"inner steps computed again ({again:.1f} times the time)"] if choice.checkpoint and not e.inner.checkpoint else []
        self.monitor.say(line + (f"; so {', '.join(ways)}: about {choice.need / GIB:.2f} GiB" if ways else ""))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the loop after the step in hand; a second Ctrl-C stops at once, but not one of several processes: they may be
        sent the same signal twice, by the terminal or scheduler and by torchrun."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self._signal is not None and number == signal.SIGINT and self.group.size == 1:
                raise KeyboardInterrupt
            self._signal = self._signal or number

        previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)


def schedule(kind: str, progress: float, halve_at: Sequence[float] = ()) -> float:
    if kind == "halve":
        return 0.5 ** sum(progress >= at for at in halve_at)
    return 1.0 if kind == "constant" else 0.5 * (1.0 + math.cos(math.pi * progress))


def refuse_changes(state: dict[str, Any], config: dict[str, Any], fingerprint: str, run: Path) -> None:
    """A run goes on only with what it began with, but for MAY_CHANGE and the budget."""
    was, now = _flat(_completed(state["config"])), _flat(config)
    if was.get("name") != now.get("name"):
        raise UsageError(f"this run folder belongs to {was.get('name')}, not to {now.get('name')}", where=run, cause="--run of another experiment",
                         fix="choose another --run, or train the experiment it belongs to")  # fmt: skip
    changed = [f"{k}: {was.get(k)} -> {now.get(k)}" for k in sorted(was.keys() | now.keys()) if was.get(k) != now.get(k) and k not in MAY_CHANGE]
    if changed:
        raise UsageError(f"the configuration differs from the one this run began with ({'; '.join(changed)})", where=run,
                         cause="another preset or --set than before, or a newer version of metasdf",
                         fix="repeat the first command as it was, or give a new --run (--init RUN goes on from its weights)")  # fmt: skip
    if state["data"] != fingerprint:
        raise UsageError("the data set differs from the one this run began with", where=run, cause="it was prepared again with other options",
                         fix="give the original --data, or a new --run")  # fmt: skip


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of fields that an older version did not have: they mean what it did."""
    try:
        return to_dict(from_dict(Experiment, config))
    except (ValueError, TypeError, KeyError):
        return config


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def training_shapes(store: Store, experiment: Experiment) -> NDArray[np.int64]:
    """The training split, or as many shapes of it as `train.shapes` says, drawn by the seed."""
    indices, shapes = rows_of(store, "train", experiment.category), experiment.train.shapes
    if shapes is None or shapes >= len(indices):
        return indices
    return np.sort(np.random.default_rng((experiment.train.seed, SUBSET)).choice(indices, shapes, replace=False))


def _parameter_groups(
    parameters: Iterator[tuple[str, Tensor]], experiment: Experiment, *, products: torch.dtype | None
) -> list[dict[str, Any]]:
    """Rates, codes, hidden weights where Muon takes them, and the rest, each with its own learning rate."""
    t = experiment.train
    kinds: dict[str, dict[str, list[Tensor]]] = {}  # of parameters: whose they are, and who steps them
    for name, p in parameters:
        first = name.split(".")[0]
        own = first if first in ("rates", "curvature", CODES) else "theta"
        hidden = own in ("theta", "curvature") and t.optimiser == "muon" and p.dim() == 2 and min(p.shape) >= MIN_HIDDEN
        kinds.setdefault(own, {}).setdefault("muon" if hidden and max(p.shape) <= MAX_ASPECT * min(p.shape) else "adam", []).append(p)
    lr = {("theta", "adam"): t.lr, ("theta", "muon"): t.lr_muon, ("rates", "adam"): t.lr if t.lr_rates is None else t.lr_rates,
          ("curvature", "adam"): t.lr, ("curvature", "muon"): t.lr_curvature,
          (CODES, "adam"): t.lr if t.lr_codes is None else t.lr_codes}  # fmt: skip
    how: dict[str, dict[str, Any]] = {"muon": {"orthogonal": True, "products": products}, CODES: {"rows": True}}
    return [
        {"params": kinds[own][who], "base_lr": value, **how.get(who, how.get(own, {}))}
        for (own, who), value in lr.items() if who in kinds.get(own, {})
    ]  # fmt: skip


def _check_fits(e: Experiment) -> None:
    """What shows only when settings meet. Raises UsageError."""
    channels = make_head(e.head, e.outer_norm).channels
    if e.field.out_dim != channels:
        raise UsageError(f"the field has {e.field.out_dim} outputs, the head {e.head} reads {channels}", fix=f"--set field.out_dim={channels}")
    if e.field.activation == "sine" and e.train.products == "bfloat16":
        raise UsageError(f"a sine field cannot be trained with {e.train.products} products", cause="sin(w0 z) needs its argument at full precision",
                         fix="--set train.products=float32")  # fmt: skip
