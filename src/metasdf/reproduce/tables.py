"""The cells of the tables: each trained, measured and kept as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from metasdf import poisson
from metasdf.checkpoint import write_json
from metasdf.conditioning.codes import AutoDecoder
from metasdf.data.store import Store
from metasdf.errors import UsageError
from metasdf.experiments import Experiment, experiment, to_dict
from metasdf.prior import Prior, load
from metasdf.progress import TrainingMonitor
from metasdf.provenance import commit
from metasdf.reproduce import digits, solids
from metasdf.reproduce.plan import LABELS, REFINED, UNTRAINED, Column, Data, Plan, Say, Tables
from metasdf.train import Limit, Trainer

KINDS: dict[str, Tables] = {"table1": digits, "table2": digits, "table3": solids, "table4": solids}
COLUMNS = digits.COLUMNS | solids.COLUMNS


class Cell(NamedTuple):
    column: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.column}-{self.method}"

    @property
    def asks(self) -> Column:
        return COLUMNS[self.column]

    @property
    def refine(self) -> int:
        """Steps by which its fits are refined."""
        return KINDS[self.asks.table].REFINE if self.method == REFINED else 0

    def experiment(self, *, preset: str) -> Experiment:
        return experiment(self.asks.experiments[self.method], preset=preset)

    def training(self, *, preset: str) -> Experiment:
        """What is trained. Codes never see a context in training, so those of the dense column are those of the level-set column."""
        asked = self.experiment(preset=preset)
        return experiment(asked.name.replace("levelset", "dense"), preset=preset) if asked.method.kind == "codes" else asked


def cells(tables: Sequence[str], only: Sequence[str] = ()) -> list[Cell]:
    """The cells of tables, row by row; only: of these names, columns or methods. Raises UsageError for a name that fits none."""
    chosen = [Cell(name, method) for method in LABELS for name, column in COLUMNS.items() if column.table in tables and method in column.experiments]
    for name in only:
        if not any(name in (cell.name, *cell) for cell in chosen):
            raise UsageError(f"there is no cell {name!r} in {' and '.join(tables)}", fix=f"cells: {', '.join(cell.name for cell in chosen)}")
    return [cell for cell in chosen if not only or any(name in (cell.name, *cell) for name in only)]


def fill(cell: Cell, plan: Plan, *, say: Say) -> Path:
    """Train and measure a cell, unless its JSON already answers the same plan. Interrupted, the same call goes on. Returns the JSON's path."""
    column, path, kind = cell.asks, plan.results / f"{cell.name}.json", KINDS[cell.asks.table]
    asked, trained_as = _experiments(cell, plan)
    limit = kind.limit(asked.method.kind == "codes" or cell.method == REFINED, plan)
    learns = {"experiment": to_dict(trained_as), "budget": plan.budget} if cell.method != UNTRAINED else {"points": asked.n_test}
    refine = cell.refine
    request = {**learns, **({"refine": refine} if refine else {}), "limit": limit, "small": plan.small, **kind.request(plan)}
    if path.exists() and json.loads(path.read_text()).get("request") == request:
        say(f"{cell.name}: kept, {path}")
        return path
    if cell.method == UNTRAINED and not poisson.available():
        say(f"{cell.name}: left out, it needs pymeshlab: pip install 'metasdf[poisson]'")
        return path
    test = kind.data(column.test, "test", plan)
    about = {"comparable": not plan.small, "trained_on": "nothing", "tested_on": test.label}
    if cell.method == UNTRAINED:
        result = solids.measure_untrained(asked.n_test, test, plan, limit=limit)
    else:
        train = kind.data(column.train, "train", plan)
        about["trained_on"] = train.label
        _train(replace(trained_as, category=train.category), train.store, plan, say=say)
        result = kind.measure(_prior(asked, run_of(trained_as, train.store, plan)), train, test, plan, limit=limit, refine=refine)
    write_json(path, {"cell": cell._asdict() | about, **result, "request": request})
    say(f"{cell.name}: {kind.told(cell.column, cell.method, result)}, {path}")
    return path


def filled(cell: Cell, plan: Plan) -> tuple[Prior, Data]:
    """What a filled cell has measured: the trained prior and the shapes of its test. Raises UsageError where there is no such run."""
    (asked, trained_as), kind = _experiments(cell, plan), KINDS[cell.asks.table]
    train, test = (kind.data(shapes, split, plan) for shapes, split in ((cell.asks.train, "train"), (cell.asks.test, "test")))
    return _prior(asked, run_of(trained_as, train.store, plan)).to(plan.device), test


def run_of(e: Experiment, store: Store, plan: Plan) -> Path:
    """The folder of a training, which cells share."""
    return plan.work / "runs" / f"{store.path.name}-{e.name}"


def _experiments(cell: Cell, plan: Plan) -> tuple[Experiment, Experiment]:
    """What is asked, and what is trained for it."""
    asked, trained_as = cell.experiment(preset=plan.preset), cell.training(preset=plan.preset)
    return (_small(asked), _small(trained_as)) if plan.small else (asked, trained_as)


def _train(e: Experiment, store: Store, plan: Plan, *, say: Say) -> None:
    """An auto-decoder is validated at the end alone: fitting a few codes takes minutes, and they would be its training's."""
    run, every = run_of(e, store, plan), math.inf if e.method.kind == "codes" else 240
    say(f"training {e.name} on {store.path.name}: {run}")
    with TrainingMonitor() as monitor:
        trainer = Trainer(
            e, store, run, Limit.of(e, store, plan.budget), monitor, device=plan.device, commit=commit(), validate_seconds=every, pictures=False
        )
        trainer.fit()
    if trainer.stop_signal is not None:
        raise KeyboardInterrupt


def _prior(asked: Experiment, run: Path) -> Prior:
    """What the run has learned, used as the cell asks: its context, and its way to fit codes."""
    prior = load(run)
    prior.experiment = replace(prior.experiment, name=asked.name, context=asked.context, n_test=asked.n_test, method=asked.method)
    if isinstance(prior.conditioner, AutoDecoder):
        prior.conditioner.config = asked.method.codes
    return prior


def _small(e: Experiment) -> Experiment:
    """Few steps of fitting, so that auto-decoders too are done in seconds."""
    codes = replace(e.method.codes, steps=50, patience=0)
    return replace(e, method=replace(e.method, codes=codes))
