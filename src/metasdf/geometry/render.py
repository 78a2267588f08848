"""Shaded pictures of meshes in plain numpy: no GL, no display, the same bytes each time.

A scan-line rasteriser with a depth buffer finds the triangle that each sample of a pixel sees. The light comes from a fixed dome of
directions, and the same rasteriser, looking along each of them, says which samples it reaches: soft shadows, dark corners and contact
shadows without any other effect. Both sides of a face are lit alike, for meshes from strangers are seldom oriented.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from metasdf.errors import InputError, UsageError
from metasdf.geometry.mesh import Mesh

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Picture = NDArray[np.uint8]  # (H, W, 3), sRGB

MARGIN = 0.04  # of the picture's size, free on each side
SHADOW = 256  # texels along a side of a shadow map
SKY = 32  # directions of the sky's light
BLOCK = 1 << 19  # samples worked on at once, some 100 MB
MAX_SAMPLES = 1 << 25
GAMMA = 2.2
TINY = 1e-30


class _View(NamedTuple):
    """Vertices on the screen: (V, 3) pixels right, pixels down and depth (larger is farther, affine on the screen); (V,) 1 / distance."""

    screen: Floats
    nearness: Floats


class _Light(NamedTuple):
    """Parallel light from a direction, and how far it comes: for each texel the depth of the first face that it meets."""

    direction: Floats
    strength: float
    basis: Floats
    depth: Floats


def render(
    mesh: Mesh, *, size: int | tuple[int, int] = 256, azimuth: float = 35.0, elevation: float = 20.0, up: Literal["y", "z"] = "y",
    perspective: float = 25.0, crease: float = 40.0, colour: tuple[float, float, float] = (0.70, 0.78, 0.88),
    background: tuple[float, float, float] = (1.0, 1.0, 1.0), supersample: int = 3,
) -> Picture:  # fmt: skip
    """A picture (H, W, 3) of the whole mesh; `size` is its side, or width and height, in pixels.

    The camera looks at the middle of the mesh from `azimuth` degrees around the upward axis (0 sees the front: from +z, or from -y
    where `up` is "z"; 90 sees it from +x) and `elevation` degrees above the horizon. `perspective` is its field of view in degrees, 0
    for parallel rays; either way the mesh fills the picture. Edges that bend by less than `crease` degrees are shaded smooth; 0 shades
    all faces flat. Colours are sRGB in 0..1. A mesh without faces gives the background.

    Raises InputError for vertices that are not finite or faces that point outside them, UsageError for settings without meaning."""
    width, height = (size, size) if isinstance(size, int) else size
    _check(mesh, up=up, perspective=perspective, samples=(width * supersample, height * supersample))
    width, height = width * supersample, height * supersample
    picture = np.tile(np.asarray(background, np.float64) ** GAMMA, (width * height, 1))
    if len(mesh.faces):
        vertices, faces = _unit_ball(mesh, up=up)
        towards = _basis(azimuth, elevation)
        view = _project(vertices @ towards.T, width, height, perspective=perspective)
        seen, _ = _rasterise(view.screen[faces], width, height)
        normals, lights = _corner_normals(vertices, faces, crease=crease), _dome(vertices, faces, towards)
        for pixels in np.array_split(np.flatnonzero(seen >= 0), 1 + len(seen) // BLOCK):
            face, at = seen[pixels], np.stack((pixels % width, pixels // width), -1).astype(np.float64) + 0.5
            weight = _weights(view.screen[faces[face]], at) * view.nearness[faces[face]]  # the division by depth sets perspective right
            weight = (weight / np.maximum(weight.sum(1, keepdims=True), TINY))[:, :, None]
            flat, normal = _normals(vertices, faces[face])[0], (normals[face] * weight).sum(1)
            light = _lit((vertices[faces[face]] * weight).sum(1), flat, normal, eye=towards[2], lights=lights)
            picture[pixels] = np.minimum(light[:, None] * np.asarray(colour, np.float64) ** GAMMA, 1)
    picture = picture.reshape(height // supersample, supersample, width // supersample, supersample, 3).mean((1, 3))
    return (picture ** (1 / GAMMA) * 255 + 0.5).astype(np.uint8)


def contact_sheet(images: Sequence[Picture], titles: Sequence[str] | None = None, *, columns: int = 4, gap: int = 6,
                  text: int | None = None) -> Picture:  # fmt: skip
    """Pictures in rows of `columns` on white, each in a cell as large as the largest, its title below it, `text` pixels high; titles too long
    are cut, and what the font has no glyph for is written without accents or by its number."""
    titles = [""] * len(images) if titles is None else titles
    if not images or columns < 1 or len(titles) != len(images):
        raise UsageError("A contact sheet needs at least one picture, one column and as many titles as pictures",
                         where=f"{len(images)} pictures, {len(titles)} titles, {columns} columns", fix="pass pictures and their titles")
    columns = min(columns, len(images))
    height, width = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    text = text or max(10, width // 16)
    line = text * 3 // 2 if any(titles) else 0
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=text)
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + line + gap)
        sheet.paste(Image.fromarray(image), (x + (width - image.shape[1]) // 2, y + (height - image.shape[0]) // 2))
        title = _in_glyphs(title, font)
        while title and draw.textlength(title, font=font) > width:
            title = title.rstrip("…")[:-1] + "…" if len(title) > 2 else ""
        draw.text((x + width / 2, y + height), title, fill=(60, 60, 60), font=font, anchor="ma")
    return np.asarray(sheet)


def _in_glyphs(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """On one line, in glyphs that the font has: boxes in their place would make names equal."""
    none = bytes(font.getmask("\uffff"))

    def there(c: str) -> bool:
        return c.isprintable() and bytes(font.getmask(c)) != none

    def drawn(c: str) -> str:
        if there(c):
            return c
        base = unicodedata.normalize("NFD", c)[0]  # without accents
        if base != c and there(base):
            return base
        return " " if unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()

    return "".join(map(drawn, text))


def _check(mesh: Mesh, *, up: str, perspective: float, samples: tuple[int, int]) -> None:
    if min(samples) < 1 or samples[0] * samples[1] > MAX_SAMPLES:
        raise UsageError("The picture is empty or too large", where=f"{samples[0]} x {samples[1]} samples",
                         fix=f"use size=256; size and supersample may make {MAX_SAMPLES:,} samples")  # fmt: skip
    if up not in ("y", "z") or not 0 <= perspective < 150:
        raise UsageError("A setting of the camera has no meaning", where=f"up={up!r}, perspective={perspective}",
                         fix='up is "y" or "z", perspective from 0 to 150 degrees')  # fmt: skip
    vertices, faces = mesh
    wrong = vertices.shape[1:] != (3,) or faces.shape[1:] != (3,)
    if wrong or (len(faces) and (faces.min() < 0 or faces.max() >= len(vertices) or not np.isfinite(vertices[faces]).all())):
        raise InputError("The mesh cannot be drawn", where=f"vertices {vertices.shape}, faces {faces.shape}",
                         cause="not triangles in space, faces that point at vertices that do not exist, or vertices that are not finite",
                         fix="read the mesh again or repair it")


def _unit_ball(mesh: Mesh, *, up: str) -> tuple[Floats, Ints]:
    """The mesh with y up, coincident vertices merged, centred on its bounding box and scaled into the unit ball."""
    used, faces = np.unique(mesh.vertices[mesh.faces].reshape(-1, 3), axis=0, return_inverse=True)
    if up == "z":
        used = used[:, [0, 2, 1]] * (1, 1, -1)
    low, high = used.min(0), used.max(0)
    centred = used - (low / 2 + high / 2)
    return centred / max(np.linalg.norm(centred, axis=1).max(), np.finfo(np.float64).tiny), faces.reshape(-1, 3)


def _basis(azimuth: float, elevation: float) -> Floats:
    """Rows: the camera's right, its up, and the direction from the mesh towards it."""
    a, e = np.radians((azimuth, elevation))
    right = np.array((np.cos(a), 0, -np.sin(a)))
    towards = np.array((np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)))
    return np.stack((right, np.cross(towards, right), towards))


def _project(x: Floats, width: int, height: int, *, perspective: float) -> _View:
    """Camera coordinates within the unit ball -> screen, such that the mesh fills the picture up to its margin."""
    distance = 1 / np.sin(np.radians(perspective) / 2) if perspective else 0.0
    nearness = distance / (distance - x[:, 2]) if perspective else np.ones(len(x))
    flat, depth = x[:, :2] * nearness[:, None], -nearness if perspective else -x[:, 2]
    low, high = flat.min(0), flat.max(0)
    room = np.array((width, height)) * (1 - 2 * MARGIN)
    scale = (room / np.maximum(high - low, 1e-9)).min()
    flat = (flat - (low + high) / 2) * scale * (1, -1) + (width / 2, height / 2)
    return _View(np.column_stack((flat, depth)), nearness)


def _rasterise(corners: Floats, width: int, height: int) -> tuple[Ints, Floats]:
    """Triangles on the screen (F, 3, 3) -> for each sample, in rows, the nearest triangle (-1: none) and its depth (infinite: none).

    A sample belongs to a triangle if its middle does. Each triangle is cut into rows and each row into samples, so the work is that of
    the covered samples, whatever the triangle's shape."""
    seen, nearest = np.full(width * height, -1, np.int64), np.full(width * height, np.inf)
    corners = np.take_along_axis(corners, np.argsort(corners[:, :, 1], 1, kind="stable")[:, :, None], 1)
    first, last = np.ceil(corners[:, [0, 2], 1] - 0.5).clip(0, height).astype(np.int64).T
    for block in _blocks(last - first):
        face, y = _count(first[block], last[block])
        face += block.start
        top, middle, bottom = corners[face].transpose(1, 0, 2)
        row = y.astype(np.float64) + 0.5
        upper = (row < middle[:, 1])[:, None]
        bend, end = np.where(upper, top, middle), np.where(upper, middle, bottom)
        ends = np.stack((_at_row(top, bottom, row), _at_row(bend, end, row)))
        swap = (ends[0, :, 0] > ends[1, :, 0])[:, None]
        (left, z_left), (right, z_right) = np.where(swap, ends[1], ends[0]).T, np.where(swap, ends[0], ends[1]).T
        start, stop = np.ceil(np.stack((left, right)) - 0.5).clip(0, width).astype(np.int64)
        for piece in _blocks(stop - start):
            span, x = _count(start[piece], stop[piece])
            span += piece.start
            t = (x + 0.5 - left[span]) / (right[span] - left[span])
            depth, at = z_left[span] + t * (z_right[span] - z_left[span]), y[span] * width + x
            np.minimum.at(nearest, at, depth)
            hit = depth == nearest[at]
            seen[at[hit]] = face[span[hit]]
    return seen, nearest


def _blocks(work: Ints) -> list[slice]:
    """Slices of neighbours whose work adds up to about BLOCK, so that memory is bounded."""
    cuts = np.flatnonzero(np.diff(np.cumsum(work) // BLOCK)) + 1
    return [slice(a, b) for a, b in pairwise([0, *cuts.tolist(), len(work)])]


def _count(start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """The whole numbers from start[i] up to stop[i], for all i in turn, and the i of each."""
    length = np.maximum(stop - start, 0)
    i = np.repeat(np.arange(len(start)), length)
    return i, np.arange(len(i)) - (np.cumsum(length) - length - start)[i]


def _at_row(a: Floats, b: Floats, y: Floats) -> Floats:
    """(x, depth) where the edge from a to b, a above b, crosses the row y."""
    t = ((y - a[:, 1]) / (b[:, 1] - a[:, 1]))[:, None]
    return a[:, ::2] + t * (b[:, ::2] - a[:, ::2])


def _weights(corners: Floats, at: Floats) -> Floats:
    """Barycentric weights (P, 3), not normalised, of points (P, 2) in triangles (P, 3, 3) on the screen."""
    a, b, c = (corners[:, k, :2] - at for k in range(3))
    return np.abs(np.stack([p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0] for p, q in ((b, c), (c, a), (a, b))], -1))


def _lit(points: Floats, flat: Floats, normal: Floats, *, eye: Floats, lights: list[_Light]) -> Floats:
    """Light that reaches points (P, 3) with a face's and a smooth normal: about 1 for a matt face that looks up and to the camera."""
    side = np.where(flat @ eye < 0, -1, 1)[:, None]
    flat, normal = flat * side, normal * side / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), TINY)
    total = 0.03 + 0.07 * np.maximum(normal @ eye, 0)  # a little from everywhere and from the camera, without shadows
    points = points + flat * 3 / SHADOW  # off the surface, which would shade itself
    for light in lights:
        facing = normal @ light.direction
        lit = np.flatnonzero((facing > 0) & (flat @ light.direction > -0.2))
        texel = _on_map(points[lit] @ light.basis.T)
        x, y = texel[:, :2].astype(np.int64).clip(0, SHADOW - 1).T
        total[lit] += light.strength * facing[lit] * (texel[:, 2] <= light.depth[y * SHADOW + x] + 1 / SHADOW)
    return total


def _dome(vertices: Floats, faces: Ints, towards: Floats) -> list[_Light]:
    """A soft key light above the camera's left shoulder, and the sky, evenly from all above; each with its shadows."""
    key = _unit(np.array((-0.55, 0.75, 0.65)) @ towards + (0, 0.35, 0))
    around = _unit(np.cross(key, (0.3, 0.1, 0.9)))
    spread = [_unit(key + 0.1 * (np.cos(t) * around + np.sin(t) * np.cross(key, around))) for t in np.arange(6) * np.pi / 3]
    y = np.linspace(-0.12, 0.97, SKY)
    turn = np.arange(SKY) * np.pi * (3 - np.sqrt(5))
    sky = np.stack((np.sqrt(1 - y * y) * np.cos(turn), y, np.sqrt(1 - y * y) * np.sin(turn)), -1)
    lights = []
    for direction, strength in [(d, 0.8 / 6) for d in spread] + [(d, 0.95 / SKY) for d in sky]:
        side = _unit(np.cross(direction, (0.0, 0.0, 1.0) if abs(direction[2]) < 0.8 else (1.0, 0.0, 0.0)))
        basis = np.stack((side, np.cross(direction, side), -direction))
        lights.append(_Light(direction, strength, basis, _rasterise(_on_map(vertices @ basis.T)[faces], SHADOW, SHADOW)[1]))
    return lights


def _on_map(x: Floats) -> Floats:
    """Coordinates along a light, within the unit ball -> texels of its map, and depth."""
    return x * (SHADOW / 2.2, SHADOW / 2.2, 1) + (SHADOW / 2, SHADOW / 2, 0)


def _unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x)


def _normals(vertices: Floats, faces: Ints) -> tuple[Floats, Floats]:
    """Unit normals of the faces (F, 3), zero where a face has no area, and twice their areas (F, 1)."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1, keepdims=True)
    return normal / np.maximum(area, TINY), area


def _corner_normals(vertices: Floats, faces: Ints, *, crease: float) -> Floats:
    """Normals at the corners of each face, (F, 3, 3): the mean, weighted by area, over the faces around the vertex that can be reached
    across edges that bend by less than `crease` degrees."""
    normal, area = _normals(vertices, faces)
    corner = np.arange(faces.size).reshape(-1, 3)
    edge = np.stack((faces, np.roll(faces, -1, 1)), -1).reshape(-1, 2)
    ends = np.stack((corner, np.roll(corner, -1, 1)), -1).reshape(-1, 2)
    backward = edge[:, 0] > edge[:, 1]
    edge, ends = (np.where(backward[:, None], e[:, ::-1], e) for e in (edge, ends))
    order = np.lexsort(edge.T)
    edge, ends = edge[order], ends[order]
    links = []
    for step in (1, 2, 3):  # beyond its neighbour, for faces that are drawn twice, once for each side
        a, b = ends[:-step], ends[step:]
        smooth = (edge[:-step] == edge[step:]).all(1) & ((normal[a[:, 0] // 3] * normal[b[:, 0] // 3]).sum(1) > np.cos(np.radians(crease)))
        links += [np.stack((a[smooth, k], b[smooth, k])) for k in (0, 1)]
    i, j = np.concatenate(links, 1)
    count, group = connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(faces.size,) * 2), directed=False)
    weighted = np.repeat(normal * area, 3, 0)
    total = np.stack([np.bincount(group, weighted[:, k], count) for k in range(3)], -1)[group]
    return (total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), TINY)).reshape(-1, 3, 3)
