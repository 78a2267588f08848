"""The paper's 2D figures and a table of test times, of the priors that `metasdf reproduce` trained: pictures, their numbers as JSON, a page."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from metasdf.checkpoint import write_json
from metasdf.conditioning.codes import AutoDecoder
from metasdf.data.loader import Loader
from metasdf.data.prepare import prepare_mnist, prepare_slice
from metasdf.data.store import Store
from metasdf.errors import UsageError
from metasdf.evaluate import judge, spread
from metasdf.fields import Params, field
from metasdf.files import write_whole
from metasdf.prior import Prior, load
from metasdf.provenance import commit, hardware
from metasdf.report import INK, ISOLINE, MUTED, figure_fields, fit_steps, png
from metasdf.reproduce.digits import COLUMNS, METHODS
from metasdf.reproduce.plan import LABELS, REFINED, Plan, Say
from metasdf.reproduce.tables import Cell
from metasdf.tasks import Observations

QUALITATIVE = "qualitative-"
NAMES = (*(QUALITATIVE + column for column in COLUMNS), "steps-against-iterations", "tsne", "field-per-step", "speed")
SHIPPED = {"dense": "mnist-dense", "level set": "mnist-levelset"}  # of the figures that need no run
ROWS = 5  # shapes in a picture
CURVE_SHAPES, TSNE_SHAPES = 50, 1000
ROUNDS, BATCH = 5, 8  # of the table of test times
REPEATS = 3  # of a fit that takes milliseconds
JUDGED = 24  # iterations of an auto-decoder that are judged, evenly on a logarithmic axis, beside the start
COMPONENTS, PERPLEXITY = 50, 30.0
SEED = 0  # of the context points, and of t-SNE
STYLES = {"hyper": ("#D55E00", "s"), "concat": ("#E69F00", "D"), "cnp4": ("#009E73", "^"), "cnp9": ("#CC79A7", "v"), "metasdf": ("#0072B2", "o"),
          REFINED: ("#56B4E9", "P")}  # fmt: skip
REFINES = (10, 20, 40, 80, 160)  # steps of Adam from where MetaSDF's own end, each number a fit by itself
# Ten colours that stay apart for most eyes (Petroff 2021, arXiv 2107.02270); each digit is drawn as itself, too
TEN_COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")

T = TypeVar("T")
Facts = dict[str, Any]  # the numbers of a figure, for JSON
Rows = NDArray[np.int64]


class Method(NamedTuple):
    """A method of a column, and the prior of its finished run."""

    cell: Cell
    prior: Prior

    @property
    def label(self) -> str:
        return LABELS[self.cell.method]

    @property
    def facts(self) -> Facts:
        training = self.prior.card["training"]
        return {"method": self.cell.method, "label": self.label, "minutes": round(training["seconds"] / 60, 2), "steps": training["steps"],
                "preset": self.prior.experiment.preset, "commit": training["commit"], "fit": _fit(self.prior)}  # fmt: skip


def draw(plan: Plan, *, out: Path, page: Path, only: Sequence[str] = (), say: Say) -> None:
    """Draw figures (only: of these names, or whose names start so) of the runs in plan.work, then write the page of all that were ever drawn.

    Pictures go to `out`, numbers to plan.results. A method without a finished run is left out, and said. Raises UsageError for a name that
    fits none, and where nothing can be drawn.
    """
    names = [name for name in NAMES if not plan.small or COLUMNS[_column(name)].test == "mnist"]
    for name in only:
        if not any(_fits(name, each) for each in names):
            raise UsageError(f"there is no figure {name!r}", fix=f"figures: {', '.join(names)}")
    chosen = [each for each in names if not only or any(_fits(name, each) for name in only)]
    if "tsne" in chosen:
        _tsne()  # what is missing is said before minutes are spent
    if not [each for each in chosen if _draw(each, plan, out=out, say=say)]:
        raise UsageError("there is nothing to draw", where=plan.work / "runs", cause="no method is trained",
                         fix=f"metasdf reproduce {COLUMNS[_column(chosen[0])].table} -w {plan.work}")  # fmt: skip
    write_page(plan.results, out, page)
    say(f"written: {page}")


def _fits(name: str, figure: str) -> bool:
    return figure == name or figure.startswith(f"{name}-")


def _column(figure: str) -> str:
    """The column of the tables that a figure shows."""
    return figure.removeprefix(QUALITATIVE) if figure.startswith(QUALITATIVE) else "dense"


def _draw(name: str, plan: Plan, *, out: Path, say: Say) -> bool:
    column, figure = _column(name), None
    if name in ("tsne", "field-per-step"):
        facts, figure = (tsne if name == "tsne" else field_per_step)(_store("mnist", plan), plan)
    else:
        methods = trained(column, plan, say=lambda text: say(f"{name}: {text}"))
        if not methods:
            return False
        make = {"steps-against-iterations": steps_against_iterations, "speed": speed}.get(name, qualitative)
        facts, figure = make(methods, _store(COLUMNS[column].test, plan), plan)
        facts = {"methods": [method.facts for method in methods]} | facts
    about = {"figure": name, "comparable": not plan.small, "seed": SEED, "commit": commit(), "hardware": hardware(plan.device)}
    write_json(plan.results / f"{name}.json", about | facts)
    if figure:
        write_whole(out / f"{name}.png", png(figure))
    say(f"{name}: n {facts['n']:,}, {out / f'{name}.png' if figure else plan.results / f'{name}.json'}")
    return True


def _store(name: str, plan: Plan) -> Store:
    if plan.small:
        return prepare_slice(plan.work / "data" / "mnist-slice")
    path = plan.work / "data" / name
    return Store.open(path) if plan.origin is None and path.exists() else prepare_mnist(plan.origin, path, name=name)


def _rows(store: Store, n: int, plan: Plan) -> Rows:
    return spread(store.split("test"), min(plan.limit or n, n))


def trained(column: str, plan: Plan, *, say: Say) -> list[Method]:
    """The methods of a column that plan.work holds a finished run of, with the column's context; of the others, `say` how to make them."""
    found = []
    for method in METHODS:
        cell = Cell(column, method)
        asked = cell.experiment(preset=plan.preset)
        name = cell.training(preset=plan.preset).name
        run = plan.work / "runs" / f"{'mnist-slice' if plan.small else COLUMNS[column].train}-{name}"  # as tables.run_of
        prior = load(run) if (run / "prior.safetensors").exists() else None
        if prior is None or not prior.card["validation"]:  # which the end of a training brings
            say(f"{LABELS[method]} is left out, its training is {'missing' if prior is None else 'not finished'}: metasdf reproduce "
                f"{COLUMNS[column].table} --cell {cell.name} -w {shlex.quote(str(plan.work))}{' --scale small' if plan.small else ''}")  # fmt: skip
            continue
        prior.experiment = replace(prior.experiment, name=asked.name, context=asked.context, n_test=asked.n_test)
        found.append(Method(cell, prior.to(plan.device)))
    return found


# -- pictures of fields ---------------------------------------------------------------------------------------------------------------------


def qualitative(methods: Sequence[Method], store: Store, plan: Plan) -> tuple[Facts, Figure]:
    """Test shapes of different digits as every method sees them (main paper, figures of section 4)."""
    rows = _different(store, plan.limit or ROWS)
    fitted = [fit_steps(m.prior.conditioner, store, rows, m.prior.experiment, device=plan.device) for m in methods]
    shapes = [
        each[0]._replace(fields=np.stack([steps.fields[-1] for steps in each]), label=_label(store, row))
        for row, *each in zip(rows, *fitted, strict=True)
    ]
    titles = [f"{textwrap.fill(m.label, 19)}\n{_training(m.facts)}" for m in methods]
    e = methods[0].prior.experiment
    context = f"{e.n_test:,} {'signed distances' if e.context == 'dense' else 'points of the zero level'}"
    facts = {"n": len(rows), "rows": rows.tolist(), "context": context,
             "mse": {m.cell.method: [shape.mse[k] for shape in shapes] for k, m in enumerate(methods)}}  # fmt: skip
    return facts, figure_fields(titles, shapes, note=NOTE)


def field_per_step(store: Store, plan: Plan) -> tuple[Facts, Figure]:
    """Two digits by both shipped priors, from the learned initialisation to the last inner step."""
    rows = _different(store, 2)
    priors = {context: load(name).to(plan.device) for context, name in SHIPPED.items()}
    fitted = {c: fit_steps(p.conditioner, store, rows, p.experiment, device=plan.device) for c, p in priors.items()}
    shapes = [
        each[k]._replace(label=f"{_label(store, row)}, {context}")
        for k, row in enumerate(rows) for context, each in fitted.items()
    ]  # fmt: skip
    titles = ["start", *(f"step {j}" for j in range(1, len(shapes[0].fields)))]
    facts = {"n": len(rows), "rows": rows.tolist(), "mse": {context: [steps.mse for steps in each] for context, each in fitted.items()},
             "priors": list(SHIPPED.values())}  # fmt: skip
    return facts, figure_fields(titles, shapes, note=NOTE)


NOTE = f"Thick lines: zero level. Dashed: true contour. Thin lines: every {ISOLINE:g} image sides."


def _different(store: Store, n: int) -> Rows:
    """Test shapes in an order drawn by SEED, the first of each label; at most n."""
    rows = np.random.default_rng(SEED).permutation(store.split("test"))
    _, first = np.unique(store.arrays["labels"][rows], return_index=True)
    return rows[np.sort(first)[:n]]


def _label(store: Store, row: int) -> str:
    """What a test shape shows. Of three digits the label is the number that they write."""
    label = int(store.arrays["labels"][row])
    return f"digits {label:03d}" if "triple-test" in store.meta["rows"] else f"digit {label}"


def _training(facts: Facts) -> str:
    seconds = facts["minutes"] * 60
    return f"trained {seconds / 60:.0f} min" if seconds >= 90 else f"trained {seconds:.0f} s"


# -- time against error ---------------------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """Where a fit stands after some steps: milliseconds a shape from the context on, means over shapes of MSE and percent of wrong signs."""

    steps: int
    ms: float
    mse: float
    misclassified: float


def steps_against_iterations(methods: Sequence[Method], store: Store, plan: Plan) -> tuple[Facts, Figure]:
    """Supplement, figure 6, in 2D: error against time, of one batch of shapes by all methods in turn."""
    rows = _rows(store, CURVE_SHAPES, plan)
    curves = {m.cell.method: curve(m.prior, store, rows, device=plan.device) for m in methods}
    for m in methods:
        if m.cell.method == "metasdf":
            curves[REFINED] = refined_curve(m.prior, store, rows, spent=curves["metasdf"][-1].ms, device=plan.device)
    facts = {"n": len(rows), "curves": {name: [point._asdict() for point in points] for name, points in curves.items()}}
    return facts, figure_curves(curves, n=len(rows))


@torch.no_grad()
def curve(prior: Prior, store: Store, rows: Rows, *, device: torch.device) -> list[Point]:
    """The errors of one batch at all grid points: after each inner step; after JUDGED iterations of an auto-decoder, from the mean code on; or
    of the only pass of an encoder. A time is that from the context to the parameters of the field; judging is not part of it."""
    model = prior.conditioner
    context, x, truth = _observed(prior, store, rows, device=device)

    def point(steps: int, ms: float, params: Params) -> Point:
        return _point(prior, params, x, truth, steps=steps, ms=ms)

    if isinstance(model, AutoDecoder):
        model.fit(context, steps=1)  # warms up
        fitting, path, spent = model.fitting(context), [], 0.0
        while True:
            z, ms = _timed(lambda: next(fitting, None), device)
            if z is None:
                break
            spent += ms
            path.append((z, spent))
        chosen = sorted({0, *np.geomspace(1, len(path) - 1, JUDGED).round().astype(int).tolist()})
        decoded = [(j, path[j][1], _timed(partial(model.decoder, path[j][0]), device)) for j in chosen]
        return [point(j, spent + ms, params) for j, spent, (params, ms) in decoded]
    points = []
    for steps in [None] if model.inner_steps is None else range(model.inner_steps + 1):
        fits = [_timed(partial(model.trajectory, context, steps=steps), device) for _ in range(1 + REPEATS)]
        points.append(point(steps or 0, statistics.median(ms for _, ms in fits[1:]), fits[0][0][-1]))
    return points


@torch.no_grad()
def refined_curve(prior: Prior, store: Store, rows: Rows, *, spent: float, device: torch.device) -> list[Point]:
    """The same where `conditioning.refine` goes on from the last inner step, which took `spent` milliseconds a shape."""
    context, x, truth = _observed(prior, store, rows, device=device)
    start, points = prior.conditioner(context), []
    prior.refine(start, context, steps=1)  # warms up
    for steps in REFINES:
        params, ms = _timed(partial(prior.refine, start, context, steps=steps), device)
        points.append(_point(prior, params, x, truth, steps=steps, ms=ms + spent * len(rows)))
    return points


def _point(prior: Prior, params: Params, x: Tensor, truth: Tensor, *, steps: int, ms: float) -> Point:
    """ms: of all shapes."""
    mse, _, misclassified = judge(prior.head.to_sdf(field(params, x, prior.conditioner.spec)), truth).mean(1).tolist()
    return Point(steps, ms / len(truth), mse, misclassified)


@torch.no_grad()
def speed(methods: Sequence[Method], store: Store, plan: Plan) -> tuple[Facts, None]:
    """Milliseconds from context to parameters, one shape alone and a shape of a batch, medians of rounds in which all methods take their turn;
    each round has other shapes, of all of which the errors are means."""
    rows = _rows(store, ROUNDS * BATCH, plan)
    rounds = [part for part in np.array_split(rows, ROUNDS) if len(part)]
    ms: dict[str, list[tuple[float, float]]] = {m.cell.method: [] for m in methods}
    errors: dict[str, list[Tensor]] = {m.cell.method: [] for m in methods}
    for part in rounds:
        for (_, name), prior in methods:
            context, x, truth = _observed(prior, store, part, device=plan.device)
            _, alone = _timed(partial(prior.conditioner, Observations(*(each[:1] for each in context))), plan.device)
            params, batched = _timed(partial(prior.conditioner, context), plan.device)
            ms[name].append((alone, batched / len(part)))
            errors[name].append(judge(prior.head.to_sdf(field(params, x, prior.conditioner.spec)), truth)[0])
    table = {
        name: {"alone_ms": statistics.median(a for a, _ in ms[name]), "batched_ms": statistics.median(b for _, b in ms[name]),
               "mse": float(torch.cat(errors[name]).mean())}
        for (_, name), _ in methods
    }  # fmt: skip
    return {"n": len(rows), "rounds": len(rounds), "batch": len(rounds[0]), "speed": table}, None


def _fit(prior: Prior) -> str:
    """What a method does with a new context."""
    model = prior.conditioner
    if isinstance(model, AutoDecoder):
        return f"{model.config.steps} Adam iterations" + (f" of {model.config.points} points" if model.config.points else "")
    return "one pass" if model.inner_steps is None else f"{model.inner_steps} gradient steps"


def _observed(prior: Prior, store: Store, rows: Rows, *, device: torch.device) -> tuple[Observations, Tensor, Tensor]:
    """The contexts that evaluation draws, and where it judges: points (B, M, 2) and true distances (B, M, 1)."""
    e = prior.experiment
    loader = Loader(store, indices=rows, rule=e.context, n_context=e.n_test, n_query=0, batch=len(rows), seed=SEED)
    judged = [loader.shapes.judged(int(row)) for row in rows]
    x, truth = (torch.from_numpy(np.stack(column)).to(device) for column in zip(*judged, strict=True))
    return loader.tasks(rows).context.to(device), x, truth


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What the work gives, and its milliseconds."""
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, (time.perf_counter() - start) * 1e3


def figure_curves(curves: dict[str, list[Point]], *, n: int) -> Figure:
    """MSE and wrong signs against milliseconds a shape, all axes logarithmic; the steps of a method stand beside its points."""
    figure = Figure(figsize=(9.0, 4.2), dpi=128, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    titles = {"mse": "MSE (image sides squared)", "misclassified": "points of the wrong sign (%)"}
    for axes, (value, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name, points in curves.items():
            colour, marker = STYLES[name]
            x, y = [p.ms for p in points], [getattr(p, value) for p in points]
            line = {"marker": marker, "color": colour, "label": "MetaSDF, then Adam" if name == REFINED else LABELS[name], "linewidth": 1.2}
            dense = len(points) > 8  # a curve: marks alone would hide it
            axes.loglog(x, y, markersize=3 if dense else 6, markeredgecolor="white", markeredgewidth=0.4, **line)
            for k in (0, len(points) - 1) if dense else range(len(points) if len(points) > 1 else 0):
                axes.annotate(f"{points[k].steps}", (x[k], y[k]), xytext=(4, 4), textcoords="offset points", size=7, color=colour)
        axes.set_xlabel(f"milliseconds per digit, {n} digits in a batch", size=8, color=INK)
        axes.set_ylabel(title, size=8, color=INK)
        axes.tick_params(which="both", labelsize=7, colors=MUTED)
        axes.grid(True, which="major", color="#dfe3e8", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.08)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


# -- t-SNE ------------------------------------------------------------------------------------------------------------------------------------


def tsne(store: Store, plan: Plan) -> tuple[Facts, Figure]:
    """How the weights of test digits move: t-SNE of phi - theta, by both shipped priors (main paper, section 4).

    Beside the picture, a number that no layout changes: how many digits have a nearest neighbour, in the reduced weights, that is the same digit.
    """
    embed = _tsne()
    rows = _rows(store, TSNE_SHAPES, plan)
    digits = store.arrays["labels"][rows]
    facts: Facts = {"n": len(rows), "perplexity": min(PERPLEXITY, (len(rows) - 1) / 3), "priors": {}}
    panels = {}
    for context, name in SHIPPED.items():
        moved, share = reduced(moves(load(name).to(plan.device), store, rows, device=plan.device), COMPONENTS)
        apart = torch.cdist(moved, moved).fill_diagonal_(torch.inf)
        same = float((digits[apart.argmin(1).numpy()] == digits).mean())
        facts["priors"][name] = {"components": moved.shape[1], "variance": share, "same_digit_nearest": same}
        spots = embed(n_components=2, perplexity=facts["perplexity"], init="pca", random_state=SEED).fit_transform(moved.numpy())
        panels[f"{context}, {len(rows):,} digits: nearest neighbour the same digit {100 * same:.0f} %"] = spots
    return facts, figure_tsne(panels, digits)


def _tsne() -> Any:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UsageError("the figure tsne needs the scikit-learn package", cause="the extra is not installed",
                         fix="pip install 'metasdf[figures]', or name the figures to draw with --only") from error  # fmt: skip
    return TSNE


@torch.no_grad()
def moves(prior: Prior, store: Store, rows: Rows, *, device: torch.device) -> Float[Tensor, "n p"]:
    """phi - theta of every shape, all parameters of the field in a row."""
    moved = torch.empty(len(rows), prior.conditioner.spec.n_params)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        theta, *_, phi = prior.conditioner.trajectory(_observed(prior, store, part, device=device)[0])
        own = [(after - before).flatten(1) for layers in zip(phi, theta, strict=True) for after, before in zip(*layers, strict=True)]
        moved[start : start + BATCH] = torch.cat(own, 1).cpu()
    return moved


def reduced(rows: Float[Tensor, "n p"], components: int) -> tuple[Float[Tensor, "n k"], float]:
    """The first principal components of rows, at most n - 1, and their share of the variance. Exact: by the n x n products, as n is less than p."""
    rows = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    k = min(components, len(rows) - 1)
    values, total = values.clamp(min=0), float(values.sum())
    return (vectors[:, -k:] * values[-k:].sqrt()).flip(1).float(), float(values[-k:].sum()) / total


def figure_tsne(panels: dict[str, NDArray[np.floating]], digits: NDArray[np.integer]) -> Figure:
    figure = Figure(figsize=(4.5 * len(panels), 4.7), dpi=128, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, (title, spots) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for digit in np.unique(digits):
            own = spots[digits == digit]
            axes.scatter(*own.T, marker=f"${digit}$", s=16, linewidths=0.2, color=TEN_COLOURS[digit % 10])
        axes.set_title(title, size=9, color=INK)
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2", aspect="equal", adjustable="datalim")
        axes.xaxis.label.set(size=8, color=MUTED)
        axes.yaxis.label.set(size=8, color=MUTED)
        axes.spines[:].set_color("#dfe3e8")
    return figure


# -- the page ---------------------------------------------------------------------------------------------------------------------------------

TITLES = {
    **{QUALITATIVE + name: f"Test shapes: {column.title}" for name, column in COLUMNS.items()},
    "steps-against-iterations": "Steps against iterations", "tsne": "Adapted weights", "field-per-step": "The field after each step",
    "speed": "Time to fit a shape",
}  # fmt: skip
TEXTS = {
    "qualitative": "Truth, and the field that each method makes of {context}. Test shapes of different digits, drawn by the seed.",
    "steps-against-iterations": "Error against test time on one batch of digits, dense context: MetaSDF from 0 to its last step, and "
                                "refined by steps of Adam after that where it is shown (each number a fit by itself), auto-decoders from "
    "0 to their last Adam iteration, set encoders at their only pass. Small numbers are steps. Times exclude judging.",
    "tsne": "t-SNE (perplexity {perplexity:.0f}) of phi - theta, all parameters of the field, reduced to 50 principal components before. Each mark "
    "is a test digit. Distances between groups mean nothing; the share in the title is counted before t-SNE.",
    "field-per-step": "Two digits by the shipped priors, from the learned initialisation (start) to the last of five steps.",
    "speed": "From context to the parameters of the field, dense context: one shape alone, and a shape in a batch of {batch}; medians of {rounds} "
    "rounds in which all methods take their turn. MSE over the same shapes.",
}  # fmt: skip


def write_page(results: Path, pictures: Path, page: Path) -> None:
    """The page of all figures whose numbers are in `results`."""
    text = ["# Figures: 2D\n", "Written by `metasdf reproduce figures`; the numbers of each are a file of that name in results/figures.\n"]
    for name in NAMES:
        path = results / f"{name}.json"
        if not path.exists():
            continue
        facts = json.loads(path.read_text())
        text.append(f"## {TITLES[name]}\n")
        if "speed" in facts:
            text += ["| method | fit | ms alone | ms in a batch | MSE x 1e-6 |", "|---|---|---|---|---|"]
            for m in facts["methods"]:
                r = facts["speed"][m["method"]]
                mse = "not finite" if r["mse"] is None else f"{r['mse'] * 1e6:,.1f}"
                text.append(f"| {m['label']} | {m['fit']} | {r['alone_ms']:,.1f} | {r['batched_ms']:,.1f} | {mse} |")
            text.append("")
        else:
            link = Path(os.path.relpath((pictures / f"{name}.png").absolute(), page.parent.absolute())).as_posix()
            text.append(f"![{TITLES[name]}]({link})\n")
        methods = [f"{m['label']} ({_training(m)}, preset {m['preset']}, {m['fit']})" for m in facts.get("methods", ())]
        by = "; ".join(methods or facts["priors"])
        what = TEXTS["qualitative" if name.startswith(QUALITATIVE) else name].format(**facts)
        warning = "" if facts["comparable"] else " **A try on the 100 digits of the package, comparable with nothing.**"
        if "curves" in facts:
            what += _in_the_same_time(facts)
        text.append(f"{what} n = {facts['n']:,}, seed {facts['seed']}. Priors: {by}. {facts['hardware']} (commit {facts['commit']}).{warning}\n")
    write_whole(page, "\n".join(text).encode())


def _in_the_same_time(facts: Facts) -> str:
    """Where auto-decoders are when MetaSDF is done."""
    labels, curves = {m["method"]: m["label"] for m in facts["methods"]}, facts["curves"]
    if "metasdf" not in curves:
        return ""
    done, told = curves["metasdf"][-1], [""]
    for method, curve in curves.items():
        if method not in ("metasdf", REFINED) and len(curve) > 1:
            there = [point for point in curve if point["ms"] <= done["ms"] or not point["steps"]][-1]
            told.append(f"{labels[method]} has by then made {there['steps']:,} iterations and has {there['mse'] * 1e6:,.1f}e-6, in the end "
                        f"{curve[-1]['mse'] * 1e6:.1f}e-6.")  # fmt: skip
    if len(told) == 1:
        return ""
    for point in curves.get(REFINED, [])[2::2]:
        told.append(f"Refined by {point['steps']} steps of Adam MetaSDF has {point['mse'] * 1e6:.1f}e-6 after {point['ms']:,.0f} ms.")
    return f" MetaSDF is done after {done['ms']:,.0f} ms, with an MSE of {done['mse'] * 1e6:.1f}e-6;" + " ".join(told)
