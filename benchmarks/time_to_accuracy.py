"""Error against training time, from scratch: the straightforward recipe (preset paper on the straightforward engine) and ours (preset cpu).

    python benchmarks/time_to_accuracy.py --data DATA --minutes 30 --json time.json

Three trainings, one after the other, each alone on the machine and in a process of its own: the straightforward one for the whole budget, ours for
the whole, and ours for a tenth of it, since a schedule that decays to the end of its budget is judged at its end. Draws docs/images/time.png.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from common import fresh, say, set_up, shared_options, table, write
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metasdf.data.store import Store
from metasdf.experiments import EXPERIMENTS, Experiment, experiment
from metasdf.train import Limit, Quiet, Trainer

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "time.png"
VALIDATIONS = 20
DEFINITION = {
    "straightforward": "preset paper (batch 32, 1,024 + 1,024 points, Adam 1e-4), inner.gradient=autograd, float32, freed memory given back",
    "ours": "preset cpu; `ours, a tenth` ends, schedule and all, after a tenth of the budget",
    "curve": "(seconds of training, validations included; validation MSE; steps), averaged weights where the preset averages",
    "reached": "seconds after which ours was first at or below the last error of the straightforward recipe, -1 if never",
}


def train(e: Experiment, data: Path, seconds: float, shapes: int) -> list[tuple[float, float, float]]:
    rows: list[tuple[float, float, float]] = []

    class Watch(Quiet):
        def validated(self, row: dict[str, float]) -> None:
            say(f"{row['elapsed'] / 60:6.1f} min  step {row['step']:7,.0f}  validation MSE {row['val_mse']:.3e}")
            rows.append((row["elapsed"], row["val_mse"], row["step"]))

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            e, Store.open(data), Path(folder), Limit(seconds, None), Watch(), torch.device("cpu"), pictures=False,
            validate_seconds=seconds / VALIDATIONS, checkpoint_seconds=1e9, validation_shapes=shapes,
        ).fit()  # fmt: skip
    return rows


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--experiment", "name", type=click.Choice(list(EXPERIMENTS)), default="mnist-dense", show_default=True)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="Budget of each of the two long trainings.")
@click.option("--validation", type=click.IntRange(1), default=50, show_default=True, help="Validation shapes.")
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Default: docs/images/time.png; none with --quick.")
@shared_options
def main(data: Path, name: str, minutes: float, validation: int, figure: Path | None, out: Path | None, quick: bool, threads: int) -> None:
    set_up(False, threads)
    plain = experiment(name, preset="paper")
    plain = replace(plain, inner=replace(plain.inner, gradient="autograd"))
    ours = experiment(name)
    if quick:
        minutes, validation = min(minutes, 0.1), 2
        plain, ours = (replace(e, n_context=32, n_query=32, n_test=32, field=replace(e.field, width=16), train=replace(e.train, batch=2))
                       for e in (plain, ours))  # fmt: skip
    seconds = 60 * minutes
    curves: dict[str, list[tuple[float, float, float]]] = {}
    sides = ("straightforward", plain, seconds, False), ("ours", ours, seconds, True), ("ours, a tenth", ours, seconds / 10, True)
    for label, e, budget, keep in sides:
        say(f"{label}: {budget / 60:.1f} min")
        curves[label] = fresh(train, e, data, budget, validation, keep=keep)
    goal = curves["straightforward"][-1][1]
    reached = next((t for t, error, _ in curves["ours"] if error <= goal), None)
    table(f"{name}: error against time", ("recipe", "minutes", "steps", "validation MSE x 1e-6"),
          [(label, f"{c[-1][0] / 60:.1f}", f"{c[-1][2]:,.0f}", f"{c[-1][1] * 1e6:.1f}") for label, c in curves.items()])  # fmt: skip
    print(f"error of the straightforward recipe reached by ours after: {'never' if reached is None else f'{reached / 60:.1f} min'}")
    if figure or not quick:
        draw(figure or FIGURE, curves)
    results: dict[str, Any] = {"curves": curves, "reached": -1.0 if reached is None else reached}
    write(out, "time_to_accuracy", {"experiment": name, "minutes": minutes, "validation": validation, "quick": quick}, results, DEFINITION)


def draw(path: Path, curves: dict[str, list[tuple[float, float, float]]]) -> None:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="training time in minutes", ylabel="validation MSE", yscale="log")
    for (label, curve), colour in zip(curves.items(), ("#8a8f98", "#1f6feb", "#d9480f"), strict=True):
        axes.plot([t / 60 for t, _, _ in curve], [error for _, error, _ in curve], "-o", ms=3, color=colour, label=label)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    say(f"written: {path}")


if __name__ == "__main__":
    main()
