"""DeepSDF's processed layout, read and written, so that data can go to and come from its code.

    ROOT/SdfSamples/<dataset>/<class>/<id>.npz               pos, neg: (N, 4) float32, x y z and signed distance, outside and inside
    ROOT/SurfaceSamples/<dataset>/<class>/<id>.ply           points on the surface, in the mesh's own coordinates (optional)
    ROOT/NormalizationParameters/<dataset>/<class>/<id>.npz  offset (3,), scale: normalised = (x + offset) * scale (optional)

Samples are in normalised coordinates, negative inside, as here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.data.sources import ShapeKey, check_key
from metasdf.errors import InputError, UsageError
from metasdf.files import write_whole
from metasdf.geometry.formats import ply
from metasdf.geometry.io import read_points
from metasdf.geometry.tables import read_npz

SAMPLES, SURFACE, NORMALISATION = "SdfSamples", "SurfaceSamples", "NormalizationParameters"
_AGAIN = "make the file again with DeepSDF's preprocessing"


class DeepSDFShape(NamedTuple):
    """x (M, 3) float32 and s (M,) float32: samples with their signed distances, normalised; `dropped_nan` rows were not finite and are left out.

    surface (K, 3) float32 in the mesh's own coordinates, or None; offset (3,) float64 and scale, or None: normalised = (x + offset) * scale.
    """

    x: NDArray[np.float32]
    s: NDArray[np.float32]
    dropped_nan: int
    surface: NDArray[np.float32] | None
    offset: NDArray[np.float64] | None
    scale: float | None


def is_deepsdf(root: str | Path) -> bool:
    """Whether a folder has DeepSDF's processed layout."""
    return (Path(root) / SAMPLES).is_dir()


def list_shapes(root: str | Path) -> list[ShapeKey]:
    """Keys of all shapes that have samples, sorted. Raises UsageError if the folder has another layout, InputError if there are none."""
    root = Path(root)
    if not is_deepsdf(root):
        raise UsageError("Not DeepSDF's processed layout: there is no SdfSamples", where=root, cause="another folder", fix="pass the folder above it")
    keys = sorted(ShapeKey(path.parent.parent.name, path.parent.name, path.stem) for path in (root / SAMPLES).glob("*/*/*.npz"))
    if not keys:
        raise InputError("There are no shapes in SdfSamples", where=root, cause="an incomplete copy",
                         fix="it should hold <dataset>/<class>/<id>.npz")  # fmt: skip
    return keys


def read_shape(root: str | Path, key: ShapeKey) -> DeepSDFShape:
    """Samples, outside ones first, and what else there is. Raises InputError, naming the file, if something is missing, damaged or unsafe."""
    paths = _paths(root, key)
    parts = _read_npz(paths[SAMPLES], ("pos", "neg"))
    if any(part.ndim != 2 or part.shape[1] != 4 for part in parts):
        raise InputError("pos and neg should have four columns: x, y, z and distance", where=paths[SAMPLES],
                         cause=f"shapes {' and '.join(str(part.shape) for part in parts)}", fix=_AGAIN)  # fmt: skip
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and goes
        rows = np.concatenate([part.astype(np.float32) for part in parts])
    finite = np.isfinite(rows).all(1)
    if not finite.any():
        raise InputError("The shape has no samples", where=paths[SAMPLES], cause=f"{len(rows):,} rows, all not finite", fix=_AGAIN)
    offset, scale = _read_normalisation(paths[NORMALISATION]) if paths[NORMALISATION].exists() else (None, None)
    surface = read_points(paths[SURFACE]).astype(np.float32) if paths[SURFACE].exists() else None
    if surface is not None and not np.isfinite(surface).all():
        raise InputError("Points of the surface are not finite", where=paths[SURFACE], cause="damaged", fix=_AGAIN)
    rows = rows[finite]
    return DeepSDFShape(rows[:, :3].copy(), rows[:, 3].copy(), int((~finite).sum()), surface, offset, scale)


def write_shape(root: str | Path, key: ShapeKey, *, x: NDArray[np.floating], s: NDArray[np.floating], surface: NDArray[np.floating] | None = None,
                offset: Sequence[float] | NDArray[np.floating] | None = None, scale: float | None = None) -> None:
    """Write one shape; x (M, 3), s (M,), surface (K, 3), offset (3,) as in `DeepSDFShape`. Distances above zero go to pos, the others to neg.

    Each file is complete or absent, and the samples come last: a shape that is listed is whole. Raises UsageError for wrong shapes,
    InputError for an unsafe key or values that are not finite, and as `files.write_whole`.
    """
    paths = _paths(root, key)
    if np.ndim(x) != 2 or np.shape(x) != (len(s), 3) or np.ndim(s) != 1 or (offset is None) != (scale is None):
        raise UsageError("Samples are x (M, 3) with s (M,); offset and scale go together", where=f"x {np.shape(x)}, s {np.shape(s)}")
    rows = np.column_stack((x, s)).astype(np.float32)
    if not np.isfinite(rows).all():
        raise InputError("Samples are not finite", where=paths[SAMPLES], cause="a distance that failed", fix="leave those rows out")
    if offset is not None:
        write_whole(paths[NORMALISATION], _npz(offset=np.asarray(offset, np.float64).reshape(3), scale=np.float64(scale)))
    if surface is not None:
        write_whole(paths[SURFACE], ply.encode(np.asarray(surface, np.float32).reshape(-1, 3)))
    write_whole(paths[SAMPLES], _npz(pos=rows[rows[:, 3] > 0], neg=rows[rows[:, 3] <= 0]))


def sample_paths(root: str | Path, key: ShapeKey) -> list[Path]:
    """All files that a shape may have; only the first must exist."""
    return list(_paths(root, key).values())


def _paths(root: str | Path, key: ShapeKey) -> dict[str, Path]:
    check_key(key, where=root)
    suffixes = {SAMPLES: ".npz", SURFACE: ".ply", NORMALISATION: ".npz"}
    return {kind: Path(root) / kind / key.dataset / key.category / (key.shape + suffix) for kind, suffix in suffixes.items()}


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _read_normalisation(path: Path) -> tuple[NDArray[np.float64], float]:
    offset, scale = (part.astype(np.float64).ravel() for part in _read_npz(path, ("offset", "scale")))
    if len(offset) != 3 or len(scale) != 1 or not np.isfinite(offset).all() or not 0 < scale[0] < math.inf:
        raise InputError("offset should be three finite numbers and scale one above zero", where=path, cause="damaged", fix=_AGAIN)
    return offset, float(scale[0])


def _read_npz(path: Path, names: Sequence[str]) -> list[NDArray[np.floating]]:
    if not path.is_file():
        raise InputError("The file does not exist", where=path, cause="an incomplete copy, or a split of other data", fix="check the root folder")
    found, _ = read_npz(path, names, fix=_AGAIN)
    if missing := [name for name in names if name not in found]:
        raise InputError(f"The file cannot be read: there is no {missing[0]}", where=path, cause="another kind of data", fix=_AGAIN)
    return [found[name] for name in names]
