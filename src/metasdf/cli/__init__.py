"""The command line. Each command imports what it needs when it runs, so that help and completion answer at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from metasdf.cli.data import datasets, prepare
from metasdf.cli.options import device_option, parse_budget, parse_faces, path_type, refine_option, scan_options, start
from metasdf.cli.reproduce import reproduce
from metasdf.errors import MetaSDFError, UsageError


class Commands(click.Group):
    """Prints our errors as text with the right exit code, never as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MetaSDFError as error:
            speaker = f" (process {os.environ.get('RANK', '?')})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
            click.echo(f"error{speaker}: {error}", err=True)
            ctx.exit(error.exit_code)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            import difflib

            near = difflib.get_close_matches(cmd_name, self.list_commands(ctx), n=1)
            if near and not ctx.resilient_parsing:  # completion must stay silent
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {near[0]!r}?")
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="metasdf")
def cli() -> None:
    """Signed distance functions from samples, surface points or images, in five gradient steps (MetaSDF, NeurIPS 2020)."""


def _experiment_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from metasdf.experiments import EXPERIMENTS

    return [name for name in EXPERIMENTS if name.startswith(incomplete)]


def _prior_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    here = Path(__file__).parents[1] / "priors"
    names = [CompletionItem(p.stem) for p in sorted(here.glob("*.safetensors")) if p.stem.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


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
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each process (default: all cores, shared).")
@device_option
def train(
    experiment: str, data: Path | None, run: Path | None, preset: str, budget: float | None, epochs: int | None, overrides: tuple[str, ...],
    init: str | None, show: bool, tensorboard: bool, pictures: bool, validate_every: float, threads: int | None, device: str,
) -> None:  # fmt: skip
    """Train a prior. Typed again, the same command resumes.

    \b
    metasdf train mnist-dense --data D --run R --budget 90m
    metasdf train mnist-levelset --data D --run R --preset paper
    torchrun --nproc-per-node 2 -m metasdf -- train mnist-dense --data D --run R
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
        source = "mnist" if config.field.in_dim == 2 else f"procedural-{config.category or 'tables'}"
        raise UsageError("--data and --run are needed", fix=f"metasdf prepare {source} -o DATA; metasdf train {experiment} --data DATA --run RUN")

    start(threads)
    from contextlib import nullcontext

    from metasdf.data.store import Store
    from metasdf.devices import pick_device
    from metasdf.distributed import own_device, processes
    from metasdf.prior import load
    from metasdf.progress import TrainingMonitor
    from metasdf.provenance import commit
    from metasdf.train import Limit, Quiet, Trainer

    store = Store.open(data)
    where = pick_device(own_device(device))
    with processes(where, threads=threads) as group:
        with TrainingMonitor(run / "tensorboard" if tensorboard else None) if group.main else nullcontext(Quiet()) as monitor:
            trainer = Trainer(
                config, store, run, Limit.of(config, store, budget), monitor, device=where, init=load(init) if init else None, commit=commit(),
                validate_seconds=validate_every, pictures=pictures, group=group,
                may_checkpoint=not any(text.partition("=")[0].strip() == "inner.checkpoint" for text in overrides),
            )  # fmt: skip
            row = trainer.fit()
        if group.main:
            click.echo(_ending(trainer, row, data))
    if trainer.stop_signal is not None:
        sys.exit(128 + trainer.stop_signal)


def _ending(trainer: Any, row: dict[str, float], data: Path) -> str:
    if trainer.stop_signal is not None:
        return f"stopped by a signal at step {trainer.step:,}; everything is saved. The same command goes on from here."
    return (f"done: {trainer.step:,} steps in {trainer.elapsed / 60:.1f} min, validation MSE {row['val_mse']:.3g}, MAE {row['val_mae']:.3g} "
            f"(field units, {row['val_n']} shapes)\nprior: {trainer.run / 'prior.safetensors'}\n"
            f"next: metasdf evaluate {trainer.run} --data {data}   or a longer --budget / --epochs with the same command to go on")  # fmt: skip


@cli.command()
@click.argument("prior", shell_complete=_prior_names)
@click.option("--data", type=path_type, required=True, help="Data set made by metasdf prepare.")
@click.option("--split", default="test", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Evaluation runs, each with its own context points (paper: 3).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="At most so many shapes, spread evenly over the split.")
@click.option("--steps", type=click.IntRange(1), help="Inner steps; beyond the trained ones the rates of the last one repeat.")
@refine_option
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--category", help="3D: of the shapes, where it is not the one the prior was trained on.")
@click.option("--surfaces", is_flag=True, help="3D: extract every shape as a mesh and measure chamfer distance, IoU, F-score and normals.")
@click.option("--resolution", type=click.IntRange(8, 1024), help="With --surfaces: grid points along a side (default: 128).")
@click.option("--best-of", type=click.IntRange(1), help="With --surfaces: reconstructions of each shape, of which the best counts (paper: 2).")
@click.option("--json", "target", type=path_type, help="Also write the result to this file.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@device_option
def evaluate(
    prior: str, data: Path, split: str, runs: int, seed: int, limit: int | None, steps: int | None, refine: int, batch: int,
    category: str | None, surfaces: bool, resolution: int | None, best_of: int | None, target: Path | None, threads: int | None, device: str,
) -> None:  # fmt: skip
    """Measure PRIOR (a name, file or run folder) on every shape of a split: MSE, MAE, misclassified sign, time; or its --surfaces."""
    start(threads)
    from metasdf import evaluate as evaluation
    from metasdf.checkpoint import write_json
    from metasdf.data.store import Store
    from metasdf.devices import pick_device
    from metasdf.prior import load

    loaded = load(prior)
    if target is not None and target.is_dir():
        raise UsageError("--json names a folder", where=target, fix="give the name of a file")
    _say_extra_steps(loaded, steps)
    store, where = Store.open(data), pick_device(device)
    if surfaces:
        from metasdf.surfaces import evaluate_surfaces

        if runs > 1:
            raise UsageError("--runs is for errors of fields, not for --surfaces", fix="--best-of N reconstructs every shape N times")
        result = evaluate_surfaces(loaded, store, split=split, category=category, limit=limit, resolution=resolution or 128, best_of=best_of or 1,
                                   seed=seed, steps=steps, refine=refine, device=where)  # fmt: skip
        _say_surfaces(result)
    else:
        if resolution or best_of:
            raise UsageError("--resolution and --best-of are for --surfaces", fix="add --surfaces, or leave them out")
        result = evaluation.evaluate(loaded, store, split=split, runs=runs, seed=seed, limit=limit, batch=batch, steps=steps, refine=refine,
                                     category=category, device=where)  # fmt: skip
        _say_errors(result)
    if target is not None:
        write_json(target, result)
        click.echo(f"written: {target}")


def _say_errors(result: dict[str, Any]) -> None:
    split, runs = result["split"], result["runs"]
    context = result["context"]
    click.echo(f"{result['prior']} on {result['data']['source']}, split {split}: {context['rule']} context of {context['points']} points, "
               f"n {result['n']:,}, failed {result['failed']:,}, {runs} run{'s' if runs > 1 else ''}{_said_refine(result)} (field units)")
    stepwise, found = result["after_step"], result["metrics"]
    click.echo(f"{'step' if stepwise else '':4s}          MSE          MAE  wrong sign %")
    for step, row in enumerate(zip(*(stepwise[name] for name in ("mse", "mae", "misclassified")), strict=True) if stepwise else ()):
        click.echo(f"{step:4d} {row[0]:12.4g} {row[1]:12.4g} {row[2]:13.3f}")
    if stepwise is None or stepwise["n"] < result["n"] or runs > 1:
        if stepwise:
            click.echo(f"     (steps: the first {stepwise['n']:,} shapes, first run; all shapes and runs, last step:)")
        for name, end in (("mean", ""), ("std", "_std"))[: 2 if runs > 1 else 1]:
            mse, mae, sign = (found[key + end] for key in ("mse", "mae", "misclassified"))
            click.echo(f"{name:4s} {mse:12.4g} {mae:12.4g} {sign:13.3f}" + ("   over runs" if end else ""))
    times = result["fit_ms"]
    click.echo(f"fit: {times['alone']:.1f} ms alone, {times['batched']:.1f} ms per shape in batches of {times['batch']}")


def _say_surfaces(result: dict[str, Any]) -> None:
    best = f", the better of {result['best_of']} by chamfer" if result["best_of"] > 1 else ""
    click.echo(f"{result['prior']} on {result['data']['source']}, split {result['split']}, {result['category'] or 'all'}: "
               f"{result['context']['rule']} context of {result['context']['points']:,} points, "
               f"n {result['n']:,}, failed {result['failed']:,}{_said_refine(result)}{best}")  # fmt: skip
    click.echo("                            mean       median          std    n")
    for name, row in result["metrics"].items():
        if row is not None:
            click.echo(f"{name:20s} {row['mean']:12.5g} {row['median']:12.5g} {row['std']:12.5g} {row['n']:4d}")
    for failure in result["failures"]:
        click.echo(f"failed: {failure['name']}: {failure['reason']}")
    if result["fit_ms"] is not None:
        click.echo(f"fit {result['fit_ms']:.0f} ms, mesh {result['mesh_ms']:.0f} ms at {result['resolution']} points a side (medians)")


def _said_refine(result: dict[str, Any]) -> str:
    return f", refined by {result['refine']} steps of Adam" if result["refine"] else ""


def _say_extra_steps(prior: Any, steps: int | None) -> None:
    inner = prior.experiment.inner
    if prior.experiment.method.kind == "metasdf" and steps is not None and steps > inner.steps and inner.rates in ("step", "parameter_step"):
        click.echo(f"note: {prior.name} was trained with {inner.steps} steps; "
                   f"steps {inner.steps + 1} to {steps} repeat the rates of step {inner.steps}", err=True)  # fmt: skip


@cli.command()
@click.argument("inputs", nargs=-1, required=True, type=path_type)
@click.option("-m", "--prior", required=True, shell_complete=_prior_names, help="Prior: a shipped name, a file or a run folder.")
@click.option("-o", "--out", type=path_type, required=True, help="Folder for the results; 3D, one scan: or a mesh file, .ply .obj .glb .stl .off.")
@click.option("--resolution", type=click.IntRange(8, 4096), default=128, show_default=True, help="Grid points along a side of the SDF or mesh.")
@click.option("--steps", type=click.IntRange(1), help="Inner steps; beyond the trained ones the rates of the last one repeat.")
@refine_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice among many observations.")
@click.option("--foreground", type=click.Choice(["auto", "bright", "dark"]), default="auto", show_default=True, help="The side that is the shape.")
@click.option("--y-up", is_flag=True, help="2D: the y axis of points and samples points up (images and SVG: down).")
@scan_options
@click.option("--simplify", "faces", callback=parse_faces, metavar="N|PERCENT", help="3D: fewer faces, such as 5000 or 10%; what it costs is said.")
@device_option
def reconstruct(
    inputs: tuple[Path, ...], prior: str, out: Path, resolution: int, steps: int | None, refine: int, seed: int, foreground: Any, y_up: bool,
    up: Any, turns: int, columns: str | None, outliers: Any, faces: float | None, device: str,
) -> None:  # fmt: skip
    """Turn observations of shapes into SDFs and meshes.

    \b
    2D: an image, SDF samples (x, y, s) or bare points, as .png .npy .csv. Writes the SDF grid (.npz), a picture (.png), the contour (.svg)
        and a summary (.json) for each.
    3D: a scan: points with or without normals, SDF samples or a mesh, as .ply .xyz .pts .csv .npy .npz .obj .stl .glb and so on. Writes a
        mesh and a summary (.json) for each. Priors called -oriented use the normals, -levelset do without, -dense take samples or a mesh.

    All in the input's own units, and in 3D in its own pose.

    \b
    metasdf reconstruct scan.ply -m tables-levelset -o table.glb --up z
    """
    start()
    from metasdf.devices import pick_device
    from metasdf.prior import load
    from metasdf.reconstruct import reconstruct_many

    loaded = load(prior).to(pick_device(device))
    _say_extra_steps(loaded, steps)
    loaded.check_refine(refine)
    if loaded.dim == 3:
        from metasdf.solid import reconstruct_scans

        if y_up or foreground != "auto":
            raise UsageError(f"--y-up and --foreground are for 2D priors, {loaded.name} is 3D", fix="say which axis points up with --up")
        if reconstruct_scans(inputs, loaded, out, resolution=resolution, steps=steps, refine=refine, seed=seed, up=up, turns=turns, columns=columns,
                             outliers=outliers, faces=faces, say=click.echo):  # fmt: skip
            sys.exit(1)
        return
    if (up, turns, columns, outliers, faces) != ("y", 1, None, "keep", None):
        raise UsageError(f"--up, --align, --columns, --outliers and --simplify are for 3D priors, {loaded.name} is 2D", fix="leave them out")
    if reconstruct_many(inputs, loaded, out, resolution=resolution, steps=steps, refine=refine, seed=seed, y_up=y_up, foreground=foreground,
                        say=click.echo):  # fmt: skip
        sys.exit(1)


@cli.command()
@click.argument("scan", type=path_type)
@click.option("-m", "--prior", required=True, shell_complete=_prior_names, help="Prior of 3D shapes: a shipped name, a file or a run folder.")
@click.option("--resolution", type=click.IntRange(8, 1024), default=64, show_default=True, help="Grid points along a side of each mesh.")
@click.option("--steps", type=click.IntRange(1), help="Inner steps; beyond the trained ones the rates of the last one repeat.")
@refine_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice among many observations.")
@scan_options
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Of this machine; the next free one where it is taken.")
@device_option
def view(
    scan: Path, prior: str, resolution: int, steps: int | None, refine: int, seed: int, up: Any, turns: int, columns: str | None, outliers: Any,
    port: int, device: str,
) -> None:  # fmt: skip
    """Show a scan and its reconstruction after each inner step in the browser, until Ctrl-C (extra: metasdf[view]).

    \b
    metasdf view scan.ply -m tables-levelset --up z --align 4
    """
    start()
    from metasdf.devices import pick_device
    from metasdf.prior import load
    from metasdf.viewer import view as show

    loaded = load(prior).to(pick_device(device))
    _say_extra_steps(loaded, steps)
    if loaded.dim != 3:
        raise UsageError(f"3D scans are shown, {loaded.name} is a prior of 2D shapes", fix="metasdf reconstruct draws those; or use a 3D prior")
    show(scan, loaded, resolution=resolution, port=port, say=click.echo, steps=steps, refine=refine, seed=seed, up=up, turns=turns,
         columns=columns, outliers=outliers)  # fmt: skip


@cli.command()
@click.option("-o", "--out", type=path_type, default=Path("demo-out"), show_default=True, help="Folder for the page and its pictures.")
def demo(out: Path) -> None:
    """Fit digits that the shipped priors never saw, and write a page to look at."""
    start()
    from metasdf.demo import run

    run(out, say=click.echo)


@cli.command()
@click.argument("name", required=False, shell_complete=_prior_names)
def models(name: str | None) -> None:
    """List the shipped priors, or show the card of one (a name, file or run folder)."""
    from metasdf.experiments import to_dict
    from metasdf.prior import load, shipped

    if name is not None:
        prior = load(name)
        click.echo(json.dumps({"name": prior.name, "experiment": to_dict(prior.experiment), "card": prior.card}, indent=2))
        return
    names = shipped()
    for each in names:
        prior = load(each)
        found = prior.card.get("metrics", {})
        tested = f"test IoU {found['iou']['mean']:.2f}" if "iou" in found else f"test MSE {found.get('mse', float('nan')):.3g}"
        click.echo(f"{each:{max(map(len, names))}s}  {prior.dim}D, {prior.experiment.context} context, "
                   f"{sum(p.numel() for p in prior.parameters()):,} numbers, {tested}")  # fmt: skip


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: metasdf completion bash >> ~/.bashrc"""
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    assert maker is not None
    click.echo(maker(cli, {}, "metasdf", "_METASDF_COMPLETE").source())


cli.add_command(prepare)
cli.add_command(datasets)
cli.add_command(reproduce)


def main() -> None:
    """Entry point of the `metasdf` command."""
    cli(prog_name="metasdf")
