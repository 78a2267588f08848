"""COLLADA (.dae): triangles, polygons, strips and fans of the scene, each at its place.

Skins and morphs give their mesh at rest. The unit and the upward axis that a file names are not applied. References to other files are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from xml.etree.ElementTree import Element, TreeBuilder, XMLParser

import numpy as np
from numpy.typing import NDArray

from metasdf.geometry.formats.common import MAX_VERTICES, Assembly, fail, floats, integers
from metasdf.geometry.mesh import Mesh, prune
from metasdf.geometry.polygons import mesh_from_polygons

_SURFACES = {"triangles", "polylist", "polygons", "tristrips", "trifans"}


class _Builder(TreeBuilder):
    where: object = ""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        fail("The XML has a document type, which COLLADA does not need", self.where, cause="damaged, or made to do harm")


def parse(data: bytes, *, where: object = "") -> Mesh:
    """Raises InputError."""
    builder = _Builder()
    builder.where = where
    parser = XMLParser(target=builder)
    parser.feed(data)
    root = parser.close()
    for element in root.iter():
        element.tag = _name(element)
    if root.tag != "COLLADA":
        fail("Not a COLLADA file", where, cause="another format under this name")
    return _Reader(root, where).scene()


def _name(element: Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""  # comments have a function here


class _Reader:
    def __init__(self, root: Element, where: object) -> None:
        self.root, self.where = root, where
        self.by_id = {element.attrib["id"]: element for element in root.iter() if "id" in element.attrib}
        self.meshes: dict[str, list[Mesh]] = {}
        self.points: dict[str, NDArray[np.float64]] = {}
        self.read = 0

    def scene(self) -> Mesh:
        assembly = Assembly(self.where)
        instance = self.root.find("scene/instance_visual_scene")
        scene = self.target(instance) if instance is not None else self.root.find("library_visual_scenes/visual_scene")
        if scene is None:  # a library of parts: nothing is placed, so each is where it is
            for geometry in self.root.iterfind("library_geometries/geometry"):
                assembly.add(self.geometry(geometry), np.eye(4))
            return assembly.mesh()
        todo = [(node, np.eye(4), 0) for node in scene.iterfind("node")]
        while todo:
            node, matrix, depth = todo.pop()
            for child in node:  # in order: each moves what is inside the ones before
                matrix = matrix @ _matrix(child)
            for child in node:
                match child.tag:
                    case "node" | "instance_node":
                        assembly.enter(depth + 1)
                        todo.append((child if child.tag == "node" else self.target(child), matrix, depth + 1))
                    case "instance_geometry":
                        assembly.add(self.geometry(self.target(child)), matrix)
                    case "instance_controller":
                        assembly.add(self.controlled(self.target(child)), matrix)
        return assembly.mesh()

    def target(self, element: Element, attribute: str = "url") -> Element:
        """What a reference such as url="#chair" means."""
        url = element.attrib[attribute]
        if not url.startswith("#"):
            fail(f"The file refers to another one: {url[:80]!r}", self.where, cause="a scene in several files", fix="export it as one file")
        if url[1:] not in self.by_id:
            fail(f"{url[:80]!r} is used, but not there", self.where)
        return self.by_id[url[1:]]

    def controlled(self, controller: Element) -> list[Mesh]:
        """The mesh that a skin or a morph bends, before it does."""
        for _ in range(3):  # a skin of a morph
            if controller.tag == "geometry":
                return self.geometry(controller)
            inner = controller.find("skin") if controller.find("skin") is not None else controller.find("morph")
            if inner is None:
                break
            controller = self.target(inner, "source")
        fail("A controller has no geometry", self.where)

    def geometry(self, geometry: Element) -> list[Mesh]:
        key = geometry.attrib.get("id", str(id(geometry)))
        if key not in self.meshes:
            mesh = geometry.find("mesh")
            self.meshes[key] = [prune(self.primitive(p)) for p in mesh if p.tag in _SURFACES] if mesh is not None else []
        return self.meshes[key]

    def primitive(self, primitive: Element) -> Mesh:
        inputs = primitive.findall("input")
        offsets = {i.attrib["semantic"]: int(i.attrib.get("offset", 0)) for i in inputs}
        stride = max(offsets.values()) + 1
        place = offsets["VERTEX"]
        if place < 0 or primitive.find("ph") is not None:
            fail("A polygon has a hole", self.where, cause="an unusual export", fix="export it as triangles")
        vertices = self.positions(next(i for i in inputs if i.attrib["semantic"] == "VERTEX"))
        runs = [integers((p.text or "").split()).reshape(-1, stride)[:, place] for p in primitive.iterfind("p")]
        corners = np.concatenate([np.zeros(0, np.int64), *runs])
        match primitive.tag:
            case "triangles":
                sizes = np.full(len(corners) // 3, 3)
            case "polylist":
                sizes = integers((primitive.findtext("vcount") or "").split())
            case "polygons":
                sizes = np.array([len(run) for run in runs], np.int64)
            case _:
                corners = np.concatenate([np.zeros(0, np.int64), *(t for run in runs for t in _unroll(run, fan=primitive.tag == "trifans"))])
                sizes = np.full(len(corners) // 3, 3)
        if (sizes < 0).any() or sizes.sum() != len(corners):
            fail(f"Polygons need {sizes.sum():,} corners, but there are {len(corners):,}", self.where)
        return mesh_from_polygons(vertices, corners, sizes, where=self.where)

    def positions(self, vertex_input: Element) -> NDArray[np.float64]:
        """Coordinates (V, 3) behind an input with the meaning VERTEX."""
        element = self.target(vertex_input, "source")
        if element.tag == "vertices":
            element = self.target(next(i for i in element.iterfind("input") if i.attrib["semantic"] == "POSITION"), "source")
        key = element.attrib["id"]
        if key not in self.points:  # primitives of a geometry share one
            self.points[key] = self.source(element)
        self.read += len(self.points[key])
        if self.read > MAX_VERTICES:
            fail(f"The primitives have more than {MAX_VERTICES:,} vertices in all", self.where, cause="made to do harm")
        return self.points[key]

    def source(self, element: Element) -> NDArray[np.float64]:
        """Rows (V, 3) of an array of numbers."""
        accessor, numbers = element.find("technique_common/accessor"), element.find("float_array")
        if accessor is None or numbers is None:
            fail("Vertices without coordinates", self.where)
        values = floats((numbers.text or "").split())
        start, stride, count = (int(accessor.attrib.get(name, default)) for name, default in (("offset", 0), ("stride", 1), ("count", 0)))
        if not (start >= 0 and stride >= 3 and count >= 0 and start + count * stride <= len(values)):
            fail(f"{count:,} vertices are announced, but there are only {len(values):,} numbers", self.where)
        return values[start : start + count * stride].reshape(count, stride)[:, :3]


def _unroll(run: NDArray[np.int64], *, fan: bool) -> Iterator[NDArray[np.int64]]:
    """The triangles of a strip or a fan, corners one after the other."""
    for k, (b, c) in enumerate(pairwise(run[1:])):
        yield np.array((run[0], b, c) if fan else (run[k + k % 2], run[k + 1 - k % 2], c))


def _matrix(element: Element) -> NDArray[np.float64]:
    """What an element of a node does to what is inside, (4, 4) for columns; nothing for elements that are no transformations."""
    matrix = np.eye(4)
    if element.tag not in ("matrix", "translate", "scale", "rotate", "lookat", "skew"):
        return matrix
    numbers = floats((element.text or "").split())
    match element.tag:
        case "matrix":
            return numbers.reshape(4, 4)
        case "translate":
            matrix[:3, 3] = numbers
        case "scale":
            matrix[[0, 1, 2], [0, 1, 2]] = numbers
        case "rotate":
            axis, angle = numbers[:3], np.radians(numbers[3])
            x, y, z = axis / max(float(np.linalg.norm(axis)), np.finfo(np.float64).tiny)
            cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            matrix[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        case "lookat":
            eye, interest, up = numbers.reshape(3, 3)
            back = (eye - interest) / np.linalg.norm(eye - interest)
            right = np.cross(up, back) / np.linalg.norm(np.cross(up, back))
            matrix[:3] = np.stack((right, np.cross(back, right), back, eye), 1)
        case "skew":
            raise ValueError("skew is not supported")
    return matrix
