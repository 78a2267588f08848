"""Shaded pictures of meshes in plain numpy: no GL, no display, the same bytes each time.

A scan-line rasteriser with a depth buffer finds the triangle that each sample of a pixel sees. The light comes from a fixed dome of
directions, and the same rasteriser, looking along each of them, says which samples it reaches: soft shadows, dark corners and contact
shadows without any other effect. Both sides of a face are lit alike, for meshes from strangers are seldom oriented.
"""

from __future__ import annotations

from collections.abc import Sequence
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
FRAGMENTS = 1 << 21  # candidates for pixels held at once, about 100 MB
GAMMA = 2.2
MAX_SIZE = 8192


class _View(NamedTuple):
    """Vertices on the screen: (V, 3) pixels right, pixels down and depth (larger is farther, affine on the screen); (V,) 1 / distance."""

    screen: Floats
    nearness: Floats


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
    width, height = _checked_size(size)
    _check(mesh, up=up, perspective=perspective, supersample=supersample)
    picture = np.broadcast_to(np.asarray(background, np.float64) ** GAMMA, (height * supersample, width * supersample, 3)).reshape(-1, 3).copy()
    if len(mesh.faces):
        vertices, faces = _unit_ball(mesh, up=up)
        towards = _basis(azimuth, elevation)
        view = _project(vertices @ towards.T, width * supersample, height * supersample, perspective=perspective)
        seen, _ = _rasterise(view.screen[faces], width * supersample, height * supersample)
        pixels = np.flatnonzero(seen >= 0)
        light = _light(vertices, faces, view, seen[pixels], pixels=pixels, width=width * supersample, towards=towards, crease=crease)
        picture[pixels] = np.minimum(light[:, None] * np.asarray(colour, np.float64) ** GAMMA, 1)
    picture = picture.reshape(height, supersample, width, supersample, 3).mean((1, 3))
    return (picture ** (1 / GAMMA) * 255 + 0.5).astype(np.uint8)


def contact_sheet(images: Sequence[Picture], titles: Sequence[str] | None = None, *, columns: int = 4, gap: int = 6) -> Picture:
    """Pictures in rows of `columns` on white, each in a cell as large as the largest, its title below it; titles too long are cut."""
    titles = [""] * len(images) if titles is None else titles
    if not images or columns < 1 or len(titles) != len(images):
        raise UsageError("A contact sheet needs at least one picture, one column and as many titles as pictures",
                         where=f"{len(images)} pictures, {len(titles)} titles, {columns} columns", fix="pass pictures and their titles")
    columns = min(columns, len(images))
    height, width = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    text = max(10, width // 16)
    line = text * 3 // 2 if any(titles) else 0
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=text)
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + line + gap)
        sheet.paste(Image.fromarray(image), (x + (width - image.shape[1]) // 2, y + (height - image.shape[0]) // 2))
        while title and draw.textlength(title, font=font) > width:
            title = title.rstrip("…")[:-1] + "…" if len(title) > 2 else ""
        draw.text((x + width / 2, y + height), title, fill=(60, 60, 60), font=font, anchor="ma")
    return np.asarray(sheet)


def _checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    width, height = (size, size) if isinstance(size, int) else size
    if not (1 <= width <= MAX_SIZE and 1 <= height <= MAX_SIZE):
        raise UsageError(f"A picture has from 1 to {MAX_SIZE} pixels a side", where=f"size={size!r}", fix="use 256")
    return width, height


def _check(mesh: Mesh, *, up: str, perspective: float, supersample: int) -> None:
    if up not in ("y", "z") or not 0 <= perspective < 150 or not 1 <= supersample <= 8:
        raise UsageError("A setting of the camera has no meaning", where=f"up={up!r}, perspective={perspective}, supersample={supersample}",
                         fix='up is "y" or "z", perspective from 0 to 150 degrees, supersample from 1 to 8')
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
    face, y = _count(first, last)
    row = y.astype(np.float64) + 0.5
    top, middle, bottom = corners[face].transpose(1, 0, 2)
    upper = (row < middle[:, 1])[:, None]
    start_at, stop_at = np.where(upper, top, middle), np.where(upper, middle, bottom)
    ends = np.stack((_at_row(top, bottom, row), _at_row(start_at, stop_at, row)))
    swap = ends[0, :, 0] > ends[1, :, 0]
    (left, z_left), (right, z_right) = (np.where(swap[:, None], ends[1], ends[0]).T, np.where(swap[:, None], ends[0], ends[1]).T)
    start, stop = np.ceil(np.stack((left, right)) - 0.5).clip(0, width).astype(np.int64)
    blocks = np.flatnonzero(np.diff(np.cumsum(stop - start) // FRAGMENTS)) + 1
    for piece in np.split(np.arange(len(face)), blocks):
        span, x = _count(start[piece], stop[piece])
        span = piece[span]
        t = (x + 0.5 - left[span]) / (right[span] - left[span])
        depth, at = z_left[span] + t * (z_right[span] - z_left[span]), y[span] * width + x
        np.minimum.at(nearest, at, depth)
        hit = depth == nearest[at]
        seen[at[hit]] = face[span[hit]]
    return seen, nearest


def _count(start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """The whole numbers from start[i] up to stop[i], for all i in turn, and the i of each."""
    length = np.maximum(stop - start, 0)
    i = np.repeat(np.arange(len(start)), length)
    return i, np.arange(len(i)) - (np.cumsum(length) - length - start)[i]


def _at_row(a: Floats, b: Floats, y: Floats) -> Floats:
    """(x, depth) where the edge from a to b, a above b, crosses the row y."""
    t = ((y - a[:, 1]) / (b[:, 1] - a[:, 1]))[:, None]
    return a[:, ::2] + t * (b[:, ::2] - a[:, ::2])


def _light(
    vertices: Floats, faces: Ints, view: _View, seen: Ints, *, pixels: Ints, width: int, towards: Floats, crease: float
) -> Floats:
    """Light that reaches each visible sample, (P,), about 1 for a matt face that looks up and towards the camera."""
    corners = view.screen[faces[seen]]
    at = np.stack((pixels % width, pixels // width), -1) + 0.5
    a, b, c = (corners[:, i, :2] - at for i in range(3))
    weight = np.stack((_cross(b, c), _cross(c, a), _cross(a, b)), -1)
    weight = np.abs(weight) * view.nearness[faces[seen]]  # the division by depth that makes them right in perspective
    weight = (weight / np.maximum(weight.sum(1, keepdims=True), 1e-30))[:, :, None]
    point = (vertices[faces[seen]] * weight).sum(1)
    flat = _normals(vertices, faces)[0][seen]
    normal = (_corner_normals(vertices, faces, crease=crease)[seen] * weight).sum(1)
    eye = towards[2]
    flat, normal = (n * np.where(flat @ eye < 0, -1, 1)[:, None] for n in (flat, normal))
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    light = 0.03 + 0.07 * np.maximum(normal @ eye, 0)  # a little from everywhere and from the camera, without shadows
    for direction, strength in _dome(towards):
        facing = normal @ direction
        lit = np.flatnonzero((facing > 0) & (flat @ direction > -0.2))
        light[lit] += strength * facing[lit] * _reached(vertices, faces, point[lit] + flat[lit] * 3 / SHADOW, direction)
    return light


def _cross(a: Floats, b: Floats) -> Floats:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _dome(towards: Floats) -> list[tuple[Floats, float]]:
    """Directions of the light and its strength: a soft key light above the camera's left shoulder, and the sky, evenly from all above."""
    key = _unit(np.array((-0.55, 0.75, 0.65)) @ towards * (1, 1, 1) + (0, 0.35, 0))
    around = _unit(np.cross(key, (0.3, 0.1, 0.9)))
    spread = [_unit(key + 0.10 * (np.cos(t) * around + np.sin(t) * np.cross(key, around))) for t in np.arange(6) * np.pi / 3]
    n = 20
    y = (np.arange(n) + 0.5) / n * 1.15 - 0.15
    turn = np.arange(n) * np.pi * (3 - np.sqrt(5))
    sky = np.stack((np.sqrt(1 - y * y) * np.cos(turn), y, np.sqrt(1 - y * y) * np.sin(turn)), -1)
    return [(d, 0.8 / 6) for d in spread] + [(d, 0.95 / n) for d in sky]


def _unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x)


def _reached(vertices: Floats, faces: Ints, points: Floats, direction: Floats) -> Floats:
    """1 where light from `direction` reaches the points, 0 in the shadow of the mesh: seen from the light, is anything nearer?"""
    side = _unit(np.cross(direction, (0.0, 0.0, 1.0) if abs(direction[2]) < 0.8 else (1.0, 0.0, 0.0)))
    basis = np.stack((side, np.cross(direction, side), -direction))
    to_map = np.array((SHADOW / 2.2, SHADOW / 2.2, 1.0)), np.array((SHADOW / 2, SHADOW / 2, 0.0))
    _, depth = _rasterise((vertices @ basis.T * to_map[0] + to_map[1])[faces], SHADOW, SHADOW)
    p = points @ basis.T * to_map[0] + to_map[1]
    x, y = p[:, :2].astype(np.int64).clip(0, SHADOW - 1).T
    return (p[:, 2] <= depth[y * SHADOW + x] + 1 / SHADOW).astype(np.float64)


def _normals(vertices: Floats, faces: Ints) -> tuple[Floats, Floats]:
    """Unit normals of the faces (F, 3), zero where a face has no area, and twice their areas (F, 1)."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1, keepdims=True)
    return normal / np.maximum(area, 1e-30), area


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
    return (total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-30)).reshape(-1, 3, 3)
