"""The paper's 2D tables: each cell trained, measured and kept as JSON, then set beside the published number (docs/results.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from metasdf.checkpoint import write_json
from metasdf.data.prepare import prepare_mnist, prepare_slice
from metasdf.data.store import Store
from metasdf.errors import InputError, UsageError
from metasdf.evaluate import evaluate
from metasdf.experiments import Experiment, experiment, to_dict
from metasdf.files import write_whole
from metasdf.prior import Prior, load
from metasdf.progress import TrainingMonitor
from metasdf.provenance import commit
from metasdf.train import Limit, Trainer

Say = Callable[[str], None]


class Column(NamedTuple):
    """What a table asks: a context, the data set trained on, and the one whose test split is asked for."""

    table: str
    title: str
    context: str  # of the experiment: dense, levelset
    train: str
    test: str


COLUMNS = {
    "dense": Column("table1", "dense", "dense", "mnist", "mnist"),
    "levelset": Column("table1", "level set", "levelset", "mnist", "mnist"),
    "unseen": Column("table2", "unseen digit", "dense", "mnist-unseen", "mnist-unseen"),
    "rotated": Column("table2", "rotation", "dense", "mnist", "mnist-rotated"),
    "composite": Column("table2", "composite", "dense", "mnist-composite", "mnist-composite"),
}
TABLES = ("table1", "table2")
LABELS = {
    "hyper": "auto-decoder, hypernetwork", "concat": "auto-decoder, concatenation", "cnp4": "conditional neural process, 4 layers",
    "cnp9": "conditional neural process, 9 layers", "metasdf": "MetaSDF",
}  # fmt: skip
# x 1e-6, (mean, standard deviation over three runs): main paper, tables of section 4; supplement, tables 1 and 2. Columns as in COLUMNS.
PUBLISHED: dict[str, tuple[tuple[float, float | None], ...]] = {
    "hyper": ((44, None), (1562, None), (144, None), (189, None), (284, None)),
    "concat": ((50, None), (1813, None), (62, None), (151, None), (137, None)),
    "cnp4": ((101.7, 5.1), (154.9, 1.0), (252.4, 5.0), (301.1, 10.3), (484.9, 13.6)),
    "cnp9": ((92.5, 2.0), (145.8, 1.2), (223.4, 4.2), (291.2, 8.6), (468.0, 22.8)),
    "metasdf": ((15.4, 0.2), (56.6, 0.5), (22.8, 0.5), (33.3, 1.1), (59.8, 1.2)),
}
CODE_SHAPES = 1000  # test shapes of auto-decoders, which fit a code to each by hundreds of steps


class Cell(NamedTuple):
    column: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.column}-{self.method}"

    @property
    def published(self) -> tuple[float, float | None]:
        return PUBLISHED[self.method][list(COLUMNS).index(self.column)]

    def experiment(self, *, context: str | None = None, preset: str) -> Experiment:
        suffix = "" if self.method == "metasdf" else f"-{self.method}"
        return experiment(f"mnist-{context or COLUMNS[self.column].context}{suffix}", preset=preset)


class Plan(NamedTuple):
    """How cells are filled. budget: seconds of training, None for the epochs of the experiment; limit: test shapes at most."""

    work: Path
    results: Path
    mnist: Path | None = None  # where MNIST's files are, None to download them
    preset: str = "cpu"
    budget: float | None = 900.0
    runs: int = 3
    limit: int | None = None
    small: bool = False
    device: torch.device = torch.device("cpu")


def cells(tables: Sequence[str], only: Sequence[str] = ()) -> list[Cell]:
    """The cells of tables, row by row; only: of these names, columns or methods. Raises UsageError for a name that fits none."""
    chosen = [Cell(column, method) for method in LABELS for column in COLUMNS if COLUMNS[column].table in tables]
    for name in only:
        if not any(name in (cell.name, *cell) for cell in chosen):
            raise UsageError(f"there is no cell {name!r} in {' and '.join(tables)}", fix=f"cells: {', '.join(cell.name for cell in chosen)}")
    return [cell for cell in chosen if not only or any(name in (cell.name, *cell) for name in only)]


def fill(cell: Cell, plan: Plan, *, say: Say) -> Path:
    """Train and measure a cell, unless its JSON already answers the same plan. Interrupted, the same call goes on. Returns the JSON's path."""
    column, path = COLUMNS[cell.column], plan.results / f"{cell.name}.json"
    asked = cell.experiment(preset=plan.preset)
    trained_as = cell.experiment(context="dense", preset=plan.preset) if asked.method.kind == "codes" else asked  # codes never see a context
    if plan.small and column.test != "mnist":
        raise UsageError("the package's 100 digits make table 1 alone", where=cell.name, fix="metasdf reproduce table1 --scale small")
    if plan.small:
        trained_as, asked = _small(trained_as), _small(asked)
    limit = min(plan.limit or math.inf, CODE_SHAPES) if asked.method.kind == "codes" else plan.limit
    request = {"experiment": to_dict(trained_as), "budget": plan.budget, "runs": plan.runs, "limit": limit, "small": plan.small}
    if path.exists() and json.loads(path.read_text()).get("request") == request:
        say(f"{cell.name}: kept, {path}")
        return path
    prior = _trained(trained_as, _data(column.train, plan), plan, say=say)
    prior.experiment = replace(prior.experiment, name=asked.name, context=asked.context, n_test=asked.n_test)
    result = evaluate(prior, _data(column.test, plan), runs=plan.runs, limit=int(limit) if limit else None, device=plan.device)
    write_json(path, {"cell": cell._asdict() | {"comparable": not plan.small}, **result, "request": request})
    say(f"{cell.name}: MSE {result['metrics']['mse']:.3g} (published {cell.published[0]:g}e-6), n {result['n']:,}, {path}")
    return path


def _trained(e: Experiment, store: Store, plan: Plan, *, say: Say) -> Prior:
    run = plan.work / "runs" / f"{store.path.name}-{e.name}"
    say(f"training {e.name} on {store.path.name}: {run}")
    with TrainingMonitor() as monitor:
        trainer = Trainer(
            e, store, run, Limit.of(e, store, plan.budget), monitor, device=plan.device, commit=commit(), validate_seconds=240, pictures=False
        )
        trainer.fit()
    if trainer.stop_signal is not None:
        raise KeyboardInterrupt
    return load(run)


def _data(name: str, plan: Plan) -> Store:
    if plan.small:
        return prepare_slice(plan.work / "data" / "mnist-slice")
    return prepare_mnist(plan.mnist, plan.work / "data" / name, name=name)


def _small(e: Experiment) -> Experiment:
    """Few steps of fitting, so that auto-decoders too are done in seconds."""
    codes = replace(e.method.codes, steps=50, patience=0)
    return replace(e, method=replace(e.method, codes=codes))


# -- beside the published numbers ----------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A measured cell: MSE x 1e-6 with its standard deviation over runs, MAE x 1e-3, test shapes, failed ones, seconds of training."""

    cell: Cell
    mse: float
    std: float | None
    mae: float
    n: int
    failed: int
    seconds: float
    steps: int
    fit_ms: float
    preset: str
    commit: str
    hardware: str


def read(results: Path) -> list[Line]:
    """The comparable cells in a folder of results. Raises InputError for a file that is none of ours."""
    found = []
    for cell in cells(TABLES):
        path = results / f"{cell.name}.json"
        if not path.exists():
            continue
        try:
            r = json.loads(path.read_text())
            if not r["cell"]["comparable"]:
                continue
            m, t = r["metrics"], r["training"]
            std = m["mse_std"] * 1e6 if "mse_std" in m else None
            found.append(Line(cell, m["mse"] * 1e6, std, m["mae"] * 1e3, r["n"], r["failed"], t["seconds"], t["steps"], r["fit_ms"]["batched"],
                              r["preset"], r["commit"], r["hardware"]))  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no result of metasdf reproduce ({error})", where=path, cause="another file, or a damaged one",
                             fix="delete it and run the table again") from error  # fmt: skip
    return found


def comparison(lines: Sequence[Line]) -> Iterator[tuple[str, ...]]:
    """Rows: method, column, published, ours, ratio, MAE, n, failed, minutes of training, ms to fit a shape."""
    for line in lines:
        published, deviation = line.cell.published
        ours = f"{line.mse:.1f}" + (f" ± {line.std:.1f}" if line.std is not None else "")
        yield (LABELS[line.cell.method], COLUMNS[line.cell.column].title, f"{published:g}" + (f" ± {deviation:g}" if deviation else ""), ours,
               f"{line.mse / published:.2f}", f"{line.mae:.2f}", f"{line.n:,}", f"{line.failed:,}", f"{line.seconds / 60:.0f}",
               f"{line.fit_ms:.1f}")  # fmt: skip


HEAD = ("method", "column", "published MSE", "ours MSE", "ratio", "ours MAE", "n", "failed", "minutes", "fit ms")
DEPARTURES = """\
- The published column is called l1-error; it is read as the mean squared error (docs/metrics.md says why). MSE x 1e-6, MAE x 1e-3, field units.
- Every method of a column has the same wall-clock budget on one CPU core instead of the paper's epochs on a GPU; preset `cpu`: Muon, l1 outer
  loss, averaged weights, bfloat16 products, fewer shapes and points a step, larger and decaying learning rates (docs/method.md).
- MetaSDF is trained from scratch in that budget here; the shipped priors, trained for hours, are in README.md.
- Auto-decoders are tested on 1,000 shapes, spread evenly over the test split: each takes hundreds of Adam steps.
- The auto-decoder of the level-set column is the one of the dense column: training sees no context. Only what its codes are fitted to differs.
- Codes: Adam counts the visits of each shape by itself, and codes that a step does not see stay (with a shared count, rare visits would hardly
  move them). Sizes that are not published (256 numbers of code; how set encoders count layers) are in docs/method.md.
- Rotation: angles uniform in [0, 360), the range is not published.
"""


def write_page(lines: Sequence[Line], path: Path) -> None:
    """docs/results.md from the cells that were measured."""
    text = ["# Results against the paper: 2D\n", "Written by `metasdf reproduce compare`; each line is a file of results/tables.\n"]
    for table, title in (("table1", "In distribution"), ("table2", "Out of distribution")):
        own = [line for line in lines if COLUMNS[line.cell.column].table == table]
        if own:
            text += [f"## {title}\n", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
            text += ["| " + " | ".join(row) + " |" for row in comparison(own)] + [""]
    where = sorted({f"{line.hardware} (commit {line.commit}, preset {line.preset})" for line in lines})
    text += ["Measured on " + "; ".join(where) + ".\n", "## Departures from the paper\n", DEPARTURES]
    write_whole(path, "\n".join(text).encode())
