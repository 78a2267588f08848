"""Object File Format (OFF): counts, vertices, polygons, as text. Files of ModelNet, which lack the line break after OFF, are read too."""

from __future__ import annotations

import re

from metasdf.geometry.formats.common import fail, floats, integers, lines_of
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.polygons import mesh_from_polygons

_HEADER = re.compile(r"(?:ST|C|N)*OFF\s*(.*)")


def parse(data: bytes, *, where: object = "") -> Mesh:
    """Normals, colours and texture coordinates after the coordinates are skipped. Raises InputError."""
    rows = [row for line in lines_of(data) if (row := line.partition("#")[0].split())]
    header = _HEADER.fullmatch(" ".join(rows[0])) if rows else None
    if header is None:
        fail("Not an OFF file: it does not begin with OFF", where, cause="another format under this name, four dimensions, or an empty file")
    rest = header[1].split()
    if rest[:1] == ["BINARY"]:
        fail("Binary OFF files are not supported", where, cause="an unusual export", fix="export it as text, or as PLY")
    rows = [rest, *rows[1:]] if rest else rows[1:]
    if not rows or len(rows[0]) < 2:
        fail("The numbers of vertices and faces are missing", where)
    vertex_count, face_count = int(rows[0][0]), int(rows[0][1])
    if not (vertex_count >= 0 and face_count >= 0 and vertex_count + face_count <= len(rows) - 1):
        fail(f"{vertex_count:,} vertices and {face_count:,} faces are announced, but only {len(rows) - 1:,} lines follow", where)
    points = rows[1 : 1 + vertex_count]
    vertices = floats([word for row in points for word in row[:3]]).reshape(-1, 3)
    polygons = rows[1 + vertex_count : 1 + vertex_count + face_count]
    sizes = integers([row[0] for row in polygons])
    if len(vertices) != vertex_count or any(not 0 <= size < len(row) for size, row in zip(sizes, polygons, strict=True)):
        fail("A vertex or a face has too few numbers", where)
    corners = integers([word for size, row in zip(sizes, polygons, strict=True) for word in row[1 : 1 + size]])
    return mesh_from_polygons(vertices, corners, sizes, where=where)


def encode(mesh: Mesh) -> bytes:
    """Text with as many digits as it takes to get the same float64 back."""
    vertices = "".join(f"{x!r} {y!r} {z!r}\n" for x, y, z in mesh.vertices.tolist())
    faces = "".join(f"3 {a} {b} {c}\n" for a, b, c in mesh.faces.tolist())
    return f"OFF\n{len(mesh.vertices)} {len(mesh.faces)} 0\n{vertices}{faces}".encode("ascii")


