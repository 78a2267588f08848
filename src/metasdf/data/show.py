"""Pictures of the shapes of a data set. An image: its signed distance. A shape in 3D: the surface, the samples, three slices through the signed
distance. No GL, no display."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metasdf.data.shape import PICTURE, SLICE_AXES, Shape, read_shape
from metasdf.data.store import Store
from metasdf.errors import UsageError
from metasdf.geometry.render import Picture, contact_sheet

SLAB = 0.03  # samples this near the plane z = 0 are shown, in field units
INK = np.array((30, 30, 30))
INSIDE, ZERO, OUTSIDE = (np.array(rgb, np.float64) for rgb in ((178, 24, 43), (247, 247, 247), (33, 102, 172)))
GAP = 4


def colours(s: NDArray[np.floating], *, limit: float = 1.0) -> Picture:
    """Red inside, blue outside, white at zero, growing with the square root of the distance: (...,) to (..., 3)."""
    strength = np.sqrt(np.clip(np.abs(s) / limit, 0, 1))[..., None]
    return np.rint(ZERO + strength * (np.where((np.asarray(s) < 0)[..., None], INSIDE, OUTSIDE) - ZERO)).astype(np.uint8)


def slice_picture(s: NDArray[np.floating]) -> Picture:
    """A slice (S, S), as large as the other pictures, with a dark line where the sign changes."""
    s = np.asarray(Image.fromarray(np.asarray(s, np.float32)).resize((PICTURE, PICTURE), Image.Resampling.BILINEAR))
    picture, inside = colours(s), s < 0
    edge = np.zeros_like(inside)
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    edge[1:] |= inside[1:] != inside[:-1]
    picture[edge] = INK
    return picture


def sample_picture(samples: NDArray[np.float32]) -> Picture:
    """Samples (M, 4) near the plane z = 0, those farthest from the surface first, so that the others lie on them."""
    near = samples[np.abs(samples[:, 2]) < SLAB]
    near = near[np.argsort(-np.abs(near[:, 3]))]
    (right, right_sign), (down, down_sign) = SLICE_AXES[2]
    picture = np.full((PICTURE, PICTURE, 3), 255, np.uint8)
    column, row = (np.clip((sign * near[:, axis] + 1) / 2 * (PICTURE - 1), 0, PICTURE - 2).astype(np.int64)
                   for axis, sign in ((right, right_sign), (down, down_sign)))  # fmt: skip
    ink = colours(near[:, 3], limit=0.1)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        picture[row + i, column + j] = ink
    return picture


def panel(shape: Shape) -> Picture:
    """What there is of a shape in one row: the surface, samples near the plane z = 0, slices at x = 0, y = 0 and z = 0."""
    a = shape.arrays
    pictures = [a["picture"]] if len(a["picture"]) else []
    pictures += [sample_picture(a["samples"]), *(slice_picture(s) for s in a["slices"])]
    gap = np.full((PICTURE, GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], 1)


def panels(files: Sequence[Path]) -> list[Picture]:
    return [panel(read_shape(file, "picture", "samples", "slices")) for file in files]


def data_set_sheet(store: Store, *, shapes: int = 12, split: str | None = None, seed: int = 0) -> Picture:
    """A contact sheet of some shapes, drawn by `seed` from all of them or from a split. Raises UsageError where there is nothing to show."""
    rows = store.split(split) if split else np.arange(len(store))
    if not len(rows):
        raise UsageError("The split is empty", where=f"{store.path}, {split}", fix=f"one of: {', '.join(store.splits)}")
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:shapes])
    if "shapes" in store.meta:
        titles = [title(store.meta["shapes"][row]) for row in chosen]
        return contact_sheet(panels([store.item(row) for row in chosen]), titles, columns=1 if len(chosen) < 4 else 2, text=18)
    if "sdf" not in store.arrays:
        raise UsageError(f"This data set holds {store.kind}, which has no pictures", where=store.path, fix="pass one of images or of meshes")
    return contact_sheet([slice_picture(store.arrays["sdf"][row]) for row in chosen], [image_title(store, row) for row in chosen], columns=6)


def image_title(store: Store, row: int) -> str:
    names, label = store.meta.get("names"), store.arrays["labels"][row]
    return f"{row} · {names[row] if names else f'class {label}'}"


def title(facts: dict[str, object]) -> str:
    agreement = facts.get("agreement")
    return str(facts["name"]) + (f" · {facts['kind']} · agreement {agreement:.1%}" if isinstance(agreement, float) else "")


def png(picture: Picture) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def data_uri(image: bytes) -> str:
    """A PNG as an address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(image).decode()
