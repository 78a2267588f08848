"""Silhouettes and their signed distance functions: image -> mask -> SDF -> zero level set.

Conventions. The image square is the field's domain [-0.5, 0.5)^2; x points right (column j), y points down (row i); the centre of
pixel (i, j) of an R x R image is ((j + 0.5)/R - 0.5, (i + 0.5)/R - 0.5). Distances are in units of the image side, negative inside.

A departure from the reference code, which puts pixel (i, j) at (j/R - 0.5, i/R - 0.5): half a pixel. With centres, the same shape
has the same coordinates at every resolution, and a contour lies where the shape's edge lies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.ndimage import distance_transform_edt

from metasdf.errors import InputError, UsageError

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Foreground = Literal["auto", "bright", "dark"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP")  # Pillow's other decoders stay closed: some of them start external programs
MAX_PIXELS = 50_000_000
MAX_RESOLUTION = 8192


def pixel_grid(resolution: int) -> FloatArray:
    """Pixel centres of an R x R image in field coordinates, (R*R, 2) float32 as (x, y), row-major: row i*R + j is pixel (i, j)."""
    _check_resolution(resolution)
    centres = (np.arange(resolution) + 0.5) / resolution - 0.5
    x, y = np.meshgrid(centres, centres, indexing="xy")
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)


def sdf_from_mask(mask: Mask) -> FloatArray:
    """Signed distance of a binary image, (H, W) bool -> (H, W) float32, in image sides, negative where the mask is True.

    Two unsigned Euclidean distance transforms, of the mask and of its inverse (supplement, section 2.2.1):
    `(edt(~mask) - edt(mask)) / max(H, W)`. A transform measures to the nearest pixel *centre* of the other colour, so the two sides of
    an edge hold +1 and -1 pixel and never 0: beside an edge along the pixels the magnitude is half a pixel more than the true distance,
    beside slanted and curved ones a little less (a quarter on average for a disc). The zero level, by linear interpolation, still lies
    on the edge. We keep this as the paper has it.

    Raises InputError if the mask is all True or all False (there is no edge to measure to).
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        raise InputError("A mask must be a two-dimensional array of booleans", where=f"shape {mask.shape}, dtype {mask.dtype}",
                         cause="a greyscale or colour image was passed", fix="binarize it first, e.g. with mask_from_image")
    if mask.all() or not mask.any():
        raise InputError(f"The mask has no edge: every pixel is {'foreground' if mask.flat[0] else 'background'}",
                         where=f"a mask of {mask.shape[0]} x {mask.shape[1]} pixels", cause="a blank image, or a shape thinner than a pixel",
                         fix="use an image that shows both the shape and its background, or a higher resolution")
    return ((distance_transform_edt(~mask) - distance_transform_edt(mask)) / max(mask.shape)).astype(np.float32)


def mask_from_image(image: ByteArray | Mask | Image.Image, resolution: int, *, threshold: float = 0.5) -> Mask:
    """Binarize a greyscale image whose foreground is bright: (H, W) -> (R, R) bool.

    As in the paper: bilinear resize (Pillow, which averages when it shrinks), then `> threshold` of full brightness. An image that is
    not square is first padded to a square with background (0), the shape in the middle, so that it is never stretched.

    Raises InputError for an array that is not two-dimensional uint8 or bool; UsageError for a bad resolution or threshold.
    """
    _check_resolution(resolution)
    if not 0 <= threshold < 1:
        raise UsageError("The threshold must lie in [0, 1)", where=f"threshold={threshold}", fix="use 0.5, as the paper does")
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.ndim != 2 or array.size == 0 or array.dtype not in (np.uint8, np.bool_):
            raise InputError("An image must be a two-dimensional array of uint8 (0..255) or bool", where=f"shape {array.shape}, dtype {array.dtype}",
                             cause="a colour image, or brightness stored as floats", fix="convert it to greyscale uint8")
        image = Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array)
    elif image.mode != "L":
        image = image.convert("L")
    width, height = image.size
    if width != height:
        side = max(width, height)
        square = Image.new("L", (side, side), 0)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square
    resized = np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR))
    return resized > threshold * 255


def read_silhouette(path: str | Path, *, foreground: Foreground = "auto") -> ByteArray:
    """Read a PNG, JPEG or BMP silhouette as greyscale, foreground bright: (H, W) uint8.

    1. An alpha channel that is not constant *is* the silhouette (opaque = foreground), whatever the colours and `foreground` say.
    2. Otherwise the image is made greyscale, and `foreground` says whether the shape is "bright" or "dark". "auto" looks at the one-pixel
       border: if most of it is brighter than mid-grey the background is bright, and the shape dark; an exact tie is an error.

    Raises InputError, naming the file, if it cannot be read, is larger than 50 million pixels, or shows no foreground or no background.
    """
    path = Path(path)
    if foreground not in ("auto", "bright", "dark"):
        raise UsageError(f"Unknown foreground {foreground!r}", where="foreground", fix="use auto, bright or dark")
    grey, from_alpha = _read_grey(path)
    if not from_alpha and (foreground == "dark" or (foreground == "auto" and _background_is_bright(grey, path))):
        grey = 255 - grey
    inside = grey > 127
    if inside.all() or not inside.any():
        raise InputError(f"The image shows only {'foreground' if inside.flat[0] else 'background'}", where=path,
                         cause="a blank image, a shape as bright as its background, or the wrong polarity",
                         fix="check the image; set the polarity with foreground='bright' or 'dark'")
    return grey


def contour_lines(sdf: NDArray[np.floating[Any]]) -> list[FloatArray]:
    """Polylines of the zero level set of an (R, R) grid of pixel-centre values, each (K_i, 2) float32 in field coordinates.

    Linear interpolation between pixel centres (contourpy). A closed line repeats its first vertex at the end; a line that leaves the
    image is open. A grid without a change of sign gives an empty list. Raises InputError if the grid is not square or not finite.
    """
    values = np.asarray(sdf, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape[0] < 2:
        raise InputError("Contours need a square grid of at least 2 x 2 values", where=f"shape {values.shape}", fix="pass an (R, R) array")
    if not np.isfinite(values).all():
        raise InputError("The grid holds values that are not finite", where=f"{int((~np.isfinite(values)).sum())} of {values.size} values",
                         cause="a field that diverged", fix="check the model that produced it")
    lines = contourpy.contour_generator(z=values).lines(0.0)
    return [((np.asarray(line) + 0.5) / len(values) - 0.5).astype(np.float32) for line in lines]


def contour_points(sdf: NDArray[np.floating[Any]]) -> FloatArray:
    """Vertices of `contour_lines`, each once, (K, 2) float32 in field coordinates; (0, 2) where the sign never changes.

    The vertices of an SDF from `sdf_from_mask` are the midpoints between neighbouring pixels of opposite sign.
    """
    lines = [line[:-1] if len(line) > 1 and (line[0] == line[-1]).all() else line for line in contour_lines(sdf)]
    return np.concatenate(lines) if lines else np.zeros((0, 2), np.float32)


def _check_resolution(resolution: int) -> None:
    if isinstance(resolution, bool) or not isinstance(resolution, int | np.integer) or not 1 <= resolution <= MAX_RESOLUTION:
        raise UsageError(f"The resolution must be a whole number from 1 to {MAX_RESOLUTION}", where=f"resolution={resolution!r}",
                         fix="use 64, as the paper does")


def _read_grey(path: Path) -> tuple[ByteArray, bool]:
    """Decode a file: its greyscale or alpha channel as (H, W) uint8, and whether that was the alpha channel."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f"The image is too large: {width} x {height} pixels", where=path,
                                 cause=f"more than {MAX_PIXELS:,} pixels; possibly a damaged or hostile file", fix="shrink the image first")
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                alpha = np.array(upright.convert("RGBA").getchannel("A"))
                if alpha.min() != alpha.max():
                    return alpha, True
            if upright.mode.startswith("I"):  # 16-bit greyscale: convert("L") would clip, not scale
                return (np.asarray(upright, dtype=np.int64).clip(0, 65535) // 257).astype(np.uint8), False
            return np.array(upright.convert("L")), False
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError("The image does not exist", where=path, cause="a wrong path", fix="check the path") from error
    except Image.DecompressionBombError as error:
        raise InputError("The image is too large", where=path, cause=str(error), fix="shrink the image first") from error
    # Pillow's decoders raise many types on damaged files, struct.error and SyntaxError among them
    except Exception as error:
        raise InputError("The image cannot be read", where=path, cause=f"not a PNG, JPEG or BMP file, or damaged ({error})",
                         fix="open it in an image viewer and save it again as PNG") from error


def _background_is_bright(grey: ByteArray, path: Path) -> bool:
    ring = np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    bright = int((ring > 127).sum())
    if 2 * bright == ring.size:
        raise InputError("Cannot tell the shape from its background", where=path, cause="half of the border is bright and half is dark",
                         fix="say which one is the shape: foreground='bright' or 'dark'")
    return 2 * bright > ring.size
