"""STL, binary and text: triangles that each bring their own corners. The normals in the file are not used."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from metasdf.geometry.formats.common import fail, floats
from metasdf.geometry.mesh import Mesh

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_HEADER = 84
_VERTEX = re.compile(rb"^[ \t]*vertex[ \t]+(\S+)[ \t]+(\S+)[ \t]+(\S+)", re.IGNORECASE | re.MULTILINE)
_ANY_VERTEX, _FACET = (re.compile(rb"^[ \t]*" + word + rb"\b", re.IGNORECASE | re.MULTILINE) for word in (b"vertex", b"endfacet"))


def parse(data: bytes, *, where: object = "") -> Mesh:
    """A file is binary if its length is as its header says, or if it does not look like text. Raises InputError."""
    declared = int.from_bytes(data[80:_HEADER], "little") if len(data) >= _HEADER else 0
    length = _HEADER + declared * _TRIANGLE.itemsize
    text = data[:1024].lstrip().lower().startswith(b"solid") and b"\0" not in data[:1024]
    if len(data) == length or not text:
        if not _HEADER <= length <= len(data):  # a few writers pad the end
            fail(f"A file of {len(data):,} bytes cannot hold {declared:,} triangles, which need {length:,}", where, cause="cut off, or not STL")
        corners = np.frombuffer(data, _TRIANGLE, declared, _HEADER)["corners"]
        return _soup(corners.astype(np.float64))
    if not re.search(rb"\bendsolid\b", data[-1024:], re.IGNORECASE):
        fail("The file does not end with endsolid", where, cause="cut off")
    data = data.replace(b"\r", b"\n")
    tokens = [word for vertex in _VERTEX.findall(data) for word in vertex]
    facets = len(_FACET.findall(data))
    if len(tokens) != 9 * facets or len(_ANY_VERTEX.findall(data)) != 3 * facets:
        fail(f"{facets:,} facets have {len(tokens) // 3:,} readable corners, not three each", where)
    return _soup(floats(tokens))


def encode(mesh: Mesh) -> bytes:
    """Binary. Coordinates are rounded to float32, and shared corners repeated: the format has nothing else. Normals are left to the reader."""
    triangles = np.zeros(len(mesh.faces), _TRIANGLE)
    triangles["corners"] = mesh.vertices[mesh.faces]
    return b"\0" * 80 + len(triangles).to_bytes(4, "little") + triangles.tobytes()


def _soup(corners: NDArray[np.float64]) -> Mesh:
    vertices = corners.reshape(-1, 3)
    return Mesh(vertices, np.arange(len(vertices)).reshape(-1, 3))
