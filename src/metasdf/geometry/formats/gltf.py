"""glTF 2.0, as text with buffers beside or inside it (.gltf) and as one binary file (.glb).

The default scene, each mesh at its place; triangles, strips and fans. Skins and morph targets are left at rest: a skinned mesh keeps its own
coordinates. Geometry that is compressed by an extension (Draco, meshopt), or repeated by one, is refused: leaving it out would be silent loss.
Materials and images are never looked at.
"""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from metasdf.geometry.formats.common import MAX_VERTICES, Assembly, Sibling, fail
from metasdf.geometry.mesh import Mesh, prune

_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_REFUSED = {"KHR_draco_mesh_compression", "EXT_meshopt_compression", "EXT_mesh_gpu_instancing"}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6


def parse(data: bytes, *, where: object = "", sibling: Sibling | None = None) -> Mesh:
    """`sibling` gives the bytes of a buffer that lies beside the file. Raises InputError."""
    text, binary = _chunks(data, where) if data[:4] == b"glTF" else (data, None)
    tree = json.loads(text)
    version = str(tree["asset"]["version"])
    if not version.startswith("2."):
        fail(f"glTF {version} is not supported", where, cause="an old file", fix="convert it to glTF 2")
    if refused := _REFUSED & set(tree.get("extensionsUsed", [])):
        fail(f"The geometry uses {', '.join(sorted(refused))}, which is not supported", where, cause="a compressed or instanced export",
             fix="export it without, or unpack it, for example with: gltf-transform copy")  # fmt: skip
    return _Reader(tree, binary, where, sibling).scene()


def _chunks(data: bytes, where: object) -> tuple[bytes, bytes | None]:
    """JSON and buffer of a binary file."""
    if int.from_bytes(data[4:8], "little") != 2:
        fail("Not a binary glTF 2 file", where, cause="an old version, or damaged")
    found: dict[int, bytes] = {}
    position = 12
    while position + 8 <= len(data):
        length, kind = (int.from_bytes(data[position + k : position + k + 4], "little") for k in (0, 4))
        if position + 8 + length > len(data):
            fail(f"A part of {length:,} bytes goes on beyond the end of the file", where, cause="cut off")
        found.setdefault(kind, data[position + 8 : position + 8 + length])
        position += 8 + length
    if _JSON not in found:
        fail("The file has no description (JSON) in it", where)
    return found[_JSON], found.get(_BIN)


class _Reader:
    def __init__(self, tree: dict[str, Any], binary: bytes | None, where: object, sibling: Sibling | None) -> None:
        self.tree, self.binary, self.where, self.sibling = tree, binary, where, sibling
        self.loaded: dict[int, bytes] = {}
        self.meshes: dict[int, list[Mesh]] = {}
        self.read = 0

    def scene(self) -> Mesh:
        nodes, assembly = self.tree.get("nodes", []), Assembly(self.where)
        if "scenes" in self.tree:
            roots = self.tree["scenes"][self.tree.get("scene", 0)].get("nodes", [])
        else:
            roots = sorted({*range(len(nodes))} - {child for node in nodes for child in node.get("children", [])})
        if not nodes:  # a library of parts: nothing is placed, so each is where it is
            for index in range(len(self.tree.get("meshes", []))):
                assembly.add(self.mesh(index), np.eye(4))
        todo = [(index, np.eye(4), 0) for index in roots]
        while todo:
            index, parent, depth = todo.pop()
            node = nodes[index]
            matrix = parent @ _matrix(node)
            if "mesh" in node:
                assembly.add(self.mesh(node["mesh"]), np.eye(4) if "skin" in node else matrix)
            for child in node.get("children", []):
                assembly.enter(depth + 1)
                todo.append((child, matrix, depth + 1))
        return assembly.mesh()

    def mesh(self, index: int) -> list[Mesh]:
        if index not in self.meshes:
            primitives = [p for p in self.tree["meshes"][index]["primitives"] if p.get("mode", _TRIANGLES) in (_TRIANGLES, _STRIP, _FAN)]
            self.meshes[index] = [self.primitive(p) for p in primitives]
        return self.meshes[index]

    def primitive(self, primitive: dict[str, Any]) -> Mesh:
        vertices = self.accessor(primitive["attributes"]["POSITION"]).astype(np.float64)
        corners = self.accessor(primitive["indices"]).ravel().astype(np.int64) if "indices" in primitive else np.arange(len(vertices))
        self.read += len(vertices) + len(corners)
        if vertices.shape[1] != 3 or self.read > MAX_VERTICES:
            fail(f"Positions are not three numbers each, or more than {MAX_VERTICES:,} in all", self.where)
        mode = primitive.get("mode", _TRIANGLES)
        if mode == _TRIANGLES:
            faces = corners.reshape(-1, 3)
        else:
            k = np.arange(max(len(corners) - 2, 0))
            # every other triangle of a strip is turned around
            faces = corners[np.stack((0 * k, k + 1, k + 2) if mode == _FAN else (k + k % 2, k + 1 - k % 2, k + 2), 1)]
        if len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
            fail(f"A face names vertex {faces.max()}, but there are {len(vertices):,}, from 0", self.where)
        return prune(Mesh(vertices, faces))  # many primitives may share one large array

    def accessor(self, index: int) -> NDArray[Any]:
        """(count, components), normalised integers as floats."""
        a = self.tree["accessors"][index]
        kind, width, count = np.dtype(_TYPES[a["componentType"]]), _COMPONENTS[a["type"]], int(a["count"])
        if "bufferView" in a:
            values = self.values(a["bufferView"], a.get("byteOffset", 0), count, width, kind)
        elif not 0 <= count <= sum(len(self.buffer(k)) for k in range(len(self.tree["buffers"]))):
            fail(f"{count:,} values are announced without any data", self.where)
        else:
            values = np.zeros((count, width), kind)
        if sparse := a.get("sparse"):
            n, at, new = int(sparse["count"]), sparse["indices"], sparse["values"]
            rows = self.values(at["bufferView"], at.get("byteOffset", 0), n, 1, np.dtype(_TYPES[at["componentType"]])).ravel()
            values = values.copy()
            values[rows] = self.values(new["bufferView"], new.get("byteOffset", 0), n, width, kind)
        if a.get("normalized") and kind.kind in "iu":
            return np.maximum(values / np.iinfo(kind).max, -1.0)
        return values

    def values(self, view_index: int, offset: int, count: int, width: int, kind: np.dtype[Any]) -> NDArray[Any]:
        view = self.tree["bufferViews"][view_index]
        data = self.buffer(view["buffer"])
        stride = view.get("byteStride", width * kind.itemsize)
        begin = view.get("byteOffset", 0) + offset
        end = begin + stride * (count - 1) + width * kind.itemsize
        if not (offset >= 0 and view.get("byteOffset", 0) >= 0 and count >= 1 and stride >= width * kind.itemsize and end <= len(data)):
            fail(f"{count:,} values do not fit into a buffer of {len(data):,} bytes", self.where)
        return np.ndarray((count, width), kind, data, begin, (stride, kind.itemsize))

    def buffer(self, index: int) -> bytes:
        if index not in self.loaded:
            uri = self.tree["buffers"][index].get("uri")
            if uri is None and index == 0 and self.binary is not None:
                self.loaded[index] = self.binary
            elif uri is None:
                fail("A buffer is missing", self.where, cause="cut off")
            elif uri.startswith("data:"):
                self.loaded[index] = base64.b64decode(uri.partition(";base64,")[2], validate=True)
            elif self.sibling is None:
                fail(f"The file needs another one, {uri[:80]!r}, which is not at hand", self.where, cause="only this file was given")
            else:
                self.loaded[index] = self.sibling(unquote(uri))
        return self.loaded[index]


def _matrix(node: dict[str, Any]) -> NDArray[np.float64]:
    """A node's place relative to its parent, (4, 4) for columns."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = (float(part) for part in node.get("rotation", (0, 0, 0, 1)))
    rotation = np.array([[w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
                         [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
                         [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z]])  # fmt: skip
    norm = x * x + y * y + z * z + w * w
    matrix[:3, :3] = rotation / (norm if norm > 0 else 1.0) * np.array(node.get("scale", (1, 1, 1)), np.float64).reshape(3)
    matrix[:3, 3] = np.array(node.get("translation", (0, 0, 0)), np.float64).reshape(3)
    return matrix


def encode(mesh: Mesh) -> bytes:
    """One binary file (.glb); coordinates are rounded to float32, as the format has it."""
    points, corners = mesh.vertices.astype("<f4"), mesh.faces.astype("<u4")
    body = points.tobytes() + corners.tobytes()
    tree = {
        "asset": {"version": "2.0", "generator": "metasdf"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "mode": _TRIANGLES}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3", "min": points.min(0).tolist(),
             "max": points.max(0).tolist()},
            {"bufferView": 1, "componentType": 5125, "count": corners.size, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": points.nbytes, "target": 34962},
            {"buffer": 0, "byteOffset": points.nbytes, "byteLength": corners.nbytes, "target": 34963},
        ],
        "buffers": [{"byteLength": len(body)}],
    }
    text = json.dumps(tree, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)  # both parts have a length divisible by four; the second has by itself
    words = (_MAGIC, 2, 12 + 8 + len(text) + 8 + len(body), len(text), _JSON)
    return b"".join(w.to_bytes(4, "little") for w in words) + text + len(body).to_bytes(4, "little") + _BIN.to_bytes(4, "little") + body
