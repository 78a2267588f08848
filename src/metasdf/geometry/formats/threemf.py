"""3MF (3D Manufacturing Format): a zip with XML in it. Objects are meshes or put together of other objects; the build says which stand where.

The XML is read as a stream, so a file needs little more memory than its numbers. The unit that a file names is not applied.
"""

from __future__ import annotations

import io
import zipfile
from array import array
from typing import NamedTuple
from xml.etree.ElementTree import XMLParser

import numpy as np
from numpy.typing import NDArray

from metasdf.geometry.formats.common import Assembly, fail
from metasdf.geometry.mesh import Mesh

_MODEL = "3d/3dmodel.model"
_MAX_BYTES = 2**30
_BLOCK = 2**20
_Key = tuple[str, str]  # the file in the zip, and the number of the object in that file


class _Reference(NamedTuple):
    key: _Key
    matrix: NDArray[np.float64]


class _Object(NamedTuple):
    vertices: array[float]
    corners: array[int]
    parts: list[_Reference]

    def meshes(self, where: object) -> list[Mesh]:
        if not self.corners:
            return []
        vertices, faces = np.array(self.vertices).reshape(-1, 3), np.array(self.corners, np.int64).reshape(-1, 3)
        if not 0 <= faces.min() <= faces.max() < len(vertices):
            fail(f"A face names vertex {faces.max()}, but there are {len(vertices):,}, from 0", where)
        return [Mesh(vertices, faces)]


class _Model:
    """Target of the XML parser: collects the objects and the build of one file."""

    def __init__(self, path: str, where: object) -> None:
        self.path, self.where = path, where
        self.objects: dict[_Key, _Object] = {}
        self.build: list[_Reference] = []
        self.current = _Object(array("d"), array("q"), [])

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        fail("The XML has a document type, which 3MF does not allow", self.where, cause="damaged, or made to do harm")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        match tag.rpartition("}")[2]:
            case "vertex":
                self.current.vertices.extend(float(attributes[axis]) for axis in "xyz")
            case "triangle":
                self.current.corners.extend(int(attributes[corner]) for corner in ("v1", "v2", "v3"))
            case "object":
                self.current = self.objects[self.path, attributes["id"]] = _Object(array("d"), array("q"), [])
            case "component":
                self.current.parts.append(self.reference(attributes))
            case "item":
                self.build.append(self.reference(attributes))

    def reference(self, attributes: dict[str, str]) -> _Reference:
        path = next((value.lstrip("/").lower() for name, value in attributes.items() if name.endswith("}path")), self.path)
        matrix = np.eye(4)
        if "transform" in attributes:  # four rows of three, for points as rows
            matrix[:3] = np.array([float(word) for word in attributes["transform"].split()]).reshape(4, 3).T
        return _Reference((path, attributes["objectid"]), matrix)


def parse(data: bytes, *, where: object = "") -> Mesh:
    """Raises InputError."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename.lstrip("/").lower(): entry for entry in archive.infolist()}
        if _MODEL not in entries:
            fail("The file has no 3D/3dmodel.model in it", where, cause="another kind of zip under this name")
        if (total := sum(entry.file_size for entry in archive.infolist())) > _MAX_BYTES:
            fail(f"Unpacked, the file has {total:,} bytes; at most {_MAX_BYTES:,} are read", where, cause="made to do harm, or a huge scene")
        main = _read(archive, entries, _MODEL, where)
        objects = dict(main.objects)
        for path in {ref.key[0] for refs in (main.build, *(o.parts for o in main.objects.values())) for ref in refs} - {_MODEL}:
            objects |= _read(archive, entries, path, where).objects
    inner = {part.key for item in objects.values() for part in item.parts}
    assembly = Assembly(where)
    todo = [(ref.key, ref.matrix, 0) for ref in main.build] or [(key, np.eye(4), 0) for key in objects if key not in inner]
    while todo:
        key, matrix, depth = todo.pop()
        if key not in objects:
            fail(f"Object {key[1]!r} is used, but not there", where)
        assembly.add(objects[key].meshes(where), matrix)
        for part in objects[key].parts:
            assembly.enter(depth + 1)
            todo.append((part.key, matrix @ part.matrix, depth + 1))
    return assembly.mesh()


def _read(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], path: str, where: object) -> _Model:
    """Names are looked up in the zip, never on the disk."""
    if path not in entries:
        fail(f"The part {path[:80]!r} is missing in the zip", where)
    model = _Model(path, where)
    parser = XMLParser(target=model)
    with archive.open(entries[path]) as stream:  # gives at most file_size bytes
        while block := stream.read(_BLOCK):
            parser.feed(block)
    parser.close()
    return model
