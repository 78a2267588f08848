"""Wavefront OBJ: vertices and polygons as text. Groups, objects and materials all become one mesh; curves and lines have no surface."""

from __future__ import annotations

import re

import numpy as np

from metasdf.geometry.formats.common import fail, lines_of
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.polygons import mesh_from_polygons


def parse(data: bytes, *, where: object = "") -> Mesh:
    """Numbers count from 1, or back from the last vertex so far where negative. Raises InputError with the number of the line."""
    coordinates: list[float] = []
    corners: list[int] = []
    sizes: list[int] = []
    number = 0
    if b"\\" in data:
        data = re.sub(rb"\\[ \t]*\r?\n", b" ", data)  # a line that goes on in the next
    try:
        for line in lines_of(data):
            number += 1
            words = line.partition("#")[0].split()
            if not words:
                continue
            if words[0] == "v":
                coordinates += map(float, words[1:4])
                if len(words) < 4:
                    raise ValueError("a vertex needs three numbers")
            elif words[0] in ("f", "fo"):
                sofar = len(coordinates) // 3
                for word in words[1:]:
                    vertex = int(word.partition("/")[0])
                    if vertex == 0 or vertex < -sofar:
                        raise ValueError(f"vertex {vertex} of {sofar}")
                    corners.append(vertex - 1 if vertex > 0 else sofar + vertex)
                sizes.append(len(words) - 1)
    except (ValueError, OverflowError) as error:
        fail(f"A line cannot be understood: {error}", f"{where}, line {number}")
    return mesh_from_polygons(np.array(coordinates).reshape(-1, 3), np.array(corners, np.int64), sizes, where=where)


def encode(mesh: Mesh) -> bytes:
    """Text with as many digits as it takes to get the same float64 back."""
    vertices = "".join(f"v {x!r} {y!r} {z!r}\n" for x, y, z in mesh.vertices.tolist())
    faces = "".join(f"f {a} {b} {c}\n" for a, b, c in (mesh.faces + 1).tolist())
    return (vertices + faces).encode("ascii")
