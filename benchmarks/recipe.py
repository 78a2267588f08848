"""What a training recipe reaches at a given cost: the validation error after a fixed number of shapes, from scratch.

    python benchmarks/recipe.py NAME --data DATA [--shapes 4800] [--set train.batch=4 ...]

NAME may have a folder in front, as in second/batch-2. Writes results/recipes/NAME.json: the command, the settings that differ from preset `cpu`,
validation errors, the loss on the way, CPU seconds, the share of hidden units that ended dead. Every recipe decays its learning rates to the end of
its shapes (a step of 8 shapes counts half of one of 16), and is judged with its averaged weights on the same validation shapes.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import torch
from common import SIZE, say, set_up, shared_options, write

from metasdf.conditioning.metasdf import MetaSDF
from metasdf.data.store import Store
from metasdf.experiments import EXPERIMENTS, experiment, override
from metasdf.fields import FieldSpec, Params, encode
from metasdf.prior import load
from metasdf.train import Limit, Quiet, Trainer

RECIPES = Path(__file__).resolve().parents[1] / "results" / "recipes"
DEFINITION = {
    "val_mse": "mean over shapes of the mean over grid points of (sdf - truth)^2, validation split, field units; val_mae likewise of |sdf - truth|",
    "dead_units": "share of each hidden layer's units of theta that are off everywhere in the cube of side 1; null where units are no ReLUs",
    "loss_by_tenths": "training loss, means over each tenth of the steps",
    "cpu_seconds": "processor time of the training and the one validation at its end",
}


class Losses(Quiet):
    """Monitor that keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def say(self, text: str) -> None:
        say(text)

    def step(self, row: dict[str, float]) -> None:
        self.losses.append(row["loss"])


@torch.no_grad()
def dead_units(theta: Params, spec: FieldSpec) -> list[float]:
    """Share of each hidden layer's units that are off everywhere in the cube of side 1."""
    h = encode(torch.rand(4096, spec.in_dim, generator=torch.Generator().manual_seed(0)) - 0.5, spec)
    shares = []
    for layer in theta[:-1]:
        h = (h @ layer.weight.mT + layer.bias).relu()
        shares.append(float((~(h > 0).any(0)).double().mean()))
    return shares


@click.command()
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--experiment", "which", type=click.Choice(list(EXPERIMENTS)), default="mnist-dense", show_default=True)
@click.option("--shapes", type=SIZE, default=4800, show_default=True, help="Shapes seen in training.")
@click.option("--init", help="Prior to begin from.")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="A field that differs from preset cpu.")
@click.option("--validation", type=SIZE, default=200, show_default=True, help="Validation shapes.")
@shared_options
def main(
    name: str, data: Path, which: str, shapes: int, init: str | None, sets: tuple[str, ...], validation: int,
    out: Path | None, quick: bool, threads: int,
) -> None:  # fmt: skip
    set_up(True, threads)
    e = experiment(which)
    for item in sets:
        e = override(e, *item.split("=", 1))
    if quick:
        e, shapes, validation = replace(e, n_context=32, n_query=32, n_test=32, field=replace(e.field, width=16)), 20, 2
    watch = Losses()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            e, Store.open(data), Path(folder), Limit(None, max(1, shapes // e.train.batch)), watch, torch.device("cpu"),
            init=load(init) if init else None, pictures=False, validate_seconds=1e9, checkpoint_seconds=1e9, validation_shapes=validation,
        )  # fmt: skip
        start = time.process_time()
        row = trainer.fit()
        if trainer.stop_signal is not None:
            raise SystemExit("stopped before the end; nothing is written")
        seconds = time.process_time() - start
    tenth = max(1, len(watch.losses) // 10)
    parts = [watch.losses[i : i + tenth] for i in range(0, len(watch.losses), tenth)][:10]
    theta = trainer.model.theta if isinstance(trainer.model, MetaSDF) and e.field.activation == "relu" else None
    typed = shlex.join("DATA" if argument == str(data) else argument for argument in sys.argv[1:])
    results = {
        "recipe": name, "command": f"python benchmarks/recipe.py {typed}", "steps": trainer.step, "seed": e.train.seed,
        "val_mse": row["val_mse"], "val_mae": row["val_mae"], "val_n": int(row["val_n"]), "cpu_seconds": round(seconds, 1),
        "dead_units": None if theta is None else dead_units(theta, e.field),
        "loss_by_tenths": [sum(part) / len(part) for part in parts],
    }  # fmt: skip
    settings = {"experiment": which, "set": list(sets), "init": init or "fresh", "shapes": shapes, "validation": validation, "quick": quick}
    write(out or RECIPES / f"{name}.json", "recipe", settings, results, DEFINITION)
    click.echo(f"{name}: validation MSE {row['val_mse']:.3e}, MAE {row['val_mae']:.3e}, n {row['val_n']:.0f}; {seconds:.0f} CPU s")


if __name__ == "__main__":
    main()
