"""The command line. Each command imports what it needs when it runs, so that help and completion answer at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from metasdf.errors import InputError, MetaSDFError, UsageError


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


def _start(threads: int | None = None) -> None:
    """What every command that computes does first."""
    import torch

    from metasdf.memory import keep_freed_memory

    torch.set_flush_denormal(True)  # moments of units that stay off decay to denormal numbers, which processors compute many times slower
    click.get_current_context().call_on_close(lambda: torch.set_flush_denormal(False))  # the process may not be ours alone
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)


device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one.")
path_type = click.Path(path_type=Path)


def _experiment_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from metasdf.experiments import EXPERIMENTS

    return [name for name in EXPERIMENTS if name.startswith(incomplete)]


def _prior_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    here = Path(__file__).parent / "priors"
    names = [CompletionItem(p.stem) for p in sorted(here.glob("*.safetensors")) if p.stem.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


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
        raise UsageError("--data and --run are needed", fix="metasdf prepare mnist -o DATA; metasdf train " + experiment + " --data DATA --run RUN")

    _start(threads)
    from contextlib import nullcontext

    from metasdf.data.store import Store
    from metasdf.devices import pick_device
    from metasdf.distributed import own_device, processes
    from metasdf.prior import load
    from metasdf.progress import TrainingMonitor
    from metasdf.provenance import commit
    from metasdf.train import Limit, Quiet, Trainer

    store = Store.open(data)
    shapes = len(store.split("train"))
    steps = None if budget else config.train.epochs * (shapes // max(1, min(config.train.batch, shapes)))
    where = pick_device(own_device(device))
    with processes(where, threads=threads) as group:
        with TrainingMonitor(run / "tensorboard" if tensorboard else None) if group.main else nullcontext(Quiet()) as monitor:
            trainer = Trainer(
                config, store, run, Limit(budget, steps), monitor, device=where, init=load(init) if init else None, commit=commit(),
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


OF_IMAGES = ("resolution", "foreground", "origin", "allow_unofficial")
OF_MESHES = ("samples", "surface_points", "views", "sign", "hollows", "thickness", "split", "split_file", "time_limit", "memory", "shard", "engine",
             "count")  # fmt: skip


@cli.command()
@click.argument("source")
@click.argument("parts", nargs=-1, type=path_type)
@click.option("-o", "--out", type=path_type, required=True, help="The data set to write: a folder.")
@click.option("--workers", type=click.IntRange(1), help="Processes (default: one for each core).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split and the samples.")
@click.option("--limit", type=click.IntRange(1), help="Only the first images or shapes, to try things out.")
@click.option("--force", is_flag=True, help="Replace a data set that was prepared differently; shapes that would be the same are taken over.")
@click.option("--split", metavar="A/B/C", default="80/10/10", show_default=True, help="Shares of train, val and test in each category.")
@click.option("--split-file", multiple=True, metavar="[SPLIT=]FILE", help="Splits as DeepSDF's JSON files have them, one for each split.")
@click.option("--samples", type=click.IntRange(1), default=500_000, show_default=True, help="Meshes: signed distances of each shape.")
@click.option("--surface-points", type=click.IntRange(1), default=100_000, show_default=True, help="Meshes: points with normals of each.")
@click.option("--views", type=click.IntRange(0), default=8, show_default=True, help="Meshes: depth views of each.")
@click.option("--sign", multiple=True, metavar="[NAME=]METHOD", help="Meshes: auto, winding or visibility, for all or for one shape.")
@click.option("--hollows", type=click.Choice(["fill", "keep"]), default="fill", show_default=True, help="Meshes: what is enclosed and unseen.")
@click.option("--thickness", type=click.FloatRange(0), default=0.0, show_default=True, help="Meshes: of sheets, on each side; the shape has size 2.")
@click.option("--time-limit", callback=parse_budget, default="10m", show_default=True, metavar="TIME", help="Meshes: for one shape.")
@click.option("--memory", type=click.FloatRange(0.1), default=8.0, show_default=True, metavar="GIB", help="Meshes: for one worker.")
@click.option("--shard", metavar="I/N", help="Meshes: only part I of N, for job arrays; then: metasdf prepare merge PARTS... -o DATA")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Meshes: ray sends shapes to a cluster.")
@click.option("--count", type=click.IntRange(1), help="Procedural shapes: how many (default: 100).")
@click.option("--resolution", type=click.IntRange(4, 4096), default=64, show_default=True, help="Images: grid points along a side.")
@click.option("--foreground", type=click.Choice(["auto", "bright", "dark"]), default="auto", show_default=True, help="Images: the shape's side.")
@click.option("--from", "origin", type=path_type, help="MNIST: where its files are: a folder, .zip or .tar. Without it they are downloaded.")
@click.option("--allow-unofficial", is_flag=True, help="MNIST: take other IDX files (Fashion-MNIST): no md5 check.")
@click.pass_context
def prepare(ctx: click.Context, source: str, parts: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Turn SOURCE into a data set of signed distance functions. Typed again, the same command goes on where it was interrupted.

    SOURCE is a folder, file or zip of meshes (obj, ply, stl, off, glb, gltf, 3mf, dae, ac; ShapeNet's layout), samples in DeepSDF's layout,
    procedural-tables, -chairs, -benches or -planes, a folder of silhouettes (PNG, JPEG, BMP), mnist, or mnist-slice (the 100 digits that come
    with the package).

    \b
    metasdf prepare meshes/ -o DATA
    metasdf prepare procedural-chairs --count 500 -o DATA
    metasdf prepare meshes/ -o PART1 --shard 1/2; metasdf prepare merge PART1 PART2 -o DATA
    metasdf prepare mnist --from FOLDER_OR_ARCHIVE -o DATA
    """
    if source == "merge":
        others = [name for name in ctx.params if name not in ("source", "parts", "out", "force")
                  and ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]  # fmt: skip
        if others or not parts:
            raise UsageError("merge takes parts and nothing else" if parts else "There are no parts to merge",
                             fix="metasdf prepare merge PART1 PART2 ... -o DATA")  # fmt: skip
        from metasdf.data.meshes import merge

        _say_prepared(merge(parts, out, force=options["force"]), out, dropped_said=False)
        return
    images = source in ("mnist", "mnist-slice") or _holds_images_only(Path(source))
    given = [name for name in (OF_MESHES if images else OF_IMAGES) if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    if images and "split" in given and source not in ("mnist", "mnist-slice"):
        given.remove("split")
    if given:
        raise UsageError(f"--{'from' if given[0] == 'origin' else given[0].replace('_', '-')} does not go with {source}",
                         cause=f"it is for {'meshes' if images else 'images'}", fix="leave it out, or check the source")  # fmt: skip
    if parts:
        raise UsageError("There is more than one source", where=parts[0],
                         fix="put the meshes into one folder; parts of a data set: metasdf prepare merge PARTS... -o DATA")  # fmt: skip
    store = _prepare_images(source, out, options) if images else _prepare_meshes(source, out, options)
    _say_prepared(store, out, dropped_said=not images)


def _holds_images_only(path: Path) -> bool:
    """Images beside meshes are textures. Raises InputError for a folder that holds neither."""
    from metasdf.data.deepsdf import is_deepsdf
    from metasdf.data.sources import ZIP_SUFFIXES
    from metasdf.geometry.image import IMAGE_SUFFIXES
    from metasdf.geometry.io import MESH_SUFFIXES

    if str(path).startswith("procedural-"):
        return False
    suffixes = {each.suffix.lower() for each in path.rglob("*")} if path.is_dir() else set()
    meshes = bool(suffixes & {*MESH_SUFFIXES, *ZIP_SUFFIXES}) or is_deepsdf(path)
    if path.is_dir() and not meshes and not suffixes & set(IMAGE_SUFFIXES):
        raise InputError("The folder holds neither meshes nor images", where=path, cause="another folder, or files of other kinds",
                         fix=f"meshes end in {', '.join((*MESH_SUFFIXES, *ZIP_SUFFIXES))}; images in {', '.join(IMAGE_SUFFIXES)}")  # fmt: skip
    return not meshes and bool(suffixes)


def _prepare_images(source: str, out: Path, o: dict[str, Any]) -> Any:
    from metasdf.data import prepare as preparing

    if o["origin"] is not None and source != "mnist":
        raise UsageError("--from says where the MNIST files are, it goes with the source mnist",
                         fix=f"metasdf prepare mnist --from {o['origin']} -o {out}")  # fmt: skip
    if source == "mnist":
        return preparing.prepare_mnist(o["origin"], out, resolution=o["resolution"], workers=o["workers"], seed=o["seed"], force=o["force"],
                                       limit=o["limit"], allow_unofficial=o["allow_unofficial"])  # fmt: skip
    if source == "mnist-slice":
        return preparing.prepare_slice(out, resolution=o["resolution"], force=o["force"])
    return preparing.prepare_images(source, out, resolution=o["resolution"], workers=o["workers"], seed=o["seed"], foreground=o["foreground"],
                                    split=parse_shares(o["split"]), force=o["force"], limit=o["limit"])  # fmt: skip


def _prepare_meshes(source: str, out: Path, o: dict[str, Any]) -> Any:
    import signal
    import threading

    if not Path(source).exists() and not source.startswith("procedural-"):
        raise UsageError(f"there is no source {source!r}", cause="a misspelt name, or a path that does not exist",
                         fix="a folder, file or zip of meshes, a folder of silhouettes, procedural-tables, mnist, mnist-slice")  # fmt: skip

    from metasdf.data.isolation import GIB, Limits
    from metasdf.data.meshes import Interrupted, prepare_meshes
    from metasdf.data.shape import Sampling
    from metasdf.data.splits import SplitFiles

    signs = dict(text.rpartition("=")[::2] for text in o["sign"])
    for method in signs.values():
        if method not in ("auto", "winding", "visibility"):
            raise UsageError(f"There is no sign method {method!r}", fix="--sign auto, winding or visibility; for one shape --sign NAME=METHOD")
    sampling = Sampling(o["samples"], o["surface_points"], o["views"], sign=signs.pop("", "auto"), hollows=o["hollows"], thickness=o["thickness"],
                        seed=o["seed"])  # fmt: skip
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a batch system sends: ends the workers too
    try:
        return prepare_meshes(
            source, out, sampling=sampling, signs=signs, split=parse_shares(o["split"]),
            split_files=SplitFiles.read(o["split_file"]) if o["split_file"] else None, workers=o["workers"],
            limits=Limits(o["time_limit"], int(o["memory"] * GIB)), engine=o["engine"], shard=parse_shard(o["shard"]), limit=o["limit"],
            count=o["count"], force=o["force"], say=lambda text: click.echo(text, err=True),
        )  # fmt: skip
    except Interrupted as stop:
        click.echo(str(stop), err=True)
        sys.exit(130)


def _say_prepared(store: Any, out: Path, *, dropped_said: bool) -> None:
    dropped = store.meta.get("dropped", [])
    for entry in dropped if not dropped_said else []:
        click.echo(f"dropped {entry['name']}: {entry['reason']}", err=True)
    found = store.meta.get("found", len(store))
    click.echo(f"{out}: {found:,} found = {len(store):,} kept + {len(dropped):,} dropped; "
               + ", ".join(f"{name} {len(rows):,}" for name, rows in store.splits.items()))  # fmt: skip
    shapes = store.meta.get("shapes", [])
    if missing := store.meta.get("missing"):
        click.echo(f"named in the split files, and not found: {len(missing):,}, the first one {missing[0]}")
    if judged := sorted((facts["agreement"], facts["name"]) for facts in shapes if "agreement" in facts):
        click.echo(f"agreement of two sign methods: median {judged[len(judged) // 2][0]:.2%}, lowest {judged[0][0]:.2%} ({judged[0][1]})")
    if shapes:
        click.echo(f"look at {out / 'review.html'}   or: metasdf datasets show {out} -o sheet.png")


def parse_shares(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--split {text} is not three shares", fix="write --split 80/10/10") from None
    return train, val, test


def parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise UsageError(f"--shard {text} is not I/N", fix="write --shard 1/8 to 8/8")
    return int(number), int(of)


@cli.group()
def datasets() -> None:
    """Look at data sets, and hand them on."""


@datasets.command("show")
@click.argument("data", type=path_type)
@click.option("-o", "--out", type=path_type, default=Path("sheet.png"), show_default=True, help="The picture to write.")
@click.option("--shapes", type=click.IntRange(1), default=12, show_default=True, help="How many.")
@click.option("--split", help="Of this split only.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice.")
def show(data: Path, out: Path, shapes: int, split: str | None, seed: int) -> None:
    """Draw a contact sheet of DATA: surfaces, samples, and slices through the signed distance."""
    from metasdf.data.show import data_set_sheet, png
    from metasdf.data.store import Store
    from metasdf.geometry.io import write_whole

    write_whole(out, png(data_set_sheet(Store.open(data), shapes=shapes, split=split, seed=seed)))
    click.echo(f"written: {out}")


@datasets.command("export")
@click.argument("data", type=path_type)
@click.option("-o", "--out", type=path_type, required=True, help="The folder to write.")
@click.option("--name", default="metasdf", show_default=True, help="Of the data set, in DeepSDF's layout.")
def export(data: Path, out: Path, name: str) -> None:
    """Write DATA in DeepSDF's layout, with its split files, so that DeepSDF's code and its kin can train on it."""
    from metasdf.data.export import export_deepsdf
    from metasdf.data.store import Store

    written = export_deepsdf(Store.open(data), out, dataset=name)
    click.echo(f"{out}: {written:,} shapes")


@cli.command()
@click.argument("prior", shell_complete=_prior_names)
@click.option("--data", type=path_type, required=True, help="Data set made by metasdf prepare.")
@click.option("--split", default="test", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Evaluation runs, each with its own context points (paper: 3).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first shapes of the split.")
@click.option("--steps", type=click.IntRange(1), help="Inner steps; beyond the trained ones the rates of the last one repeat.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--json", "target", type=path_type, help="Also write the result to this file.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@device_option
def evaluate(
    prior: str, data: Path, split: str, runs: int, seed: int, limit: int | None, steps: int | None, batch: int, target: Path | None,
    threads: int | None, device: str,
) -> None:  # fmt: skip
    """Measure PRIOR (a name, file or run folder) on every shape of a split: MSE, MAE, misclassified sign, time."""
    _start(threads)
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
    result = evaluation.evaluate(loaded, store, split=split, runs=runs, seed=seed, limit=limit, batch=batch, steps=steps, device=where)
    context = result["context"]
    click.echo(f"{result['prior']} on {result['data']['source']}, split {split}: {context['rule']} context of {context['points']} points, "
               f"n {result['n']:,}, failed {result['failed']:,}, {runs} run{'s' if runs > 1 else ''} (field units)")  # fmt: skip
    steps_shown, found = result["after_step"], result["metrics"]
    click.echo("step          MSE          MAE  wrong sign %")
    for step, row in enumerate(zip(*(steps_shown[name] for name in ("mse", "mae", "misclassified")), strict=True)):
        click.echo(f"{step:4d} {row[0]:12.4g} {row[1]:12.4g} {row[2]:13.3f}")
    if steps_shown["n"] < result["n"] or runs > 1:
        click.echo(f"     (steps: the first {steps_shown['n']:,} shapes, first run; all shapes and runs, last step:)")
        for name, end in (("mean", ""), ("std", "_std"))[: 2 if runs > 1 else 1]:
            mse, mae, sign = (found[key + end] for key in ("mse", "mae", "misclassified"))
            click.echo(f"{name:4s} {mse:12.4g} {mae:12.4g} {sign:13.3f}" + ("   over runs" if end else ""))
    times = result["fit_ms"]
    click.echo(f"fit: {times['alone']:.1f} ms alone, {times['batched']:.1f} ms per shape in batches of {times['batch']}")
    if target is not None:
        write_json(target, result)
        click.echo(f"written: {target}")


def _say_extra_steps(prior: Any, steps: int | None) -> None:
    inner = prior.experiment.inner
    if steps is not None and steps > inner.steps and inner.rates in ("step", "parameter_step"):
        click.echo(f"note: {prior.name} was trained with {inner.steps} steps; "
                   f"steps {inner.steps + 1} to {steps} repeat the rates of step {inner.steps}", err=True)  # fmt: skip


@cli.command()
@click.argument("inputs", nargs=-1, required=True, type=path_type)
@click.option("-m", "--prior", required=True, shell_complete=_prior_names, help="Prior: a shipped name, a file or a run folder.")
@click.option("-o", "--out", type=path_type, required=True, help="Folder for the results.")
@click.option("--resolution", type=click.IntRange(8, 4096), default=128, show_default=True, help="Grid points along a side of the written SDF.")
@click.option("--steps", type=click.IntRange(1), help="Inner steps; beyond the trained ones the rates of the last one repeat.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice among many observations.")
@click.option("--foreground", type=click.Choice(["auto", "bright", "dark"]), default="auto", show_default=True, help="The side that is the shape.")
@click.option("--y-up", is_flag=True, help="The y axis of points and samples points up (images and SVG: down).")
@device_option
def reconstruct(
    inputs: tuple[Path, ...], prior: str, out: Path, resolution: int, steps: int | None, seed: int, foreground: Any, y_up: bool, device: str
) -> None:
    """Turn observations of shapes into SDFs: an image, SDF samples (x, y, s) or bare points, as .png .npy .csv.

    Writes the SDF grid (.npz), a picture (.png), the contour (.svg) and a summary (.json) for each, in the input's own units.
    """
    _start()
    from metasdf.devices import pick_device
    from metasdf.prior import load
    from metasdf.reconstruct import reconstruct_many

    loaded = load(prior).to(pick_device(device))
    _say_extra_steps(loaded, steps)
    if reconstruct_many(inputs, loaded, out, resolution=resolution, steps=steps, seed=seed, y_up=y_up, foreground=foreground, say=click.echo):
        sys.exit(1)


@cli.command()
@click.option("-o", "--out", type=path_type, default=Path("demo-out"), show_default=True, help="Folder for the page and its pictures.")
def demo(out: Path) -> None:
    """Fit digits that the shipped priors never saw, and write a page to look at."""
    _start()
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
    for each in shipped():
        prior = load(each)
        found = prior.card.get("metrics", {})
        click.echo(f"{each:16s} {prior.dim}D, {prior.experiment.context} context, "
                   f"{sum(p.numel() for p in prior.parameters()):,} numbers, test MSE {found.get('mse', float('nan')):.3g}")  # fmt: skip


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: metasdf completion bash >> ~/.bashrc"""
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    assert maker is not None
    click.echo(maker(cli, {}, "metasdf", "_METASDF_COMPLETE").source())


def main() -> None:
    """Entry point of the `metasdf` command."""
    cli(prog_name="metasdf")
