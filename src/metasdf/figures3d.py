"""The supplement's 3D figures, from filled cells of tables 3 and 4: where fits begin, reconstructions side by side, how they converge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from metasdf import poisson
from metasdf.checkpoint import write_json
from metasdf.conditioning.codes import AutoDecoder
from metasdf.data import show
from metasdf.data.loader import Loader, rows_of
from metasdf.data.shape import PICTURE, read_shape
from metasdf.errors import EmptySurfaceError, InputError, UsageError
from metasdf.evaluate import spread
from metasdf.fields import Params
from metasdf.files import write_whole
from metasdf.geometry.frame import Frame
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.render import Picture, contact_sheet, render
from metasdf.metrics import misclassified
from metasdf.prior import SDF, Observed, Prior
from metasdf.provenance import commit, hardware
from metasdf.report import INK, MUTED, png
from metasdf.reproduce import solids
from metasdf.reproduce.plan import LABELS, REFINED, UNTRAINED, Data, Plan, Say, label
from metasdf.reproduce.solids import resolution_of
from metasdf.reproduce.tables import Cell, cells, filled
from metasdf.surfaces import poisson_mesh
from metasdf.tasks import Observations

WHOLE = Frame((0.0, 0.0, 0.0), 1.0)  # field units are shown
MARKS = (0, 1, 2, 3, 5, 10, 20, 30, 50, 100, 150, 200, 300, 400, 500, 600, 700, 800)  # iterations of long fits at which they are judged
REFINES = (25, 50, 100, 150, 200)  # steps of Adam after the inner ones
COLOURS = {"metasdf": "#b2182b", REFINED: "#ef8a62", "deepsdf": "#2166ac"}
BLANK = np.full((PICTURE, PICTURE, 3), 255, np.uint8)


class Panel(NamedTuple):
    picture: Picture
    title: str


class Fitter(NamedTuple):
    """A filled cell of a trained prior, and the shapes that it is tested on."""

    cell: Cell
    prior: Prior
    data: Data


class Classical(NamedTuple):
    """Screened Poisson's."""

    cell: Cell
    data: Data


def draw(plan: Plan, *, out: Path, numbers: Path, only: Sequence[str] = (), shapes: int = 4, say: Say = print) -> None:
    """Write all pictures that filled cells allow to `out`, of `shapes` of each test split. Raises UsageError where no cell is filled.

    COLUMN.png: truth and reconstructions (supplement, figures 2 to 5); CATEGORY-start.png: the surface of MetaSDF's initialisation and of
    DeepSDF's zero code (figure 1); COLUMN-convergence.png: wrong signs against iterations and seconds (figure 6), as JSON in `numbers`.
    """
    columns: dict[str, list[Fitter | Classical]] = {}
    for cell in cells(["table3", "table4"], only):
        if (plan.results / f"{cell.name}.json").is_file():
            if cell.method == UNTRAINED and not poisson.available():
                say(f"{cell.name}: left out, it needs pymeshlab: pip install 'metasdf[poisson]'")
                continue
            try:
                found = Classical(cell, solids.data(cell.asks.test, "test", plan)) if cell.method == UNTRAINED else Fitter(cell, *filled(cell, plan))
            except UsageError as error:  # its numbers are there, its training is elsewhere
                say(f"{cell.name} is left out: {error.what}: {error.where}")
                continue
            columns.setdefault(cell.column, []).append(found)
    if not columns:
        raise UsageError("no cell of tables 3 and 4 is filled and has its training here", where=plan.results,
                         fix="metasdf reproduce table3, with the same options")  # fmt: skip
    for name, methods in columns.items():
        column = methods[0].cell.asks
        _write(out / f"{name}.png", show.png(side_by_side(methods, plan, shapes=shapes)), say)
        trained = [each for each in methods if isinstance(each, Fitter)]
        fitters = [each for each in trained if each.cell.method != REFINED]
        if column.context == "dense" and len(fitters) > 1:
            courses = {fitter.cell.method: convergence(fitter, shapes=shapes) for fitter in trained}
            about = {"column": column.title, "definition": DEFINITION, "commit": commit(), "hardware": hardware(plan.device)}
            write_json(numbers / f"{name}-convergence.json", about | courses)
            _write(out / f"{name}-convergence.png", png(figure_convergence(courses)), say)
        if fitters and column.context == "dense" and column.train == column.test:
            _write(out / f"{column.train}-start.png", show.png(starts(fitters, plan)), say)


def side_by_side(methods: Sequence[Fitter | Classical], plan: Plan, *, shapes: int) -> Picture:
    """A row for each shape: the truth, and its reconstruction by each method."""
    panels: list[Panel] = []
    store = methods[0].data.store
    for row in _rows(methods[0].data, shapes):
        shape = read_shape(store.item(row), "picture")
        truth = shape.arrays["picture"]
        panels.append(Panel(truth if len(truth) else BLANK, str(shape.facts["name"])))
        panels += [_panel(partial(_surface, each, row, plan), label(each.cell.method, each.cell.refine)) for each in methods]
    return _sheet(panels, columns=1 + len(methods))


def starts(fitters: Sequence[Fitter], plan: Plan) -> Picture:
    """The surfaces of the fields that fits begin with: the learned initialisation, and the decoded zero code."""
    panels = []
    for fitter in fitters:
        begin = next(course(fitter.prior, _context(fitter, _rows(fitter.data, 1)[0])))
        kind = "zero code" if isinstance(fitter.prior.conditioner, AutoDecoder) else "initialisation"
        mesh = partial(_sdf(fitter.prior, begin.params).mesh, resolution_of(plan))
        panels.append(_panel(mesh, f"{label(fitter.cell.method)}, {kind}"))
    return _sheet(panels, columns=len(panels))


class Moment(NamedTuple):
    """Of a fit: after so many iterations, and seconds."""

    iteration: int
    seconds: float
    params: Params


@torch.no_grad()
def course(prior: Prior, context: Observations, *, refined: bool = False) -> Iterator[Moment]:
    """A fit from its start: MetaSDF after every inner step, each a fit of its own by the clock; an auto-decoder at MARKS, judging not counted.
    refined: from MetaSDF's last step on, after REFINES steps of Adam, each again a fit of its own."""
    model, seconds = prior.conditioner, 0.0
    if refined:
        started = time.perf_counter()
        last = Moment(model.inner_steps or 0, 0.0, model(context))
        yield (last := last._replace(seconds=time.perf_counter() - started))
        for steps in REFINES:
            started = time.perf_counter()
            params = prior.refine(last.params, context, steps=steps)
            yield Moment(last.iteration + steps, last.seconds + time.perf_counter() - started, params)
        return
    if not isinstance(model, AutoDecoder):
        for steps in range((model.inner_steps or 0) + 1):
            started = time.perf_counter()
            params = model.trajectory(context, steps=steps)[-1]
            yield Moment(steps, time.perf_counter() - started if steps else 0.0, params)
        return
    for iteration, z in enumerate(model.fitting(context)):
        seconds += time.perf_counter() - started if iteration else 0.0
        if iteration in MARKS:
            yield Moment(iteration, seconds, model.decoder(z))
        started = time.perf_counter()


DEFINITION = "percent of judged samples whose sign is wrong, and seconds of fitting alone, means over shapes; shapes are fitted one at a time"


def convergence(fitter: Fitter, *, shapes: int) -> dict[str, Any]:
    """Wrong signs and seconds after iterations: {"iterations": [], "seconds": [], "misclassified": []}."""
    rows, found, refined = _rows(fitter.data, shapes), [], fitter.cell.method == REFINED
    next(course(fitter.prior, _context(fitter, rows[0]), refined=refined))  # warms up
    for row in rows:
        x, s = Loader(fitter.data.store, indices=np.array([row]), rule="dense", n_context=1, n_query=0, batch=1, seed=0).shapes.judged(row)
        found.append([(m.iteration, m.seconds, misclassified(s[:, 0] < 0, _sdf(fitter.prior, m.params).at_field(x) < 0))
                      for m in course(fitter.prior, _context(fitter, row), refined=refined)])  # fmt: skip
    iterations, seconds, wrong = np.mean(found, 0).T
    e = fitter.prior.experiment
    return {"experiment": e.name, "preset": e.preset, "context": e.n_test, "n": len(rows), "iterations": iterations.astype(int).tolist(),
            "seconds": seconds.tolist(), "misclassified": wrong.tolist()}  # fmt: skip


def figure_convergence(found: dict[str, dict[str, Any]]) -> Figure:
    """Wrong signs against iterations and against seconds."""
    figure = Figure(figsize=(7.6, 2.9), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for number, (unit, title) in enumerate((("iterations", "iterations"), ("seconds", "seconds of fitting"))):
        axes = figure.add_subplot(1, 2, number + 1)
        for method, row in found.items():
            axes.plot(row[unit], row["misclassified"], "o-", ms=3, lw=1.2, color=COLOURS.get(method, INK), label=LABELS[method])
        least = min(at for row in found.values() for at in row[unit] if at)
        axes.set_xscale("symlog", linthresh=10.0 ** np.floor(np.log10(least)), linscale=0.4)  # a decade: no tick lies between it and 0
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xlabel(title, size=8, color=INK)
        axes.tick_params(labelsize=7, colors=MUTED)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 0:
            axes.set_ylabel("wrong sign, % of samples", size=8, color=INK)
            axes.legend(frameon=False, fontsize=8)
    return figure


def _rows(data: Data, shapes: int) -> list[int]:
    return [int(row) for row in spread(rows_of(data.store, "test", data.category), shapes)]


def _context(fitter: Fitter, row: int) -> Observations:
    """As evaluation draws it."""
    e = fitter.prior.experiment
    loader = Loader(fitter.data.store, indices=np.array([row]), rule=e.context, n_context=e.n_test, n_query=0, batch=1, seed=0)
    return loader.tasks(np.array([row])).context.to(next(fitter.prior.conditioner.parameters()).device)


@torch.no_grad()
def _surface(method: Fitter | Classical, row: int, plan: Plan) -> Mesh:
    """In field units. Raises EmptySurfaceError, InputError."""
    if isinstance(method, Classical):
        n = method.cell.experiment(preset=plan.preset).n_test
        return poisson_mesh(method.data.store, row, n_points=n, seed=0)[0]
    context = _context(method, row)
    params = method.prior.conditioner(context)
    if method.cell.method == REFINED:
        params = method.prior.refine(params, context, steps=method.cell.refine)
    return _sdf(method.prior, params, context).mesh(resolution_of(plan))


def _sdf(prior: Prior, params: Params, context: Observations | None = None) -> SDF:
    """Of the one shape of a batch, fitted to that context; what all shapes share has no batch."""
    own = tuple(type(layer)(layer.weight[0] if layer.weight.dim() > 2 else layer.weight, layer.bias[0] if layer.bias.dim() > 1 else layer.bias)
                for layer in params)  # fmt: skip
    known = None if context is None else prior.known(Observed(WHOLE, context.x[0].cpu().numpy(), context.y[0, :, 0].cpu().numpy()))
    return SDF([own], prior.conditioner.spec, prior.head, WHOLE, prior=prior.name, known=known)


def _panel(surface: Callable[[], Mesh], title: str) -> Panel:
    """As large as the pictures of data sets."""
    try:
        return Panel(render(surface(), size=PICTURE, supersample=2), title)
    except (EmptySurfaceError, InputError):  # the latter: a field that is not finite
        return Panel(BLANK, f"{title}: no surface")


def _sheet(panels: Sequence[Panel], *, columns: int) -> Picture:
    return contact_sheet([panel.picture for panel in panels], [panel.title for panel in panels], columns=columns)


def _write(path: Path, content: bytes, say: Say) -> None:
    write_whole(path, content)
    say(f"written: {path}")
