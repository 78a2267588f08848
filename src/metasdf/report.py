"""Pictures of fields over the inner steps: for training runs, the demo page and reconstructions.

Every function takes arrays and returns a `Figure` of matplotlib's object interface, drawn by Agg: no windows, no global state, so that
pictures can be drawn in the middle of a training. Panels show the image square [-0.5, 0.5]^2, y down, distances in image sides.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import FuncNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metasdf.conditioning.base import Conditioner
from metasdf.data.loader import ImageShapes, Loader
from metasdf.data.store import Store
from metasdf.experiments import Experiment
from metasdf.fields import field
from metasdf.files import write_whole
from metasdf.geometry.image import contour_lines
from metasdf.heads import make_head

FloatArray = NDArray[np.floating]

DISTANCE_COLOURS = "RdBu"  # red inside, white at the zero level, blue outside
ERROR_COLOURS = "magma"  # black where there is no error
INK, MUTED, BROKEN = "#1b1f24", "#667080", "#c9ced6"
GAP, LINE = 0.06, 0.13  # between panels, and the height of a line of text, in panel sides
BAR_TICKS = (-0.3, -0.1, -0.02, 0.0, 0.02, 0.1, 0.3, 0.5)
ISOLINE = 0.05  # distance from one thin line of a field to the next, in image sides


class Steps(NamedTuple):
    """One shape on its way: context x (N, 2) with distances (N,), zeros for surface points; fields (k + 1, R, R); truth (R, R) or None."""

    x: FloatArray
    s: FloatArray
    fields: FloatArray
    truth: FloatArray | None
    label: str = ""

    @property
    def mse(self) -> list[float]:
        """Of each field; NaN for one that is not finite, and where the truth is not known."""
        truth = np.nan if self.truth is None else self.truth
        return np.square(self.fields - truth).mean((1, 2), dtype=np.float64).tolist()


def draw_steps(
    model: Conditioner, store: Store, indices: NDArray[np.int64], experiment: Experiment, *, path: Path, device: torch.device
) -> None:
    """Fit the shapes at `indices` (up to 4) and write a PNG: one row each, with the context, the field after every inner step, truth, error.

    A picture is never worth a training: a failure becomes a RuntimeWarning that names it.
    """
    try:
        rows = fit_steps(model, store, indices[:4], experiment, device=device)
        write_whole(path, png(figure_steps(rows)))
    except Exception as error:
        warnings.warn(f"the picture {path.name} could not be drawn: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)


@torch.no_grad()
def fit_steps(
    model: Conditioner, store: Store, indices: NDArray[np.int64], experiment: Experiment, *, device: torch.device, labels: Sequence[str] = ()
) -> list[Steps]:
    """The fields of shapes of a store on their pixel grid, before and after each inner step; contexts are drawn as evaluation draws them."""
    loader = Loader(
        store, indices=indices, rule=experiment.context, n_context=experiment.n_test, n_query=0, batch=len(indices), seed=experiment.train.seed
    )
    context = loader.tasks(indices).context
    shapes = ImageShapes(store)
    head, side = make_head(experiment.head, experiment.outer_norm), shapes.resolution
    x = torch.from_numpy(shapes.grid).to(device).expand(len(indices), -1, -1)
    path = model.trajectory(context.to(device))
    fields = torch.stack([head.to_sdf(field(params, x, model.spec)) for params in path], 1).cpu().numpy().reshape(len(indices), len(path), side, side)
    return [
        Steps(context.x[k].numpy(), context.y[k, :, 0].numpy(), fields[k], shapes[int(i)].s.reshape(side, side),
              labels[k] if labels else f"shape {int(i)}")
        for k, i in enumerate(indices)
    ]  # fmt: skip


def figure_steps(rows: Sequence[Steps], *, panel: float = 1.25) -> Figure:
    """Rows of panels: context on the true shape, the field at the initialisation and after each step, truth, |error| of the last step.

    Colours share their limits within a row; the black line is a field's zero level, the dashed one the true contour. `panel` is in inches.
    """
    titles = ["context", *_step_titles(len(rows[0].fields)), *(["truth", "|error|"] if rows[0].truth is not None else [])]
    width, height = len(titles) * (1 + GAP) - GAP, len(rows) * (1 + GAP + LINE)
    figure, axes = _canvas(width, height + LINE, panel=panel, top=LINE)
    size = 6.4 * panel
    for column, title in enumerate(titles):
        axes.text(column * (1 + GAP) + 0.5, -0.04, title, ha="center", va="bottom", size=size, color=INK)
    for index, row in enumerate(rows):
        top = index * (1 + GAP + LINE)
        corners = [(column * (1 + GAP), top) for column in range(len(titles))]
        _draw_row(axes, row, corners, size=size)
    return figure


def figure_fields(titles: Sequence[str], rows: Sequence[Steps], *, note: str = "", panel: float = 1.25) -> Figure:
    """Rows of panels: a shape's true distances, then its fields, one under each title, with the MSE below. All share the colours of one bar.

    The black line is the zero level, the dashed one the true contour, thin ones lie ISOLINE apart. `panel` is in inches, `note` below all.
    """
    lines = 1 + max(title.count("\n") for title in titles)
    width, height, top = (len(titles) + 1) * (1 + GAP) - GAP, len(rows) * (1 + GAP + LINE), LINE * lines
    bar, bottom = 0.55, LINE if note else 0.0
    figure, axes = _canvas(width + bar, height + top + bottom, panel=panel, top=top)
    truths = [np.asarray(row.truth) for row in rows]
    size, norm = 6.4 * panel, _norm(_limit(np.stack(truths)))
    for column, title in enumerate(("truth", *titles)):
        axes.text(column * (1 + GAP) + 0.5, -0.04, title, ha="center", va="bottom", size=size, color=INK)
    for index, (row, truth) in enumerate(zip(rows, truths, strict=True)):
        notes = [row.label, *map(_mse_note, row.mse)]
        for column, (values, text) in enumerate(zip((truth, *row.fields), notes, strict=True)):
            corner = (column * (1 + GAP), index * (1 + GAP + LINE))
            _draw_field(axes, corner, values, norm, truth=contour_lines(truth) if column else (), isolines=True)
            axes.text(corner[0] + 0.5, corner[1] + 1.03, text, ha="center", va="top", size=0.85 * size, color=MUTED)
    axes.text(0.0, height + 0.02, note, va="top", size=0.85 * size, color=MUTED)
    cax = axes.inset_axes((width + 0.1, 0.0, 0.07, height - GAP - LINE), transform=axes.transData)
    colours = figure.colorbar(ScalarMappable(norm, DISTANCE_COLOURS), cax=cax, ticks=[d for d in BAR_TICKS if abs(d) <= float(norm.vmax or 0)])
    colours.set_label("signed distance (image sides)", size=0.85 * size, color=MUTED)
    cax.tick_params(labelsize=0.75 * size, colors=MUTED)
    return figure


def figure_fit(
    x: FloatArray, s: FloatArray | None, values: FloatArray, *, centres: tuple[FloatArray, FloatArray], unit: str, y_up: bool = False,
    title: str = "", image: NDArray[np.uint8] | None = None,
) -> Figure:  # fmt: skip
    """A reconstruction in the user's own units: what was observed of the shape, and its fitted field with the zero level.

    x (N, 2) and s (N,) are the context, s None for surface points; `values` (R, R) lie at x = centres[0][j], y = centres[1][i].
    `image` (H, W) is drawn under the context, where the units are its pixels.
    """
    figure = Figure(figsize=(7.6, 3.7), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, size=9, color=INK, parse_math=False)  # a file name may hold dollars
    norm = _norm(_limit(values))
    edges = [(c[0] - (c[1] - c[0]) / 2, c[-1] + (c[1] - c[0]) / 2) for c in centres]
    panels = [figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)]
    for axes, name in zip(panels, (f"context: {len(x):,} {'surface points' if s is None else 'SDF samples'}", "fitted SDF"), strict=True):
        axes.set_title(name, size=8, color=INK)
        axes.set(xlim=edges[0], ylim=edges[1] if y_up else edges[1][::-1], aspect="equal")
        axes.tick_params(labelsize=7, colors=MUTED)
        axes.locator_params(nbins=5)
        axes.xaxis.get_offset_text().set(size=6, color=MUTED)
        axes.yaxis.get_offset_text().set(size=6, color=MUTED)
    if image is not None:
        panels[0].imshow(image[:: 1 + len(image) // 1000, :: 1 + image.shape[1] // 1000], cmap="Greys", vmin=0, vmax=1500,
                         extent=(0, image.shape[1], image.shape[0], 0), interpolation="nearest")  # fmt: skip
        panels[0].set(xlim=edges[0], ylim=edges[1][::-1])
    if s is None:
        panels[0].scatter(x[:, 0], x[:, 1], s=2.5, c=INK, linewidths=0)
    else:
        panels[0].set_facecolor("#f2f4f6")  # distances near zero are white
        panels[0].scatter(x[:, 0], x[:, 1], s=4, c=s, cmap=DISTANCE_COLOURS, norm=norm, linewidths=0)
    mesh = panels[1].pcolormesh(*centres, values, cmap=DISTANCE_COLOURS, norm=norm, shading="nearest", rasterized=True)
    side = edges[0][1] - edges[0][0]
    panels[1].contour(*centres, values, levels=np.arange(-16, 17) * side / 32, colors=INK, linewidths=0.35, linestyles="-", alpha=0.25)
    panels[1].contour(*centres, values, levels=[0.0], colors=INK, linewidths=1.4)
    bar = figure.colorbar(mesh, ax=panels, shrink=0.85)
    bar.ax.tick_params(labelsize=7, colors=MUTED)
    bar.set_label(f"signed distance ({unit})", size=7, color=MUTED)
    return figure


def figure_curve(curves: dict[str, Sequence[float]], *, ylabel: str = "MSE") -> Figure:
    """Error after each inner step on a logarithmic axis, one line per prior."""
    figure = Figure(figsize=(5.2, 3.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, values), colour, marker in zip(curves.items(), ("#2166ac", "#b2182b", "#4d9221", "#8073ac"), "osD^", strict=False):
        last = (len(values) - 1, values[-1])
        axes.semilogy(range(len(values)), values, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)
        axes.annotate(f"{last[1]:.1e}", last, xytext=(6, 0), textcoords="offset points", size=7, color=colour, va="center")
    axes.set_xlabel("gradient steps", size=8, color=INK)
    axes.set_ylabel(ylabel, size=8, color=INK)
    steps = max(len(values) for values in curves.values())
    axes.set(xticks=range(steps), xlim=(-0.2, steps - 1 + 0.75))
    axes.tick_params(labelsize=7, colors=MUTED)
    axes.grid(True, which="major", color="#dfe3e8", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a file name in another script: a box will do
        FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()


def _mse_note(mse: float) -> str:
    return f"MSE {mse:.1e}" if np.isfinite(mse) else "not finite"


def _step_titles(n: int) -> list[str]:
    return ["fitted"] if n == 1 else ["start", *(f"step {j}" for j in range(1, n))]


def _canvas(width: float, height: float, *, panel: float, top: float) -> tuple[Figure, Axes]:
    """One pair of axes for all panels, in panel sides: dozens of axes would take longer to lay out than to draw."""
    margin = 0.1
    figure = Figure(figsize=((width + 2 * margin) * panel, (height + 2 * margin) * panel), dpi=128, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(-margin, width + margin), ylim=(height - top + margin, -top - margin))
    axes.set_axis_off()
    return figure, axes


def _draw_row(axes: Axes, row: Steps, corners: list[tuple[float, float]], *, size: float) -> None:
    norm = _norm(_limit(row.truth if row.truth is not None else row.fields[-1]))
    truth = [] if row.truth is None else contour_lines(row.truth)
    small = 0.85 * size

    left, top = corners[0]
    if row.truth is not None:
        _draw_image(axes, corners[0], np.where(row.truth < 0, 0.15, 0.03), "Greys", Normalize(0.0, 1.0))
    colours = colormaps[DISTANCE_COLOURS](norm(row.s)) if row.s.any() else INK
    axes.scatter(row.x[:, 0] + left + 0.5, row.x[:, 1] + top + 0.5, s=1.8 if row.s.any() else 1.0, c=colours, linewidths=0)
    _draw_frame(axes, corners[0])
    axes.text(left + 0.5, top + 1.03, row.label, ha="center", va="top", size=small, color=MUTED)

    for values, mse, corner in zip(row.fields, row.mse, corners[1:], strict=False):
        _draw_field(axes, corner, values, norm, truth=truth)
        if row.truth is not None:
            axes.text(corner[0] + 0.5, top + 1.03, _mse_note(mse), ha="center", va="top", size=small, color=MUTED)

    if row.truth is not None:
        _draw_field(axes, corners[-2], row.truth, norm)
        error = np.abs(row.fields[-1] - row.truth)
        top_error = float(np.max(error, where=np.isfinite(error), initial=1e-6))
        _draw_image(axes, corners[-1], error, ERROR_COLOURS, Normalize(0.0, top_error))
        _draw_lines(axes, corners[-1], truth, linestyles=(0, (2, 1.5)), linewidths=0.6, colors="white")
        _draw_frame(axes, corners[-1])
        axes.text(corners[-1][0] + 0.5, top + 1.03, f"0 to {top_error:.2g}", ha="center", va="top", size=small, color=MUTED)


def _draw_field(
    axes: Axes, corner: tuple[float, float], values: FloatArray, norm: Normalize, *, truth: Sequence[FloatArray] = (), isolines: bool = False
) -> None:  # fmt: skip
    _draw_image(axes, corner, values, DISTANCE_COLOURS, norm)
    if np.isfinite(values).all():
        if isolines:
            low, high = (int(d // ISOLINE) for d in np.clip((values.min(), values.max()), norm.vmin, norm.vmax))
            thin = [line for level in range(low + 1, high + 1) if level for line in contour_lines(values - level * ISOLINE)]
            _draw_lines(axes, corner, thin, linewidths=0.3, colors=INK, alpha=0.4)
        _draw_lines(axes, corner, truth, linestyles=(0, (2, 1.5)), linewidths=0.6, colors=MUTED)
        _draw_lines(axes, corner, contour_lines(values), linewidths=1.1, colors=INK)
    _draw_frame(axes, corner)


def _draw_image(axes: Axes, corner: tuple[float, float], values: FloatArray, colours: str, norm: Normalize) -> None:
    left, top = corner
    palette = colormaps[colours].with_extremes(bad=BROKEN)
    axes.imshow(values, cmap=palette, norm=norm, extent=(left, left + 1, top + 1, top), aspect="auto", interpolation="nearest")


def _draw_lines(axes: Axes, corner: tuple[float, float], lines: Sequence[FloatArray], **style: object) -> None:
    shift = np.asarray(corner) + 0.5
    axes.add_collection(LineCollection([line + shift for line in lines], **style), autolim=False)  # type: ignore[arg-type]


def _draw_frame(axes: Axes, corner: tuple[float, float]) -> None:
    left, top = corner
    axes.plot([left, left + 1, left + 1, left, left], [top, top, top + 1, top + 1, top], color="#dfe3e8", linewidth=0.6)


def _limit(values: FloatArray) -> float:
    """The largest finite magnitude: symmetric colour limits that put white at zero."""
    magnitude = np.abs(values)
    return float(np.max(magnitude, where=np.isfinite(magnitude), initial=1e-6))


def _norm(limit: float) -> Normalize:
    """Colours by the square root of the distance, white at zero: the inside of a pen stroke is 20 times shallower than the outside is deep."""
    return FuncNorm((lambda s: np.sign(s) * np.sqrt(np.abs(s)), lambda r: np.sign(r) * np.square(r)), vmin=-limit, vmax=limit, clip=True)
