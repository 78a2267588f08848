"""The demo: shipped priors meet digits and a table they never saw, and the results go on a page that needs nothing but a browser."""

from __future__ import annotations

import io
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from metasdf import demo3d
from metasdf.data.loader import ImageShapes
from metasdf.data.mnist import CREDIT, LICENCE, load_slice
from metasdf.data.prepare import prepare_slice
from metasdf.data.show import data_uri
from metasdf.data.store import Store
from metasdf.evaluate import GridErrors, fit_times, grid_errors
from metasdf.files import write_whole
from metasdf.geometry.image import mask_from_image
from metasdf.prior import Prior, load
from metasdf.provenance import hardware
from metasdf.report import Steps, figure_curve, figure_steps, fit_steps, png

NAMES = ("mnist-dense", "mnist-levelset")
SHOWN = (4, 21, 33, 52, 80, 97)  # rows of the shipped digits: a 0, 2, 3, 5, 8 and 9
EXAMPLE = 33  # the digit written as files to play with
PAPER = {"mnist-dense": 15.4e-6, "mnist-levelset": 56.6e-6}  # MSE, means of three runs (supplement 2.2.7)
BATCH = 50


class Result(NamedTuple):
    """What a prior achieved on the digits, in field units, with milliseconds per fit; `steps` are those of the shown ones."""

    prior: Prior
    errors: GridErrors
    ms_alone: float
    ms_batched: float
    steps: list[Steps]

    @property
    def title(self) -> str:
        context = "signed distances" if self.prior.needs_values else "surface points"
        return f"{self.prior.name}: from {self.prior.experiment.n_test:,} {context}"


def run(
    out: Path, *, say: Callable[[str], None], priors: Sequence[Prior] | None = None, tables: Prior | None = None,
    rows: NDArray[np.int64] | None = None, shown: Sequence[int] = SHOWN, resolution: int = 128,
) -> Path:  # fmt: skip
    """Fit the priors (None: the shipped ones) to the shipped test digits, and that of tables to points on a table; write OUT/index.html with its
    pictures. Returns the page.

    rows: which of the 100 digits are measured (None: all); shown: which are drawn; resolution: of the table's mesh. Raises UsageError if OUT
    cannot be written or a shipped prior is missing.
    """
    started = time.perf_counter()
    out = Path(out)
    priors = [load(name) for name in NAMES] if priors is None else priors
    tables = load(demo3d.NAME) if tables is None else tables
    rows = np.arange(100) if rows is None else rows
    labels = load_slice()[1]
    say(f"fitting {len(rows)} test digits on {hardware(torch.device('cpu'))}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = prepare_slice(Path(folder) / "digits", progress=False)
        _write_examples(out / "try", store)  # first, so that a folder that cannot be written is known at once
        results = []
        for prior in priors:
            results.append(_measure(prior, store, rows, np.array(shown), [f"digit {labels[i]}" for i in shown]))
            say(f"  {prior.name} done, {time.perf_counter() - started:.0f} s")
    solid = demo3d.run(out, tables, resolution=resolution)
    say(f"  {tables.name} done, {time.perf_counter() - started:.0f} s")
    curve = png(figure_curve({r.prior.name: r.errors.mse for r in results}, ylabel="MSE, mean over digits"))
    write_whole(out / "curve.png", curve)
    figures = {result.prior.name: png(figure_steps(result.steps)) for result in results}
    for name, figure in figures.items():
        write_whole(out / f"{name}.png", figure)
    write_whole(out / "steps.png", png(figure_steps([steps for result in results for steps in result.steps[:2]])))
    commands = next_commands(out, priors, tables)
    page = out / "index.html"
    write_whole(page, render(results, solid, figures, curve, commands, n=len(rows)).encode())
    say(table(results))
    say(demo3d.told(solid))
    say(f"page: {page}   ({time.perf_counter() - started:.0f} s in all)\n\nnext, on your own shapes:")
    for what, command in commands:
        say(f"  # {what}\n  {command}")
    return page


def _measure(prior: Prior, store: Store, rows: NDArray[np.int64], shown: NDArray[np.int64], labels: list[str]) -> Result:
    e, device, model = prior.experiment, torch.device("cpu"), prior.cpu().conditioner
    errors = grid_errors(model, prior.head, store, indices=rows, rule=e.context, n_context=e.n_test, seed=0, device=device, batch=BATCH)
    times = fit_times(prior, store, rows, batch=BATCH, seed=0, steps=None, device=device)
    steps = fit_steps(model, store, shown, e, device=device, labels=labels)
    return Result(prior, errors, times["alone"], times["batched"], steps)


def table(results: Sequence[Result]) -> str:
    """The measured numbers as text."""
    rich = Table(title="unseen digits (MSE and MAE in image sides)", title_justify="left", box=MARKDOWN)  # plain characters, for any terminal
    for name in ("prior", "MSE", "MAE", "wrong sign", "ms alone", "ms batched"):
        rich.add_column(name, justify="left" if name == "prior" else "right", no_wrap=True)
    for r in results:
        rich.add_row(r.prior.name, f"{r.errors.mse[-1]:.2e}", f"{r.errors.mae[-1]:.2e}", f"{r.errors.misclassified[-1]:.2f} %", f"{r.ms_alone:.0f}",
                     f"{r.ms_batched:.0f}")  # fmt: skip
    stream = io.StringIO()
    Console(file=stream, width=100).print(rich)
    return stream.getvalue().rstrip()


def next_commands(out: Path, priors: Sequence[Prior], tables: Prior) -> list[tuple[str, str]]:
    """(what it does, command) pairs, ready to paste."""
    names = ("try/digit.png", "try/samples.csv", "try/outline.csv", "mine", demo3d.SCAN, "mine/table.ply")
    digit, samples, outline, mine, scan, mesh = (shlex.quote(str(out / name)) for name in names)
    kinds = {
        True: ("an image, or signed distances x,y,s; try a PNG or CSV of your own", f"{digit} {samples}"),
        False: ("nothing but points x,y on an outline", outline),
    }
    return [
        *((kinds[p.needs_values][0], f"metasdf reconstruct {kinds[p.needs_values][1]} -m {p.name} -o {mine}") for p in priors),
        ("a scan: points x y z on a surface, or any mesh file; a table of your own", f"metasdf reconstruct {scan} -m {tables.name} -o {mesh}"),
        ("the whole data set, downloaded (11 MB) and turned into distance functions", "metasdf prepare mnist -o data"),
        ("a prior of your own; typed again, the command goes on", "metasdf train mnist-levelset --data data --run run --budget 90m"),
        ("its errors on the 10,000 test digits", "metasdf evaluate run --data data"),
    ]


def _write_examples(folder: Path, store: Store) -> None:
    """One digit as the three kinds of input: a picture, SDF samples and outline points, each in units of its own."""
    shape = ImageShapes(store)[EXAMPLE]
    picture = io.BytesIO()
    Image.fromarray(np.pad(mask_from_image(load_slice()[0][EXAMPLE], 224).astype(np.uint8) * 255, ((40, 20), (90, 30)))).save(picture, "PNG")
    chosen = np.random.default_rng(0).permutation(len(shape.x))[:1024]
    write_whole(folder / "digit.png", picture.getvalue())
    write_whole(folder / "samples.csv", _csv("x,y,s", np.column_stack((shape.x, shape.s))[chosen] * 200.0))
    write_whole(folder / "outline.csv", _csv("x,y", shape.surface * 200.0))


def _csv(header: str, rows: NDArray[np.floating]) -> bytes:
    return "\n".join([header, *(",".join(f"{v:.4f}" for v in row) for row in rows), ""]).encode()


def render(
    results: Sequence[Result], solid: demo3d.Table, figures: dict[str, bytes], curve: bytes, commands: Sequence[tuple[str, str]], *, n: int
) -> str:
    """The page as HTML: no script, no address outside itself but the mesh's page beside it."""
    environment = Environment(loader=PackageLoader("metasdf"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows = [
        {
            "name": r.prior.name, "title": r.title, "slug": r.prior.name, "mse": r.errors.mse[-1], "mae": r.errors.mae[-1], "failed": r.errors.failed,
            "wrong": r.errors.misclassified[-1], "alone": r.ms_alone, "batched": r.ms_batched, "paper": PAPER.get(r.prior.name),
            "steps": r.prior.experiment.inner.steps, "image": data_uri(figures[r.prior.name]), "training": r.prior.card.get("training", {}),
        }
        for r in results
    ]  # fmt: skip
    return environment.get_template("demo.html.j2").render(
        results=rows, solid=solid, table=data_uri(solid.picture), curve=data_uri(curve), commands=commands, n=n,
        hardware=hardware(torch.device("cpu")), credit=CREDIT, licence=LICENCE, table_credit=demo3d.CREDIT, table_licence=demo3d.LICENCE,
    )
