"""Files in, signed distance functions out: a silhouette, SDF samples or bare surface points -> grid, picture, contour and summary.

Everything written is in the input's own units. For images these are pixels: pixel (i, j) spans [j, j+1] x [i, i+1], so its centre is
(j + 0.5, i + 0.5), as in SVG. Distances are negative inside.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import torch
from numpy.typing import NDArray

from metasdf.errors import InputError, UsageError
from metasdf.familiar import Points, doubt
from metasdf.files import write_whole
from metasdf.geometry.frame import Frame
from metasdf.geometry.image import (
    IMAGE_SUFFIXES,
    Foreground,
    contour_lines,
    contour_points,
    mask_from_image,
    pixel_grid,
    read_silhouette,
    sdf_from_mask,
)
from metasdf.geometry.samples import looks_signed, zero_crossings
from metasdf.geometry.tables import must_exist, read_npy, read_text
from metasdf.inputs import Failure, each, free_name, naming, said_steps
from metasdf.prior import MAX_CONTEXT, SDF, Prior
from metasdf.tasks import ShapeSamples, dense, draw_surface

Array = NDArray[np.float64]
Columns = Literal["xy", "xys"]

TEXT_SUFFIXES = (".csv", ".txt", ".xyz")
OUTPUTS = (".npz", ".png", ".svg", ".json")
FORMAT = "metasdf-reconstruction-1"  # how a summary of ours is told from another file of the same name
DISTANCE_NAMES = {"s", "sdf", "d", "distance", "value"}
CAUSES = "another kind of shape, one upside down (--y-up) or turned, or few points"
FAR = 1000.0  # times the side of the square: beyond, single precision would show in a drawing
_POINTS = 1  # key of the random stream of context points, as in evaluation (data.loader)


class Observed(NamedTuple):
    """What a file shows. x (N, 2) in its own units, with s (N,) for samples; for an image both are absent and `image` is (H, W), shape bright."""

    kind: Literal["image", "samples", "points"]
    x: Array | None
    s: Array | None
    image: NDArray[np.uint8] | None
    units: str


class Context(NamedTuple):
    """What a prior is given: x (N, 2), s (N,) or None for surface points, the frame (None: the prior finds it), and remarks for the user."""

    x: Array
    s: Array | None
    frame: Frame | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What was done, as written to NAME.json. `residual` is in `units`; what it measures is said by `residual_of`."""

    input: str
    name: str
    prior: str
    kind: str
    units: str
    y: Literal["down", "up"]
    image_size: tuple[int, int] | None  # width, height in pixels
    observations: int  # pixels, samples or points in the file
    context: int  # how many of them, or points of their contour, the prior was given
    frame: dict[str, object]  # field = (x - centre) * scale; the field's domain is [-0.5, 0.5]^2
    steps: int
    refine: int  # of Adam, after these
    seed: int
    resolution: int
    fit_ms: float
    residual: float
    residual_of: str
    notes: tuple[str, ...]
    files: tuple[str, ...]
    format: str = FORMAT


# -- from files ------------------------------------------------------------------------------------------------------------------------


def read_observations(path: str | Path, *, columns: Columns | None = None, foreground: Foreground = "auto") -> Observed:
    """Read a silhouette (.png .jpg .bmp), or points and SDF samples: .npy of shape (N, 2) or (N, 3), .csv .txt .xyz with those columns.

    columns: "xy" or "xys" says what the columns are. Otherwise a header does (x,y or x,y,s), or their number; three unnamed columns must
    look like signed distances, so that 3D points are not taken for them. `foreground` is for images: see `geometry.image.read_silhouette`.
    Raises UsageError if there is no such file, and InputError, with file and line, for what cannot be used.
    """
    path = Path(path)
    must_exist(path, fix="pass image, .npy or .csv files")
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return Observed("image", None, None, read_silhouette(path, foreground=foreground), "pixels")
    named = False
    if suffix == ".npy":
        rows = read_npy(path, widths=(2, 3), expected="(N, 2) points or (N, 3) samples x, y, s",
                        fix="save an image as .png, points as an (N, 2) array")  # fmt: skip
    elif suffix in TEXT_SUFFIXES:
        rows, names, where = read_text(path, partial(_header, columns=columns))
        named = names is not None
        if rows.shape[1] not in (2, 3):
            cause = "another kind of data, or decimal commas" if rows.shape[1] > 3 else "columns separated by something else than commas or blanks"
            raise InputError(f"the line has {rows.shape[1]} columns, not 2 (x, y) or 3 (x, y, s)", where=where, cause=cause)
        if names and columns is None:
            rows = rows[:, [names.index(name) for name in "xys"[: len(names)]]]
    else:
        raise InputError(f"files of type {suffix or '(none)'} cannot be read", where=path, cause="another format, or a missing ending",
                         fix=f"convert it to one of {', '.join((*IMAGE_SUFFIXES, '.npy', *TEXT_SUFFIXES))}")  # fmt: skip
    if columns is not None and rows.shape[1] != len(columns):
        raise InputError(f"there are {rows.shape[1]} columns, not {len(columns)}", where=path, cause=f"columns={columns!r} does not fit the file")
    if len(rows) < 3:
        raise InputError(f"{len(rows)} points cannot show a shape", where=path, fix="give at least 3, better several hundred")
    if rows.shape[1] == 2:
        return Observed("points", rows, None, None, "units of the input")
    if not rows[:, 2].any():
        raise InputError("every distance is zero, so these are surface points", where=path, cause="points of a plane in 3D, or no distances at all",
                         fix="leave out the third column, and use a level-set prior")  # fmt: skip
    if columns is None and not named and not looks_signed(rows[:, :2], rows[:, 2]):
        raise InputError("three columns do not look like x, y, s: neighbouring points differ by more than any distance function can", where=path,
                         cause="3D points for a 2D prior? Or distances in other units than the coordinates",
                         fix="give x, y, s in the same units; if they are, say so with a header line: x,y,s")  # fmt: skip
    return Observed("samples", rows[:, :2], rows[:, 2], None, "units of the input")


def _header(names: list[str], where: str, comment: bool, *, columns: Columns | None) -> list[str] | None:
    """What the columns are: x, y and, if there, s. None for a comment that is no header."""
    if columns and not comment:
        return list(columns) if len(columns) == len(names) else ["_"] * len(names)
    found = ["s" if name.lower() in DISTANCE_NAMES else name.lower() for name in names]
    if set(found) >= {"x", "y", "z"}:
        raise InputError("the header says x, y, z: these are 3D points for a 2D prior", where=where, cause="a scan, or a mesh's vertices",
                         fix="give 2D points with a header x,y, or samples with a header x,y,s")  # fmt: skip
    if sorted(found) not in (["x", "y"], ["s", "x", "y"]):
        if comment:
            return None
        raise InputError(f"the columns {', '.join(names)[:80]} are not known", where=where, cause="a header with other names",
                         fix="name them x,y for points or x,y,s for signed distances")  # fmt: skip
    return found


# -- what the prior is given -----------------------------------------------------------------------------------------------------------


def context_for(observed: Observed, prior: Prior, *, seed: int = 0) -> Context:
    """The context that `prior` needs from what was observed, in the input's units.

    An image is cut to the square around its shape and sampled there as the training images were; a level-set prior gets its contour, a
    dense prior its signed distances. From SDF samples a level-set prior gets the points where they cross zero.
    """
    rng = np.random.default_rng((seed, _POINTS, 0, 0))
    n = prior.experiment.n_test
    if observed.image is not None:
        return _context_of_image(observed.image, prior, rng, n)
    assert observed.x is not None
    if observed.s is None:
        return Context(observed.x, None, None)
    surface = zero_crossings(observed.x, observed.s)
    frame = prior.frame_of(surface)
    if not prior.needs_values:
        return Context(draw_surface(rng, surface, n), None, frame)
    near = np.asarray(np.abs(frame.to_field(observed.x)).max(1) <= 0.5 + 1e-6)
    left_out = int((~near).sum())
    note = f"{left_out:,} of {len(near):,} samples lie outside the square the prior knows and were left out"
    return Context(observed.x[near], observed.s[near], frame, (note,) if left_out else ())


def crop_around(image: NDArray[np.uint8], *, extent: float) -> tuple[NDArray[np.uint8], Frame]:
    """The square part of an image (H, W) in which the longest side of the shape's bounding box takes `extent` of the side, and its frame.

    Where the square leaves the image it is filled with background. Whole pixels: nothing is resampled here, so the frame is exact.
    """
    i, j = np.nonzero(image > 127)
    if not len(i):
        raise InputError("the image shows only background", cause="a blank image", fix="use an image that shows a shape")
    top, bottom, left, right = int(i.min()), int(i.max()) + 1, int(j.min()), int(j.max()) + 1
    longest = max(bottom - top, right - left)
    side = max(round(longest / extent), longest + 2)  # at least one pixel of background on every side
    first_row, first_col = (top + bottom - side) // 2, (left + right - side) // 2
    square = np.zeros((side, side), np.uint8)
    low_row, low_col = max(first_row, 0), max(first_col, 0)
    part = image[low_row : first_row + side, low_col : first_col + side]
    square[low_row - first_row :, low_col - first_col :][: part.shape[0], : part.shape[1]] = part
    return square, Frame((first_col + side / 2, first_row + side / 2), 1 / side)


def _context_of_image(image: NDArray[np.uint8], prior: Prior, rng: np.random.Generator, n: int) -> Context:
    square, frame = crop_around(image, extent=prior.extent)
    resolution = int(prior.card.get("data", {}).get("resolution", 64))
    sdf = sdf_from_mask(mask_from_image(square, resolution))
    if not prior.needs_values:
        return Context(frame.from_field(draw_surface(rng, contour_points(sdf), n)), None, frame)
    samples = ShapeSamples(pixel_grid(resolution), sdf.reshape(-1, 1), np.zeros((0, 2), np.float32))
    drawn = dense(rng, samples, n_context=min(n, resolution**2), n_query=0)
    return Context(frame.from_field(drawn.context_x), drawn.context_y[:, 0].astype(np.float64) / frame.scale, frame)


# -- reconstruction --------------------------------------------------------------------------------------------------------------------


def reconstruct(
    path: str | Path, prior: Prior, out: str | Path, *, resolution: int = 128, steps: int | None = None, refine: int = 0, seed: int = 0,
    y_up: bool = False, columns: Columns | None = None, foreground: Foreground = "auto", name: str | None = None,
) -> Summary:  # fmt: skip
    """Fit a prior to one file and write OUT/NAME.npz, .png, .svg and .json, each whole or not at all.

    NAME is the file's stem; if that belongs to another input or to a file of the user's, the stem with the ending (digit-csv).
    .npz holds `sdf` (R, R) float32 at the coordinates `x` (R,) and `y` (R,): sdf[i, j] is the distance at (x[j], y[i]).
    y_up: the y axis of points and samples points up; y of images always points down. A prior knows shapes as they look in an image.
    steps, refine: of the fit, as in `Prior.adapt`.
    Raises InputError for data that cannot be used and where the fit shows no surface, UsageError for a request that cannot be; nothing is written
    then.
    """
    path, out = Path(path), Path(out)
    prior.check_refine(refine)
    if not 8 <= resolution <= 4096:
        raise UsageError("the resolution must lie between 8 and 4096", where=f"resolution={resolution}", fix="use 128")
    if steps is not None and steps < 1:
        raise UsageError("at least one step is needed", where=f"steps={steps}", fix=f"leave it out, or use {prior.experiment.inner.steps}")
    if prior.dim != 2:
        raise UsageError(f"{prior.name} is a prior of {prior.dim}D shapes", where=path, fix="use a 2D prior")
    with naming(path):
        observed = read_observations(path, columns=columns, foreground=foreground)
        flip = y_up and observed.x is not None
        if flip:
            assert observed.x is not None
            observed = observed._replace(x=observed.x * (1.0, -1.0))
        context = context_for(observed, prior, seed=seed)
        start = time.perf_counter()
        sdf = prior.adapt(context.x, context.s, frame=context.frame, steps=steps, refine=refine)
        if sdf.params[0].weight.is_cuda:
            torch.cuda.synchronize(sdf.params[0].weight.device)
        milliseconds = (time.perf_counter() - start) * 1e3
        values, lines, closed = _sample(sdf, resolution, after=said_steps(len(sdf.path) - 1, refine))
    residual = sdf(context.x)
    notes = context.notes
    if len(context.x) > MAX_CONTEXT:
        notes += (f"{MAX_CONTEXT:,} of the {len(context.x):,} were drawn for the fit; the residual is of all",)
    if odd := doubt(prior, sdf, Points(context.x, context.s), len(context.x), units=observed.units, causes=CAUSES):
        notes += (odd,)
    if not closed:
        notes += ("the shape reaches the edge of the square the prior knows, and was cut off there",)
    name = name or free_name(path, out, outputs=OUTPUTS, form=FORMAT)
    size = None if observed.image is None else (observed.image.shape[1], observed.image.shape[0])
    summary = Summary(
        input=str(path), name=name, prior=prior.name, kind=observed.kind, units=observed.units, y="up" if flip else "down", image_size=size,
        observations=observed.image.size if observed.image is not None else len(observed.x if observed.x is not None else ()), context=len(context.x),
        frame={"centre": [sdf.frame.centre[0], -sdf.frame.centre[1] if flip else sdf.frame.centre[1]], "scale": sdf.frame.scale},
        steps=len(sdf.path) - 1, refine=refine, seed=seed, resolution=resolution, fit_ms=round(milliseconds, 3),
        residual=float(np.mean(np.abs(residual if context.s is None else residual - context.s))),
        residual_of="mean |sdf| at the surface points of the context" if context.s is None else "mean |sdf - s| at the samples of the context",
        notes=notes, files=tuple(name + suffix for suffix in OUTPUTS),
    )  # fmt: skip
    _write(out, summary, _files(summary, observed, context, sdf.frame, values, lines, flip=flip))
    return summary


def reconstruct_many(
    paths: Iterable[str | Path], prior: Prior, out: str | Path, *, resolution: int = 128, steps: int | None = None, refine: int = 0, seed: int = 0,
    y_up: bool = False, columns: Columns | None = None, foreground: Foreground = "auto", say: Callable[[str], None] = print,
) -> list[Failure]:  # fmt: skip
    """`reconstruct` each file, going on after one that fails; all failures are told at the end and returned (none: an empty list)."""
    taken: set[str] = set()

    def one(path: Path) -> list[str]:
        name = free_name(path, Path(out), taken, outputs=OUTPUTS, form=FORMAT)
        done = reconstruct(
            path, prior, out, resolution=resolution, steps=steps, refine=refine, seed=seed, y_up=y_up, columns=columns, foreground=foreground,
            name=name,
        )  # fmt: skip
        taken.add(name)
        line = (f"{path}: {done.kind}, {done.context:,} context points, {said_steps(done.steps, done.refine)} in {done.fit_ms:.0f} ms, "
                f"residual {done.residual:.3g} {done.units} -> {Path(out) / name}.svg .png .npz .json")  # fmt: skip
        return [line, *(f"  note: {note}" for note in done.notes)]

    return each(paths, one, say=say)


def _sample(sdf: SDF, resolution: int, *, after: str) -> tuple[Array, list[Array], bool]:
    """The field on the centres of R x R cells of its square (R, R), its zero level as closed lines (user's units, y down), and whether it
    stays inside the square. Raises InputError where there is none."""
    values = sdf(sdf.frame.from_field(pixel_grid(resolution).astype(np.float64))).reshape(resolution, resolution)
    if not np.isfinite(values).all():
        raise InputError(f"the fit diverged: the field is not finite after {after}",
                         cause="observations unlike the shapes of the prior, or too many steps",
                         fix="use fewer steps, or another prior")  # fmt: skip
    if (values > 0).all() or (values <= 0).all():
        raise InputError(f"the fitted field has no zero level after {after}: it is {'outside' if values.flat[0] > 0 else 'inside'} everywhere",
                         cause="observations unlike the shapes of the prior (upside down? then y_up), or too few of them",
                         fix="try --y-up, more points, another prior or another number of steps")  # fmt: skip
    border = np.concatenate((values[0], values[-1], values[:, 0], values[:, -1]))
    # A ring of outside values closes the lines that would leave the square.
    ring = np.pad(values, 1, constant_values=float(np.abs(values).max()))
    lines = [line.astype(np.float64) * (resolution + 2) / resolution for line in contour_lines(ring)]
    return values, [sdf.frame.from_field(line) for line in lines if len(line) > 3], bool((border > 0).all())


# -- what is written -------------------------------------------------------------------------------------------------------------------


def _files(
    summary: Summary, observed: Observed, context: Context, frame: Frame, values: Array, lines: list[Array], *, flip: bool
) -> dict[str, bytes]:
    from metasdf.report import figure_fit, png  # matplotlib is slow to import, and many who import this module only read files

    centres = (np.arange(summary.resolution) + 0.5) / summary.resolution - 0.5
    x, y = frame.from_field(np.column_stack((centres, centres))).T
    seen = context.x
    if flip:
        y, values, seen = -y[::-1], values[::-1], seen * (1.0, -1.0)
    stream = io.BytesIO()
    np.savez_compressed(stream, sdf=values.astype(np.float32), x=x, y=y)
    title = "".join(c for c in Path(summary.input).name if c.isprintable())  # neither XML nor fonts know control characters
    figure = figure_fit(seen, context.s, values, centres=(x, y), unit=summary.units, y_up=flip, image=observed.image,
                        title=f"{title}: {summary.prior}, {said_steps(summary.steps, summary.refine)}, {summary.fit_ms:.0f} ms")  # fmt: skip
    return {
        ".npz": stream.getvalue(),
        ".png": png(figure),
        ".svg": svg(lines, frame=frame, size=summary.image_size, flip=flip, title=title).encode(),
        ".json": (json.dumps(asdict(summary), indent=2) + "\n").encode(),
    }


def svg(lines: Sequence[Array], *, frame: Frame, size: tuple[int, int] | None = None, flip: bool = False, title: str = "") -> str:
    """Closed lines (K_i, 2), y down, as one SVG path filled by the even-odd rule, in the units of the lines.

    size: width and height of the image they lie on, which the drawing then covers exactly; otherwise it shows the frame's square.
    flip: the path is written with y up, in a group that turns it over, so that its numbers are the user's.
    Far from the origin the path is written from a point beside it, to which its group is moved: viewers draw in single precision.
    """
    side = 1 / frame.scale
    digits = max(0, 5 - math.floor(math.log10(side)))  # a hundred-thousandth of the square, or finer
    left, top, width, height = (0, 0, *size) if size else (frame.centre[0] - side / 2, frame.centre[1] - side / 2, side, side)
    shown = size if size else (512, 512)
    sign = -1.0 if flip else 1.0
    far = np.abs(frame.centre).max() > FAR * side
    origin = np.round(np.multiply(frame.centre, (1.0, sign)), digits) if far else np.zeros(2)
    local = [line * (1.0, sign) - origin for line in lines]
    path = " ".join("M" + " L".join(f"{px:.{digits}f},{py:.{digits}f}" for px, py in line[:-1]) + " Z" for line in local)
    box = " ".join(f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in (left, top, width, height))
    moves = ["scale(1 -1)"] * flip + [f"translate({origin[0]:.{digits}f} {origin[1]:.{digits}f})"] * bool(far)
    transform = f' transform="{" ".join(moves)}"' if moves else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{shown[0]}" height="{shown[1]}" viewBox="{box}">\n'
        f"<title>{escape(title)}</title>\n"
        f'<g{transform} fill="#b2182b" fill-opacity="0.35" fill-rule="evenodd" stroke="#b2182b" stroke-width="1.5" stroke-linejoin="round">\n'
        f'<path vector-effect="non-scaling-stroke" d="{path}"/>\n'
        "</g>\n</svg>\n"
    )


def _write(out: Path, summary: Summary, contents: dict[str, bytes]) -> None:
    """All files or none: if one cannot be written, those before it are taken back."""
    written: list[Path] = []
    try:
        for suffix, content in contents.items():
            write_whole(out / (summary.name + suffix), content)
            written.append(out / (summary.name + suffix))
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
