"""Files in, signed distance functions out: a silhouette, SDF samples or bare surface points -> grid, picture, contour and summary.

Everything written is in the input's own units. For images these are pixels: pixel (i, j) spans [j, j+1] x [i, i+1], so its centre is
(j + 0.5, i + 0.5), as in SVG. Distances are negative inside.
"""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from metasdf.errors import InputError, MetaSDFError, UsageError
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
from metasdf.geometry.samples import zero_crossings
from metasdf.prior import MAX_CONTEXT, SDF, Prior
from metasdf.tasks import ShapeSamples, dense, draw_surface

Array = NDArray[np.float64]
Columns = Literal["xy", "xys"]

TEXT_SUFFIXES = (".csv", ".txt", ".xyz")
OUTPUTS = (".npz", ".png", ".svg", ".json")
FORMAT = "metasdf-reconstruction-1"  # how a summary of ours is told from another file of the same name
DISTANCE_NAMES = {"s", "sdf", "d", "distance", "value"}
MAX_SLOPE = 2.5  # |ds| / |dx| of neighbouring samples; 1 for a true distance, 2 across the edge of a pixel image (supplement 2.2.1)
FAR = 1000.0  # times the side of the square: beyond, single precision would show in a drawing
PLAUSIBLE = 0.8  # the share of neighbours that must keep to it
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
    seed: int
    resolution: int
    fit_ms: float
    residual: float
    residual_of: str
    notes: tuple[str, ...]
    files: tuple[str, ...]
    format: str = FORMAT


class Failure(NamedTuple):
    """An input that could not be reconstructed, and why."""

    path: Path
    error: MetaSDFError


# -- from files ------------------------------------------------------------------------------------------------------------------------


def read_observations(path: str | Path, *, columns: Columns | None = None, foreground: Foreground = "auto") -> Observed:
    """Read a silhouette (.png .jpg .bmp), or points and SDF samples: .npy of shape (N, 2) or (N, 3), .csv .txt .xyz with those columns.

    columns: "xy" or "xys" says what the columns are. Otherwise a header does (x,y or x,y,s), or their number; three unnamed columns must
    look like signed distances, so that 3D points are not taken for them. `foreground` is for images: see `geometry.image.read_silhouette`.
    Raises UsageError if there is no such file, and InputError, with file and line, for what cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("the input is a folder" if path.is_dir() else "the input does not exist", where=path,
                         cause="a wrong path", fix="pass image, .npy or .csv files")  # fmt: skip
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return Observed("image", None, None, read_silhouette(path, foreground=foreground), "pixels")
    if suffix == ".npy":
        rows, named = _read_npy(path), False
    elif suffix in TEXT_SUFFIXES:
        rows, named = _read_text(path, columns)
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


def looks_signed(x: Array, s: Array) -> bool:
    """Whether s (N,) may be signed distances at x (N, 2): between most nearest neighbours it changes by no more than MAX_SLOPE times their gap."""
    rows = np.unique(np.column_stack((x - x.mean(0), s)), axis=0)  # the same sample twice says nothing
    if len(rows) < 3:
        return True
    gap, nearest = cKDTree(rows[:, :2]).query(rows[:, :2], k=2)
    # Of two points at one place either may be listed first: a row's neighbour is the column that is not itself.
    other = np.where(nearest[:, 0] == np.arange(len(rows)), nearest[:, 1], nearest[:, 0])
    change = np.abs(rows[:, 2] - rows[other, 2])
    return bool((change <= MAX_SLOPE * gap[:, 1] * (1 + 1e-6)).mean() >= PLAUSIBLE)


def _read_npy(path: Path) -> Array:
    try:
        # A map checks the length against the header before any memory is taken; nothing is ever unpickled.
        array = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError, MemoryError, SyntaxError) as error:
        raise InputError("the array cannot be read", where=path, cause=f"empty, damaged, or no plain .npy file ({error})",
                         fix="save it again with numpy.save") from error  # fmt: skip
    if array.dtype.kind not in "fiu":
        raise InputError(f"the array holds {array.dtype}, not real numbers", where=path, fix="save points.astype(float)")
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        if array.ndim == 2 and array.shape[0] in (2, 3):
            raise InputError(f"the array has shape {array.shape}", where=path, cause="it is transposed: points go down the rows", fix="save points.T")
        cause = "an image saved as an array" if array.ndim == 2 and min(array.shape) > 7 else "another kind of data"
        raise InputError(f"the array has shape {array.shape}, not (N, 2) points or (N, 3) samples x, y, s", where=path, cause=cause,
                         fix="save an image as .png, points as an (N, 2) array")  # fmt: skip
    rows = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise InputError(f"{len(bad)} of {len(rows)} rows hold NaN or infinity, the first is row {bad[0]}", where=path,
                         cause="missing measurements", fix="remove them: rows[np.isfinite(rows).all(1)]")  # fmt: skip
    return rows


def _read_text(path: Path, columns: Columns | None) -> tuple[Array, bool]:
    """Rows (N, 2 or 3), ordered x, y, s, and whether a header named them."""
    order: list[int] | None = None
    rows: list[list[float]] = []
    width = 0
    try:
        for number, tokens, comment in _lines(path):
            where = f"{path}, line {number}"
            if not rows and order is None and tokens and not _number(tokens[0]):
                order = list(range(len(tokens))) if columns and not comment else _header(tokens, where, comment=comment)
                width = len(tokens) if order else 0
                continue
            if comment:
                continue
            width = width or len(tokens)
            values = [_number(token) for token in tokens]
            if None in values:
                raise InputError(f"{tokens[values.index(None)][:40]!r} is not a number", where=where, cause="a damaged line",
                                 fix="write numbers with a decimal point, separated by commas or blanks")  # fmt: skip
            if len(tokens) != width:
                raise InputError(f"the line has {len(tokens)} columns, those before have {width}", where=where, cause="a damaged or incomplete line")
            if width not in (2, 3):
                cause = "another kind of data, or decimal commas" if width > 3 else "columns separated by something else than commas or blanks"
                raise InputError(f"the line has {width} columns, not 2 (x, y) or 3 (x, y, s)", where=where, cause=cause)
            if not all(math.isfinite(value[0]) for value in values if value):
                raise InputError("the line holds NaN or infinity", where=where, cause="a missing measurement", fix="remove the line")
            rows.append([value[0] for value in values if value])
    except UnicodeDecodeError as error:
        raise InputError("the file is no text", where=path, cause="a binary file under this name", fix="export it as comma-separated text") from error
    if not rows:
        raise InputError("the file holds no points", where=path, cause="an empty file" if order is None else "nothing but a header")
    table = np.array(rows, dtype=np.float64)
    return table if order is None else table[:, order], order is not None


def _lines(path: Path) -> Iterator[tuple[int, list[str], bool]]:
    """Number, columns and whether it is a comment of each line that is not blank."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            comment = text.startswith("#")
            text = text.lstrip("# ")
            if text:
                pieces = re.split(r"[,;]", text) if "," in text or ";" in text else text.split()
                yield number, [piece.strip().strip("\"'") for piece in pieces], comment


def _number(token: str) -> tuple[float] | None:
    """In a tuple, so that 0.0 is told from no number."""
    try:
        return (float(token),)
    except ValueError:
        return None


def _header(names: list[str], where: str, *, comment: bool) -> list[int] | None:
    """Positions of x, y and, if there, the distance. None for a comment that is no header."""
    found = [name.lower() for name in names]
    distance = [k for k, name in enumerate(found) if name in DISTANCE_NAMES]
    if set(found) >= {"x", "y", "z"}:
        raise InputError("the header says x, y, z: these are 3D points for a 2D prior", where=where, cause="a scan, or a mesh's vertices",
                         fix="give 2D points with a header x,y, or samples with a header x,y,s")  # fmt: skip
    if not ({"x", "y"} <= set(found) and len(found) == 2 + len(distance) and len(distance) <= 1):
        if comment:
            return None
        raise InputError(f"the columns {', '.join(names)[:80]} are not known", where=where, cause="a header with other names",
                         fix="name them x,y for points or x,y,s for signed distances")  # fmt: skip
    return [found.index("x"), found.index("y"), *distance]


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
    path: str | Path, prior: Prior, out: str | Path, *, resolution: int = 128, steps: int | None = None, seed: int = 0, y_up: bool = False,
    columns: Columns | None = None, foreground: Foreground = "auto", name: str | None = None,
) -> Summary:  # fmt: skip
    """Fit a prior to one file and write OUT/NAME.npz, .png, .svg and .json, each whole or not at all.

    NAME is the file's stem; if that belongs to another input or to a file of the user's, the stem with the ending (digit-csv).
    .npz holds `sdf` (R, R) float32 at the coordinates `x` (R,) and `y` (R,): sdf[i, j] is the distance at (x[j], y[i]).
    y_up: the y axis of points and samples points up; y of images always points down. A prior knows shapes as they look in an image.
    Raises InputError for data that cannot be used and where the fit shows no surface; nothing is written then.
    """
    path, out = Path(path), Path(out)
    if not 8 <= resolution <= 4096:
        raise UsageError("the resolution must lie between 8 and 4096", where=f"resolution={resolution}", fix="use 128")
    if steps is not None and steps < 1:
        raise UsageError("at least one step is needed", where=f"steps={steps}", fix=f"leave it out, or use {prior.experiment.inner.steps}")
    if prior.dim != 2:
        raise UsageError(f"{prior.name} is a prior of {prior.dim}D shapes", where=path, fix="use a 2D prior")
    with _naming(path):
        observed = read_observations(path, columns=columns, foreground=foreground)
        flip = y_up and observed.x is not None
        if flip:
            assert observed.x is not None
            observed = observed._replace(x=observed.x * (1.0, -1.0))
        context = context_for(observed, prior, seed=seed)
        start = time.perf_counter()
        sdf = prior.adapt(context.x, context.s, frame=context.frame, steps=steps)
        if sdf.params[0].weight.is_cuda:
            torch.cuda.synchronize(sdf.params[0].weight.device)
        milliseconds = (time.perf_counter() - start) * 1e3
        values, lines, closed = _sample(sdf, resolution)
    residual = sdf(context.x)
    notes = context.notes
    if len(context.x) > MAX_CONTEXT:
        notes += (f"{MAX_CONTEXT:,} of the {len(context.x):,} were drawn for the fit; the residual is of all",)
    if not closed:
        notes += ("the shape reaches the edge of the square the prior knows, and was cut off there",)
    name = name or free_name(path, out)
    size = None if observed.image is None else (observed.image.shape[1], observed.image.shape[0])
    summary = Summary(
        input=str(path), name=name, prior=prior.name, kind=observed.kind, units=observed.units, y="up" if flip else "down", image_size=size,
        observations=observed.image.size if observed.image is not None else len(observed.x if observed.x is not None else ()), context=len(context.x),
        frame={"centre": [sdf.frame.centre[0], -sdf.frame.centre[1] if flip else sdf.frame.centre[1]], "scale": sdf.frame.scale},
        steps=len(sdf.path) - 1, seed=seed, resolution=resolution, fit_ms=round(milliseconds, 3),
        residual=float(np.mean(np.abs(residual if context.s is None else residual - context.s))),
        residual_of="mean |sdf| at the surface points of the context" if context.s is None else "mean |sdf - s| at the samples of the context",
        notes=notes, files=tuple(name + suffix for suffix in OUTPUTS),
    )  # fmt: skip
    _write(out, summary, _files(summary, observed, context, sdf.frame, values, lines, flip=flip))
    return summary


def reconstruct_many(
    paths: Iterable[str | Path], prior: Prior, out: str | Path, *, resolution: int = 128, steps: int | None = None, seed: int = 0, y_up: bool = False,
    columns: Columns | None = None, foreground: Foreground = "auto", say: Callable[[str], None] = print,
) -> list[Failure]:  # fmt: skip
    """`reconstruct` each file, going on after one that fails; all failures are told at the end and returned (none: an empty list)."""
    chosen = list(dict.fromkeys(Path(path) for path in paths))
    failures: list[Failure] = []
    taken: set[str] = set()
    for path in chosen:
        try:
            name = free_name(path, Path(out), taken)
            done = reconstruct(
                path, prior, out, resolution=resolution, steps=steps, seed=seed, y_up=y_up, columns=columns, foreground=foreground, name=name
            )
        except MetaSDFError as error:
            failures.append(Failure(path, error))
            say(f"{path}: failed, {error.what}")
            continue
        taken.add(name)
        say(f"{path}: {done.kind}, {done.context:,} context points, {done.steps} steps in {done.fit_ms:.0f} ms, "
            f"residual {done.residual:.3g} {done.units} -> {Path(out) / name}.svg .png .npz .json")  # fmt: skip
        for note in done.notes:
            say(f"  note: {note}")
    if failures:
        say(f"{len(failures)} of {len(chosen)} inputs failed:")
        for failure in failures:
            say(f"error: {failure.error}")
    return failures


def free_name(path: Path, out: Path, taken: set[str] | frozenset[str] = frozenset()) -> str:
    """What to call the outputs of `path`: its stem, or stem-ending, or those with a number, whichever is the first that overwrites nothing
    but an earlier reconstruction of the same file."""
    ending = path.suffix.lstrip(".").lower()
    candidates = (path.stem, f"{path.stem}-{ending}", *(f"{path.stem}-{ending}-{k}" for k in range(2, 10_000)))
    return next(name for name in candidates if name not in taken and _is_free(name, path, out))


def _is_free(name: str, path: Path, out: Path) -> bool:
    if not any((out / (name + suffix)).exists() for suffix in OUTPUTS):
        return True
    try:
        earlier = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        return bool(earlier["format"] == FORMAT and Path(earlier["input"]).resolve() == path.resolve())
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors raised inside name the file."""
    try:
        yield
    except MetaSDFError as error:
        if str(path) not in error.where:
            error.where = f"{path}, {error.where}" if error.where else str(path)
        raise


def _sample(sdf: SDF, resolution: int) -> tuple[Array, list[Array], bool]:
    """The field on the centres of R x R cells of its square (R, R), its zero level as closed lines (user's units, y down), and whether it
    stays inside the square. Raises InputError where there is none."""
    values = sdf(sdf.frame.from_field(pixel_grid(resolution).astype(np.float64))).reshape(resolution, resolution)
    steps = f"{len(sdf.path) - 1} steps"
    if not np.isfinite(values).all():
        raise InputError(f"the fit diverged: the field is not finite after {steps}",
                         cause="observations unlike the shapes of the prior, or too many steps",
                         fix="use fewer steps, or another prior")  # fmt: skip
    if (values > 0).all() or (values <= 0).all():
        raise InputError(f"the fitted field has no zero level after {steps}: it is {'outside' if values.flat[0] > 0 else 'inside'} everywhere",
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
                        title=f"{title}: {summary.prior}, {summary.steps} steps, {summary.fit_ms:.0f} ms")  # fmt: skip
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
