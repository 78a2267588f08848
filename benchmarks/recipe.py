"""What a training recipe reaches at a given cost: the validation error after a fixed number of shapes, from scratch.

    python benchmarks/recipe.py NAME --data DATA [--shapes 4800] [--set train.batch=4 ...]

Writes results/recipes/NAME.json: the command, the settings that differ from preset `cpu`, validation errors, the loss on the way, CPU seconds,
the share of hidden units that ended dead. Every recipe sees equally many shapes (so that a step of 8 shapes counts half of one of 16), decays its
learning rates to the end, and is judged with its averaged weights on the same validation shapes.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from metasdf.checkpoint import plain
from metasdf.data.store import Store
from metasdf.experiments import EXPERIMENTS, experiment, override
from metasdf.fields import FieldSpec, Params, encode
from metasdf.memory import keep_freed_memory
from metasdf.prior import load
from metasdf.provenance import commit, hardware
from metasdf.train import Limit, Trainer

RECIPES = Path(__file__).resolve().parents[1] / "results" / "recipes"


class Losses:
    """Monitor that keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def step(self, row: dict[str, float]) -> None:
        self.losses.append(row["loss"])

    def validated(self, row: dict[str, float]) -> None:
        pass


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
@click.option("--shapes", default=4800, show_default=True, help="Shapes seen in training.")
@click.option("--init", type=str, help="Prior to begin from.")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="A field that differs from preset cpu.")
@click.option("--threads", default=1, show_default=True)
@click.option("--validation", default=200, show_default=True, help="Validation shapes.")
def main(name: str, data: Path, which: str, shapes: int, init: str | None, sets: tuple[str, ...], threads: int, validation: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(threads)
    e = experiment(which)
    for item in sets:
        e = override(e, *item.split("=", 1))
    watch = Losses()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            e, Store.open(data), Path(folder), Limit(None, shapes // e.train.batch), watch, torch.device("cpu"), init=load(init) if init else None,
            pictures=False, validate_seconds=1e9, checkpoint_seconds=1e9, validation_shapes=validation,
        )  # fmt: skip
        start = time.process_time()
        row = trainer.fit()
        seconds = time.process_time() - start
    tenth = max(1, len(watch.losses) // 10)
    result = {
        "recipe": name, "command": "python benchmarks/recipe.py " + shlex.join(sys.argv[1:]), "experiment": which, "settings": list(sets),
        "init": init, "shapes": shapes, "steps": trainer.step, "seed": e.train.seed,
        "val_mse": row["val_mse"], "val_mae": row["val_mae"], "val_n": row["val_n"],
        "cpu_seconds": round(seconds, 1), "dead_units": dead_units(trainer.model.theta, e.field) if e.field.activation == "relu" else None,
        "loss_by_tenths": [sum(watch.losses[i : i + tenth]) / tenth for i in range(0, tenth * 10, tenth)],
        "commit": commit(), "hardware": hardware(torch.device("cpu")),
    }  # fmt: skip
    RECIPES.mkdir(parents=True, exist_ok=True)
    (RECIPES / f"{name}.json").write_text(json.dumps(plain(result), indent=1) + "\n")
    print(f"{name}: validation MSE {row['val_mse']:.3e}, MAE {row['val_mae']:.3e}, n {row['val_n']:.0f}; {seconds:.0f} CPU s")


if __name__ == "__main__":
    main()
