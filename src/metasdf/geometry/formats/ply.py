"""PLY, text and binary in either byte order, faces of any and mixed sizes; also point clouds, which DeepSDF keeps in this format.

Only `vertex` (x, y, z) and the vertex numbers of `face` are used. Text is turned into binary numbers first, so there is one way to read both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.geometry.formats.common import fail, floats
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.polygons import mesh_from_polygons

_TYPES = {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2", "int": "i4",
          "int32": "i4", "uint": "u4", "uint32": "u4", "int64": "i8", "uint64": "u8", "float": "f4", "float32": "f4", "double": "f8",
          "float64": "f8"}  # fmt: skip
_MAX_HEADER = 2**16
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_FACES = ("vertex_indices", "vertex_index")


class _Property(NamedTuple):
    name: str
    kind: np.dtype[np.generic]
    counts: np.dtype[np.generic] | None  # of lists: the type of their lengths


class _Element(NamedTuple):
    name: str
    rows: int
    properties: list[_Property]


class _List(NamedTuple):
    sizes: NDArray[np.int64]
    values: NDArray[np.generic]  # of all rows, one after the other


_Columns = dict[str, "NDArray[np.generic] | _List"]


def parse(data: bytes, *, where: object = "") -> Mesh:
    """Raises InputError, also for a point cloud (see `parse_points`)."""
    elements = _read(data, where)
    faces = elements.get("face", {})
    lists = next((column for name in _FACES if isinstance(column := faces.get(name), _List)), None)
    if lists is None or not len(lists.sizes):
        fail("The mesh has no faces", where, cause="a point cloud" if "vertex" in elements else "no geometry at all",
             fix="make a surface of the points first, or use a mesh file")  # fmt: skip
    return mesh_from_polygons(_points(elements, where), lists.values, lists.sizes, where=where)


def parse_points(data: bytes, *, where: object = "") -> NDArray[np.float64]:
    """The vertices alone (V, 3), finite or not. Raises InputError."""
    return _points(_read(data, where), where)


def parse_cloud(data: bytes, *, where: object = "") -> dict[str, NDArray[np.float64]] | None:
    """All numbers (V,) that vertices have, finite or not, by their names in the file; None if there are faces. Raises InputError."""
    if any(element.name == "face" and element.rows for element in _header(data, where)[0]):
        return None
    elements = _read(data, where)
    _points(elements, where)
    return {name: column.astype(np.float64) for name, column in elements["vertex"].items() if not isinstance(column, _List)}


def encode(vertices: NDArray[np.floating], faces: NDArray[np.int64] | None = None) -> bytes:
    """Binary, coordinates in the vertices' own precision; without faces a point cloud."""
    single = vertices.dtype == np.float32
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
    header += "".join(f"property {'float' if single else 'double'} {axis}\n" for axis in "xyz")
    body = vertices.astype("<f4" if single else "<f8").tobytes()
    if faces is not None:
        header += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
        rows = np.zeros(len(faces), np.dtype([("size", "u1"), ("corners", "<i4", 3)]))
        rows["size"], rows["corners"] = 3, faces
        body += rows.tobytes()
    return f"{header}end_header\n".encode("ascii") + body


def _points(elements: dict[str, _Columns], where: object) -> NDArray[np.float64]:
    columns = [elements.get("vertex", {}).get(axis) for axis in "xyz"]
    if any(column is None or isinstance(column, _List) for column in columns):
        fail("The file has no vertices with x, y and z", where, cause="another kind of data")
    return np.stack([np.asarray(column, np.float64) for column in columns], 1)


def _read(data: bytes, where: object) -> dict[str, _Columns]:
    elements, order, start = _header(data, where)
    if order == "=":
        data, start = floats(data[start:].split()).tobytes(), 0
        number = np.dtype(np.float64)
        elements = [e._replace(properties=[_Property(p.name, number, p.counts and number) for p in e.properties]) for e in elements]
    read: dict[str, _Columns] = {}
    for element in elements:
        least = sum((p.counts or p.kind).itemsize for p in element.properties)
        if element.rows * least > len(data) - start or (element.rows and not least):
            fail(f"The header announces {element.rows:,} times {element.name!r}, more than the file can hold", where)
        read[element.name], start = _rows(data, start, element, where)
        if {"vertex", "face"} <= read.keys():
            break
    return read


def _header(data: bytes, where: object) -> tuple[list[_Element], str, int]:
    """Elements, byte order, and where the data begin."""
    end = data.find(b"end_header", 0, _MAX_HEADER)
    line_end = data.find(b"\n", end)
    if not data.startswith(b"ply") or end < 0 or line_end < 0:
        fail("Not a PLY file: it does not begin with a ply header", where, cause="another format under this name, cut off, or an empty file")
    order, elements = "", list[_Element]()
    for words in (line.split() for line in data[:end].decode("latin-1").splitlines()):
        match words:
            case ["format", name, _] if name in _ORDERS:
                order = _ORDERS[name]
            case ["element", name, count] if order:
                elements.append(_Element(name, int(count), []))
            case ["property", "list", counts, kind, name] if elements and kind in _TYPES and counts in _TYPES:
                elements[-1].properties.append(_Property(name, np.dtype(order + _TYPES[kind]), np.dtype(order + _TYPES[counts])))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].properties.append(_Property(name, np.dtype(order + _TYPES[kind]), None))
            case ["ply"] | ["comment" | "obj_info", *_] | []:
                pass
            case _:
                fail(f"A line of the header cannot be understood: {' '.join(words)[:60]!r}", where)
    if not order or any(element.rows < 0 for element in elements):
        fail("The header names no format, or a negative number", where)
    return elements, order, line_end + 1


def _rows(data: bytes, start: int, element: _Element, where: object) -> tuple[_Columns, int]:
    """Columns of one element, and where the next begins. Rows of one length, the rule, are read at once; others one by one."""
    if not element.rows:
        return {p.name: _List(np.zeros(0, np.int64), np.zeros(0, p.kind)) if p.counts else np.zeros(0, p.kind) for p in element.properties}, start
    position, sizes, fields = start, list[int](), list[tuple[str, object]]()
    for i, (_, kind, counts) in enumerate(element.properties):
        size = _list_size(data, position, counts, kind, where) if counts else 1
        fields += [(f"n{i}", counts)] if counts else []
        fields += [(f"v{i}", (kind, (size,)))]
        position += (counts.itemsize if counts else 0) + size * kind.itemsize
        sizes.append(size)
    row = np.dtype(fields)
    if start + element.rows * row.itemsize > len(data):
        return _ragged_rows(data, start, element, where)
    table = np.frombuffer(data, row, element.rows, start)
    if any(p.counts and (table[f"n{i}"] != sizes[i]).any() for i, p in enumerate(element.properties)):
        return _ragged_rows(data, start, element, where)
    columns: _Columns = {}
    for i, p in enumerate(element.properties):
        values = table[f"v{i}"].ravel()
        columns[p.name] = _List(np.full(element.rows, sizes[i], np.int64), values) if p.counts else values
    return columns, start + element.rows * row.itemsize


def _ragged_rows(data: bytes, start: int, element: _Element, where: object) -> tuple[_Columns, int]:
    begins = np.zeros((len(element.properties), element.rows), np.int64)
    sizes = np.ones_like(begins)
    for row in range(element.rows):
        for i, (_, kind, counts) in enumerate(element.properties):
            if counts:
                sizes[i, row] = _list_size(data, start, counts, kind, where)
                start += counts.itemsize
            begins[i, row] = start
            start += int(sizes[i, row]) * kind.itemsize
    if start > len(data):
        fail(f"The rows of {element.name!r} go on beyond the end of the file", where, cause="cut off")
    columns: _Columns = {}
    raw = np.frombuffer(data, np.uint8)
    for i, p in enumerate(element.properties):
        firsts = np.cumsum(sizes[i]) - sizes[i]
        places = np.repeat(begins[i] - firsts * p.kind.itemsize, sizes[i]) + np.arange(sizes[i].sum()) * p.kind.itemsize
        values = raw[places[:, None] + np.arange(p.kind.itemsize)].view(p.kind).ravel()
        columns[p.name] = _List(sizes[i], values) if p.counts else values
    return columns, start


def _list_size(data: bytes, position: int, counts: np.dtype[np.generic], kind: np.dtype[np.generic], where: object) -> int:
    left = len(data) - position - counts.itemsize
    size = np.frombuffer(data, counts, 1, position)[0] if left >= 0 else -1
    if not 0 <= size <= left // kind.itemsize:  # also where it is not a number
        fail(f"A list of {size} values does not fit into the rest of the file", where)
    return int(size)
