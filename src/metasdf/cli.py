"""The command line. Each command imports what it needs when it runs, so that help and completion answer at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from metasdf.errors import MetaSDFError, UsageError


class Commands(click.Group):
    """Prints our errors as text with the right exit code, never as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MetaSDFError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            import difflib

            near = difflib.get_close_matches(cmd_name, self.list_commands(ctx), n=1)
            if near:
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {near[0]!r}?")
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="metasdf")
def cli() -> None:
    """Signed distance functions from samples, surface points or images, in five gradient steps (MetaSDF, NeurIPS 2020)."""


def _start(threads: int | None = None) -> None:
    """What every command that computes does first."""
    from metasdf.memory import keep_freed_memory

    keep_freed_memory()
    if threads:
        import torch

        torch.set_num_threads(threads)


device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one.")
path_type = click.Path(path_type=Path)


def _experiment_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from metasdf.experiments import EXPERIMENTS

    return [name for name in EXPERIMENTS if name.startswith(incomplete)]


def _prior_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    here = Path(__file__).parent / "priors"
    return [CompletionItem(p.stem) for p in sorted(here.glob("*.safetensors")) if p.stem.startswith(incomplete)] + [CompletionItem(incomplete, type="file")]


def parse_budget(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Seconds from 90s, 5m, 1.5h, or minutes from a bare number."""
    if text is None:
        return None
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:].lower())
    try:
        seconds = float(text[:-1]) * unit if unit else float(text) * 60.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{text!r} is no duration; write 90s, 5m or 1.5h")
    return seconds


@cli.command()
@click.argument("experiment", shell_complete=_experiment_names)
@click.option("--data", type=path_type, help="Data set made by metasdf prepare.")
@click.option("--run", "run", type=path_type, help="Run folder: checkpoint, prior, metrics.jsonl, pictures. An existing one is resumed.")
@click.option("--preset", type=click.Choice(["cpu", "paper"]), default="cpu", show_default=True,
              help="paper: the supplement to the letter; cpu: same network and data, fitted to a wall-clock budget.")  # fmt: skip
@click.option("--budget", callback=parse_budget, metavar="TIME", help="Stop after this much training time (90s, 90m, 2h); the schedule ends there.")
@click.option("--epochs", type=click.IntRange(1), help="Train this many epochs instead (default of the paper: 50).")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Override any field of the configuration, e.g. --set train.lr=3e-4.")
@click.option("--init", type=str, metavar="PRIOR", help="Start from the weights of a prior (name, file or run folder).")
@click.option("--show", is_flag=True, help="Print the resolved configuration and stop.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events into RUN/tensorboard (extra: metasdf[tensorboard]).")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Draw validation shapes over the inner steps.")
@click.option("--validate-every", callback=parse_budget, default="2m", show_default=True, metavar="TIME")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@device_option
def train(
    experiment: str, data: Path | None, run: Path | None, preset: str, budget: float | None, epochs: int | None, overrides: tuple[str, ...],
    init: str | None, show: bool, tensorboard: bool, pictures: bool, validate_every: float, threads: int | None, device: str,
) -> None:  # fmt: skip
    """Train a prior. Typed again, the same command resumes.

    \b
    metasdf train mnist-dense --data D --run R --budget 90m
    metasdf train mnist-levelset --data D --run R --preset paper
    """
    from metasdf import experiments

    config = experiments.experiment(experiment, preset=preset)
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text} has no value", fix="write --set FIELD=VALUE, for example --set train.lr=3e-4")
        config = experiments.override(config, path.strip(), value.strip())
    if epochs is not None:
        if budget is not None:
            raise UsageError("--budget and --epochs both say when to stop", fix="give one of them")
        config = experiments.override(config, "train.epochs", str(epochs))
    if show:
        click.echo(json.dumps(experiments.to_dict(config), indent=2))
        return
    if data is None or run is None:
        raise UsageError("--data and --run are needed", fix="metasdf prepare mnist -o DATA; metasdf train " + experiment + " --data DATA --run RUN")

    _start(threads)
    from metasdf.data.store import Store
    from metasdf.devices import pick_device
    from metasdf.prior import load
    from metasdf.progress import TrainingMonitor, commit
    from metasdf.train import Limit, Trainer

    store = Store.open(data)
    steps = None if budget else config.train.epochs * (len(store.split("train")) // min(config.train.batch, len(store.split("train"))))
    with TrainingMonitor(run / "tensorboard" if tensorboard else None) as monitor:
        trainer = Trainer(
            config, store, run, Limit(budget, steps), monitor, device=pick_device(device), init=load(init) if init else None, commit=commit(),
            validate_seconds=validate_every, pictures=pictures,
        )  # fmt: skip
        row = trainer.fit()
    if trainer.stop_signal is not None:
        click.echo(f"stopped by a signal at step {trainer.step:,}; everything is saved. The same command goes on from here.")
        sys.exit(128 + trainer.stop_signal)
    click.echo(f"done: {trainer.step:,} steps in {trainer.elapsed / 60:.1f} min, validation MSE {row['val_mse']:.3g}, MAE {row['val_mae']:.3g} "
               f"(field units, {row['val_n']} shapes)\nprior: {run / 'prior.safetensors'}\n"
               f"next: metasdf evaluate {run} --data {data}   or a longer --budget / --epochs with the same command to go on")  # fmt: skip


def main() -> None:
    """Entry point of the `metasdf` command."""
    cli(prog_name="metasdf")
