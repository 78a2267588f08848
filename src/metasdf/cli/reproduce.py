"""The command that fills the paper's tables and sets them beside the published numbers."""

from __future__ import annotations

from pathlib import Path

import click

from metasdf.cli.options import device_option, parse_budget, path_type, start
from metasdf.errors import UsageError


@click.command()
@click.argument("what", type=click.Choice(["table1", "table2", "compare", "figures"]))
@click.option("-w", "--work", type=path_type, default=Path("reproduce"), show_default=True, help="For data sets and runs; what it holds stays.")
@click.option("--results", type=path_type,
              help="Folder of the JSON files, one a cell or figure.  [default: results/tables, results/figures; small: in WORK/results]")  # fmt: skip
@click.option("--from", "mnist", type=path_type, help="Where the MNIST files are: a folder, .zip or .tar. Without it they are downloaded.")
@click.option("--cell", "--only", "only", multiple=True, metavar="NAME",
              help="Only this cell, column or method, e.g. dense-cnp4, levelset, metasdf; or figure, e.g. tsne, qualitative.")  # fmt: skip
@click.option("--scale", type=click.Choice(["full", "small"]), default="full", show_default=True,
              help="small: on the 100 digits of the package, in minutes; comparable with nothing.")  # fmt: skip
@click.option("--preset", type=click.Choice(["cpu", "paper"]), default="cpu", show_default=True,
              help="paper: the supplement's schedules (epochs), for those with a GPU.")  # fmt: skip
@click.option("--budget", callback=parse_budget, metavar="TIME", help="Training time of each cell.  [default: 15m; small: 20s]")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Evaluation runs, as in the paper.")
@click.option("--limit", type=click.IntRange(1), help="At most so many test shapes, spread evenly.")
@click.option("--page", type=path_type, help="The page to write.  [default: docs/results.md, docs/figures.md; small: WORK/figures.md]")
@click.option("-o", "--out", type=path_type, help="figures: folder of the pictures.  [default: docs/images; small: WORK/figures]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@device_option
def reproduce(
    what: str, work: Path, results: Path | None, mnist: Path | None, only: tuple[str, ...], scale: str, preset: str, budget: float | None,
    runs: int, limit: int | None, page: Path | None, out: Path | None, threads: int | None, device: str,
) -> None:  # fmt: skip
    """Train and measure the cells of a table of the paper, compare what was measured with what was published, or draw the figures.

    \b
    metasdf reproduce table1 --scale small           every method, on the digits that come with the package
    metasdf reproduce table1 --from MNIST            2D: dense and level-set context
    metasdf reproduce table2 --from MNIST            2D: unseen digits, rotated digits, three digits in one image
    metasdf reproduce compare                        published | ours | ratio, and docs/results.md
    metasdf reproduce figures                        of what the tables trained; and docs/figures.md

    Cells do not depend on each other: finished ones are kept, an interrupted one goes on, --cell picks some.
    """
    start(threads)
    from metasdf import reproduce as tables
    from metasdf.devices import pick_device

    small = scale == "small"
    folder = results or (work / "results" if small else Path("results/tables"))
    if what == "compare":
        lines = tables.read(folder)
        if not lines:
            raise UsageError("there are no results to compare", where=folder, fix="metasdf reproduce table1 --from MNIST")
        for row in (tables.HEAD, *tables.comparison(lines)):
            click.echo("{:36s} {:13s} {:>14s} {:>16s} {:>6s} {:>9s} {:>7s} {:>7s} {:>8s} {:>8s}".format(*row))
        page = page or Path("docs/results.md")
        tables.write_page(lines, page)
        click.echo(f"written: {page}")
        return
    seconds = None if preset == "paper" and budget is None else budget or (20.0 if small else 900.0)
    plan = tables.Plan(work, folder, mnist, preset, seconds, runs, limit, small, pick_device(device))
    if what == "figures":
        from metasdf.figures import draw

        base = work if small else Path("docs")
        plan = plan._replace(results=results or (work / "results" if small else Path("results")) / "figures")
        draw(plan, out=out or base / ("figures" if small else "images"), page=page or base / "figures.md", only=only, say=click.echo)
        return
    try:
        for cell in tables.cells([what], only):
            tables.fill(cell, plan, say=click.echo)
    except KeyboardInterrupt:
        click.echo("stopped; everything is saved. The same command goes on from here.", err=True)
        click.get_current_context().exit(130)
    if small:
        click.echo("These numbers are for a try: 60 digits to train on, 20 to test. Comparable with nothing.")
