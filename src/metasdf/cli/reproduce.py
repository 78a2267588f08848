"""The command that fills the paper's tables and sets them beside the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from metasdf.cli.options import device_option, parse_budget, path_type, start
from metasdf.errors import UsageError

OF_DIGITS = ("runs",)
OF_SOLIDS = ("data", "samples", "procedural", "stretch", "resolution")
TABLES = {
    "table1": OF_DIGITS, "table2": OF_DIGITS, "table3": OF_SOLIDS, "table4": OF_SOLIDS, "figures": ("out", "page"),
    "figures3d": (*OF_SOLIDS, "out", "shapes"), "compare": ("page",),
}  # fmt: skip


@click.command()
@click.argument("what", type=click.Choice(list(TABLES)), metavar="TABLE|figures|figures3d|compare")
@click.option("-w", "--work", type=path_type, default=Path("reproduce"), show_default=True, help="For data sets and runs; what it holds stays.")
@click.option("--results", type=path_type,
              help="Folder of the JSON files, one a cell or figure.  [default: results/tables, results/figures; small: in WORK/results]")  # fmt: skip
@click.option("--from", "origin", type=path_type, metavar="PATH",
              help="2D: the MNIST files, a folder, .zip or .tar; without it they are downloaded. --data real: the folder of meshes.")  # fmt: skip
@click.option("--data", multiple=True, metavar="real|STORE", help="3D: real meshes, prepared here; or data sets that metasdf prepare made.")
@click.option("--cell", "--only", "only", multiple=True, metavar="NAME",
              help="Only this cell, column or method, e.g. dense-cnp4, levelset, metasdf; or figure, e.g. tsne, qualitative.")  # fmt: skip
@click.option("--scale", type=click.Choice(["full", "small"]), default="full", show_default=True,
              help="small: on the 100 digits of the package, or a few procedural shapes, in minutes; comparable with nothing.")  # fmt: skip
@click.option("--preset", type=click.Choice(["cpu", "paper"]), default="cpu", show_default=True,
              help="paper: the supplement's schedules (epochs), for those with a GPU.")  # fmt: skip
@click.option("--budget", callback=parse_budget, metavar="TIME", help="Training time of each cell.  [default: 15m; small: 20s]")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Tables 1, 2: evaluation runs, as in the paper.")
@click.option("--limit", type=click.IntRange(1), help="At most so many test shapes, spread evenly.")
@click.option("--samples", type=click.IntRange(1), default=50_000, show_default=True, help="--data real: signed distances of each shape.")
@click.option("--procedural", type=click.IntRange(0), default=200, show_default=True, help="--data real: shapes drawn by dice, for training only.")
@click.option("--stretch", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="--data real: stretched copies of each shape that is trained on.")  # fmt: skip
@click.option("--resolution", type=click.IntRange(2), default=128, show_default=True, help="3D: grid points along a side for surfaces (paper: 256).")
@click.option("--shapes", type=click.IntRange(1), default=4, show_default=True, help="figures3d: test shapes in each picture.")
@click.option("-o", "--out", type=path_type, help="Folder of the pictures.  [default: docs/images; small: WORK/figures]")
@click.option("--page", type=path_type, help="The page to write.  [default: docs/results.md, docs/figures.md; small: WORK/figures.md]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@device_option
@click.pass_context
def reproduce(
    ctx: click.Context, what: str, work: Path, results: Path | None, origin: Path | None, data: tuple[str, ...], only: tuple[str, ...], scale: str,
    preset: str, budget: float | None, runs: int, limit: int | None, samples: int, procedural: int, stretch: int, resolution: int, shapes: int,
    out: Path | None, page: Path | None, threads: int | None, device: str,
) -> None:  # fmt: skip
    """Train and measure the cells of a table of the paper, compare what was measured with what was published, or draw its figures.

    \b
    metasdf reproduce table1 --scale small           every method, on the digits that come with the package
    metasdf reproduce table1 --from MNIST            2D: dense and level-set context
    metasdf reproduce table2 --from MNIST            2D: unseen digits, rotated digits, three digits in one image
    metasdf reproduce table3 --data real --from MESHES    3D: planes, tables, chairs; or --data STORE [--data STORE ...]
    metasdf reproduce table4 --data real --from MESHES    3D: priors of tables, on benches
    metasdf reproduce figures                        2D: of what the tables trained, and docs/figures.md
    metasdf reproduce figures3d --data real --from MESHES    of the cells of tables 3 and 4 that are filled
    metasdf reproduce compare                        published beside ours, and docs/results.md

    Cells do not depend on each other: finished ones are kept, an interrupted one goes on, --cell picks some.
    """
    for name in {name for names in TABLES.values() for name in names} - {*TABLES[what]}:
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise UsageError(f"--{name} does not go with {what}", cause=f"it is for {', '.join(each for each in TABLES if name in TABLES[each])}",
                             fix="leave it out")  # fmt: skip
    start(threads)
    from metasdf.devices import pick_device
    from metasdf.reproduce.plan import Plan
    from metasdf.reproduce.tables import cells, fill

    small = scale == "small"
    folder = results or (work / "results" if small else Path("results/tables"))
    if what == "compare":
        _compare(folder, page or Path("docs/results.md"))
        return
    stores = _stores(data) if "data" in TABLES[what] and not small else ()
    seconds = None if preset == "paper" and budget is None else budget or (20.0 if small else 900.0)
    plan = Plan(work, folder, origin, preset, seconds, runs, limit, small, pick_device(device), stores, samples, procedural,
                stretch, resolution)  # fmt: skip
    if what == "figures":
        from metasdf import figures

        base = work if small else Path("docs")
        plan = plan._replace(results=results or (work / "results" if small else Path("results")) / "figures")
        figures.draw(plan, out=out or base / ("figures" if small else "images"), page=page or base / "figures.md", only=only, say=click.echo)
        return
    try:
        if what == "figures3d":
            from metasdf import figures3d

            numbers = (work / "results" if small else Path("results")) / "figures"
            pictures = out or (work / "figures" if small else Path("docs/images"))
            figures3d.draw(plan, out=pictures, numbers=numbers, only=only, shapes=shapes, say=click.echo)
            return
        for cell in cells([what], only):
            fill(cell, plan, say=click.echo)
    except KeyboardInterrupt:
        click.echo("stopped; everything is saved. The same command goes on from here.", err=True)
        ctx.exit(130)
    if small:
        click.echo("These numbers are for a try, of a few shapes to train on and fewer to test. Comparable with nothing.")


def _stores(data: tuple[str, ...]) -> tuple[Path, ...]:
    """None for real meshes. Raises UsageError."""
    if not data or ("real" in data and len(data) > 1):
        raise UsageError("It is not said of which shapes" if not data else "--data is real, or data sets",
                         fix="--data real --from MESHES (docs/data.md), --data STORE, or --scale small for a try")  # fmt: skip
    return () if data == ("real",) else tuple(map(Path, data))


def _compare(folder: Path, page: Path) -> None:
    from metasdf.reproduce import page as pages

    measured = pages.read(folder)
    if not any(measured):
        raise UsageError("there are no results to compare", where=folder, fix="metasdf reproduce table1 --from MNIST")
    for head, rows in ((pages.HEAD, pages.comparison(measured.fields)), (pages.SURFACE_HEAD, pages.surface_comparison(measured.surfaces)),
                       (pages.RATIO_HEAD, pages.ratios(measured.surfaces))):  # fmt: skip
        _say_table([head, *rows])
    pages.write_page(measured, page)
    click.echo(f"written: {page}")


def _say_table(rows: list[Any]) -> None:
    """Columns as wide as they need; nothing where there is a head alone."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if len(rows) > 1 else []:
        click.echo("  ".join(f"{text:{'<' if k < 2 else '>'}{widths[k]}}" for k, text in enumerate(row)))
