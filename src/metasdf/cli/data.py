"""The commands that make data sets, look at them and hand them on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from metasdf.cli.options import FiniteRange, parse_budget, path_type
from metasdf.errors import InputError, UsageError

ALL_TAKE = {"source", "parts", "out", "workers", "seed", "force"}
OF_3D = {"limit", "split", "split_file", "time_limit", "memory", "shard", "engine", "retry"}
SAMPLED = "samples in DeepSDF's layout, taken over as they are"
TAKES = {
    "MNIST": {"resolution", "limit", "origin", "count", "allow_unofficial"},
    "mnist-slice": {"resolution"},
    "folders of images": {"resolution", "limit", "foreground", "split"},
    "meshes": OF_3D | {"samples", "surface_points", "views", "sign", "hollows", "thickness", "count", "stretch"},
    SAMPLED: OF_3D,
}


@click.command()
@click.argument("source")
@click.argument("parts", nargs=-1, type=path_type)
@click.option("-o", "--out", type=path_type, required=True, help="The data set to write: a folder.")
@click.option("--workers", type=click.IntRange(1), help="Processes (default: one for each core).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split and the samples.")
@click.option("--limit", type=click.IntRange(1), help="Only the first images or shapes, to try things out.")
@click.option("--force", is_flag=True, help="Replace a data set that was prepared differently; shapes that would be the same are taken over.")
@click.option("--retry", is_flag=True, help="Meshes: try again what failed, or took too long, under the same limits.")
@click.option("--split", metavar="A/B/C", default="80/10/10", show_default=True, help="Shares of train, val and test in each category.")
@click.option("--split-file", multiple=True, metavar="[SPLIT=]FILE", help="Splits as DeepSDF's JSON files have them, one for each split.")
@click.option("--samples", type=click.IntRange(1), default=500_000, show_default=True, help="Meshes: signed distances of each shape.")
@click.option("--surface-points", type=click.IntRange(1), default=100_000, show_default=True, help="Meshes: points with normals of each.")
@click.option("--views", type=click.IntRange(0), default=8, show_default=True, help="Meshes: depth views of each.")
@click.option("--sign", multiple=True, metavar="[NAME=]METHOD", help="Meshes: auto, winding or visibility, for all or for one shape.")
@click.option("--hollows", type=click.Choice(["fill", "keep"]), default="fill", show_default=True, help="Meshes: what is enclosed and unseen.")
@click.option("--thickness", type=FiniteRange(0), default=0.0, show_default=True, help="Meshes: of sheets, on each side; the shape has size 2.")
@click.option("--time-limit", callback=parse_budget, default="10m", show_default=True, metavar="TIME", help="Meshes: for one shape.")
@click.option("--memory", type=FiniteRange(0.1), default=8.0, show_default=True, metavar="GIB", help="Meshes: for one worker.")
@click.option("--shard", metavar="I/N", help="Meshes: only part I of N, for job arrays; then: metasdf prepare merge PARTS... -o DATA")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Meshes: ray sends shapes to a cluster.")
@click.option("--count", type=click.IntRange(1), help="Procedural shapes: how many (default: 100). MNIST: training images of each kind, at most.")
@click.option("--stretch", type=click.IntRange(0), default=0, metavar="N", help="Meshes: N copies of each training shape beside it, stretched.")
@click.option("--resolution", type=click.IntRange(4, 4096), default=64, show_default=True, help="Images: grid points along a side.")
@click.option("--foreground", type=click.Choice(["auto", "bright", "dark"]), default="auto", show_default=True, help="Images: the shape's side.")
@click.option("--from", "origin", type=path_type, help="MNIST: where its files are: a folder, .zip or .tar. Without it they are downloaded.")
@click.option("--allow-unofficial", is_flag=True, help="MNIST: take other IDX files (Fashion-MNIST): no md5 check.")
@click.pass_context
def prepare(ctx: click.Context, source: str, parts: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Turn SOURCE into a data set of signed distance functions. Typed again, the same command goes on where it was interrupted.

    SOURCE is a folder, file or zip of meshes (obj, ply, stl, off, glb, gltf, 3mf, dae, ac; ShapeNet's layout), samples in DeepSDF's layout,
    procedural-tables, -chairs, -benches or -planes, a folder of silhouettes (PNG, JPEG, BMP), mnist, a data set made of its digits
    (mnist-rotated, -unseen, -double, -triple, -composite; the last three also with -clean behind, where no digit of test is known from
    training), or mnist-slice (the 100 digits that come with the package).

    \b
    metasdf prepare meshes/ -o DATA
    metasdf prepare procedural-chairs --count 500 -o DATA
    metasdf prepare meshes/ -o DATA --stretch 8
    metasdf prepare meshes/ -o PART1 --shard 1/2; metasdf prepare merge PART1 PART2 -o DATA
    metasdf prepare merge REAL PROCEDURAL -o DATA
    metasdf prepare mnist --from FOLDER_OR_ARCHIVE -o DATA
    metasdf prepare mnist-composite --from FOLDER_OR_ARCHIVE -o DATA
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
    kind = _kind(source)
    for name in ctx.params:
        if name not in ALL_TAKE | TAKES[kind] and ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise UsageError(f"--{'from' if name == 'origin' else name.replace('_', '-')} does not go with {source}",
                             cause=f"it is for {' and '.join(each for each, options in TAKES.items() if name in options)}, this is {kind}",
                             fix="leave it out, or check the source")  # fmt: skip
    if parts:
        raise UsageError("There is more than one source", where=parts[0],
                         fix="put the meshes into one folder; parts of a data set: metasdf prepare merge PARTS... -o DATA")  # fmt: skip
    in_3d = TAKES[kind] >= OF_3D
    try:
        store = _prepare_meshes(source, out, options) if in_3d else _prepare_images(source, out, options)
    except KeyboardInterrupt as stop:
        if not in_3d:  # nothing is kept of images
            raise
        click.echo(str(stop) or "interrupted: shapes that are done are kept; the same command goes on from here", err=True)
        sys.exit(130)
    _say_prepared(store, out, dropped_said=in_3d)


def _kind(source: str) -> str:
    """A key of TAKES. Images beside meshes are textures. Raises InputError for a folder that holds nothing we read."""
    from metasdf.data.deepsdf import is_deepsdf
    from metasdf.data.digits import NAMES
    from metasdf.data.sources import ZIP_SUFFIXES
    from metasdf.geometry.image import IMAGE_SUFFIXES
    from metasdf.geometry.io import MESH_SUFFIXES

    path = Path(source)
    if source in NAMES or source == "mnist-slice":
        return "MNIST" if source in NAMES else source
    if source.startswith("procedural-"):
        return "meshes"
    if is_deepsdf(path):
        return SAMPLED
    suffixes = {each.suffix.lower() for each in path.rglob("*")} if path.is_dir() else set()
    meshes = bool(suffixes & {*MESH_SUFFIXES, *ZIP_SUFFIXES})
    if path.is_dir() and not meshes and not suffixes & set(IMAGE_SUFFIXES):
        raise InputError("The folder holds neither meshes nor images", where=path, cause="another folder, or files of other kinds",
                         fix=f"meshes end in {', '.join((*MESH_SUFFIXES, *ZIP_SUFFIXES))}; images in {', '.join(IMAGE_SUFFIXES)}")  # fmt: skip
    return "folders of images" if suffixes and not meshes else "meshes"


def _prepare_images(source: str, out: Path, o: dict[str, Any]) -> Any:
    from metasdf.data import prepare as preparing

    if source in preparing.NAMES:
        return preparing.prepare_mnist(o["origin"], out, name=source, resolution=o["resolution"], workers=o["workers"], seed=o["seed"],
                                       force=o["force"], limit=o["limit"], count=o["count"], allow_unofficial=o["allow_unofficial"])  # fmt: skip
    if source == "mnist-slice":
        return preparing.prepare_slice(out, resolution=o["resolution"], force=o["force"])
    return preparing.prepare_images(source, out, resolution=o["resolution"], workers=o["workers"], seed=o["seed"], foreground=o["foreground"],
                                    split=parse_shares(o["split"]), force=o["force"], limit=o["limit"])  # fmt: skip


def _prepare_meshes(source: str, out: Path, o: dict[str, Any]) -> Any:
    import signal
    import threading

    if not Path(source).exists() and not source.startswith("procedural-"):
        raise UsageError(f"there is no source {source!r}", cause="a misspelt name, or a path that does not exist",
                         fix="a folder, file or zip of meshes, a folder of silhouettes, procedural-tables, mnist or another in --help")  # fmt: skip

    from metasdf.data.isolation import GIB, Limits
    from metasdf.data.meshes import prepare_meshes
    from metasdf.data.shape import Sampling
    from metasdf.data.splits import SplitFiles

    signs = parse_signs(o["sign"])
    sampling = Sampling(o["samples"], o["surface_points"], o["views"], sign=signs.pop("", "auto"), hollows=o["hollows"], thickness=o["thickness"],
                        seed=o["seed"])  # fmt: skip
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a batch system sends: ends the workers too
    return prepare_meshes(
        source, out, sampling=sampling, signs=signs, split=parse_shares(o["split"]),
        split_files=SplitFiles.read(o["split_file"]) if o["split_file"] else None, workers=o["workers"],
        limits=Limits(o["time_limit"], int(o["memory"] * GIB)), engine=o["engine"], shard=parse_shard(o["shard"]), limit=o["limit"],
        count=o["count"], stretch=o["stretch"], force=o["force"], retry=o["retry"], say=lambda text: click.echo(text, err=True),
    )  # fmt: skip


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
    if shapes:
        _say_sampled(shapes)
    if judged := sorted((facts["agreement"], facts["name"]) for facts in shapes if "agreement" in facts):
        click.echo(f"agreement of two sign methods: median {judged[len(judged) // 2][0]:.2%}, lowest {judged[0][0]:.2%} ({judged[0][1]})")
    if shapes:
        click.echo(f"look at {out / 'review.html'}   or: metasdf datasets show {out} -o sheet.png")


def _say_sampled(shapes: list[dict[str, Any]]) -> None:
    """What is to be known of samples that others have drawn."""
    from metasdf.data.review import lost_share, with_lost_rows, without_frame

    if lost := with_lost_rows(shapes):
        worst = ", ".join(f"{facts['name']} ({lost_share(facts):.2%} of its samples)" for facts in lost[:3])
        click.echo(f"left out, not finite: {sum(facts['dropped_rows'] for facts in lost):,} samples of {len(lost):,} shapes; the worst: {worst}")
    if unframed := without_frame(shapes):
        click.echo(f"without NormalizationParameters: {unframed:,} shapes; their own units are not known, and surface points are left out")


def parse_shares(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--split {text} is not three shares", fix="write --split 80/10/10") from None
    return train, val, test


def parse_signs(texts: Sequence[str]) -> dict[str, Any]:
    """Method by name of the shape; "" is all others."""
    signs: dict[str, Any] = {}
    fix = "--sign auto, winding or visibility; for one shape --sign NAME=METHOD"
    for name, _, method in (text.rpartition("=") for text in texts):
        if method not in ("auto", "winding", "visibility"):
            raise UsageError(f"There is no sign method {method!r}", fix=fix)
        if signs.setdefault(name, method) != method:
            raise UsageError(f"--sign says both {signs[name]} and {method} for {name or 'all shapes'}", fix=fix)
    return signs


def parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise UsageError(f"--shard {text} is not I/N", fix="write --shard 1/8 to 8/8")
    return int(number), int(of)


@click.group()
def datasets() -> None:
    """Look at data sets, and hand them on."""


@datasets.command("show")
@click.argument("data", type=path_type)
@click.option("-o", "--out", type=path_type, default=Path("sheet.png"), show_default=True, help="The picture to write.")
@click.option("--shapes", type=click.IntRange(1), default=12, show_default=True, help="How many.")
@click.option("--split", help="Of this split only.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice.")
def show(data: Path, out: Path, shapes: int, split: str | None, seed: int) -> None:
    """Draw a contact sheet of DATA: the signed distance of images; surfaces, samples and slices of shapes in 3D."""
    from metasdf.data.show import data_set_sheet, png
    from metasdf.data.store import Store
    from metasdf.files import write_whole

    write_whole(out, png(data_set_sheet(Store.open(data), shapes=shapes, split=split, seed=seed)))
    click.echo(f"written: {out}")


@datasets.command("export")
@click.argument("data", type=path_type)
@click.option("-o", "--out", type=path_type, required=True, help="The folder to write.")
@click.option("--name", default="metasdf", show_default=True, help="Of the data set, in DeepSDF's layout.")
def export(data: Path, out: Path, name: str) -> None:
    """Write DATA in DeepSDF's layout, with its split files, so that DeepSDF's code and its kin can train on it.

    Shapes with samples on one side of the surface only, such as sheets without thickness, are written, but left out of the split files:
    DeepSDF's loader fails on them.
    """
    from metasdf.data.export import export_deepsdf
    from metasdf.data.store import Store

    written, one_sided = export_deepsdf(Store.open(data), out, dataset=name)
    for each in one_sided:
        click.echo(f"in no split file, since all its samples are on one side of the surface, where DeepSDF's loader fails: {each}", err=True)
    click.echo(f"{out}: {written:,} shapes" + (f", {len(one_sided):,} of them in no split file; prepared with --thickness 0.01, sheets have an inside"
                                               if one_sided else ""))
