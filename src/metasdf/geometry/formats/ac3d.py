"""AC3D (.ac), the text format of FlightGear's models.

A file is a tree of objects. Each has a rotation (nine numbers; points are rows: x' = x R + loc) and a place, both relative to its parent,
vertices, and surfaces that name them. Surfaces of type 0 are polygons; types 1 and 2 are lines, which have no surface. A double-sided
surface is one surface here. Materials, textures, and what smooths the look (crease, subdiv) do not matter to the shape as modelled.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError
from metasdf.geometry.formats.common import fail, lines_of
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.polygons import mesh_from_polygons

_POLYGON, _LINES, _TYPE_BITS = 0, (1, 2), 0x0F


class _Place(NamedTuple):
    """Where an object stands in the world, and how many of its kids are still to come."""

    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    kids: int


class _Lines:
    """The words of each line in turn, and its number for errors."""

    def __init__(self, data: bytes, where: object) -> None:
        self.lines, self.where, self.number = lines_of(data), where, 0

    def words(self) -> list[str]:
        """Of the next line that is not empty; none at the end of the file."""
        while self.number < len(self.lines):
            self.number += 1
            if words := self.lines[self.number - 1].split():
                return words
        return []

    def needed(self) -> list[str]:
        return self.words() or self.fail("The file ends in the middle of an object", cause="cut off")

    def count(self, words: list[str]) -> int:
        """The number after a token such as numvert: of things that each need a line of their own."""
        count = int(words[1])
        if not 0 <= count <= len(self.lines) - self.number:
            self.fail(f"{words[0]} says {count:,}, but only {len(self.lines) - self.number:,} lines follow")
        return count

    def rows(self, words: list[str]) -> list[list[str]]:
        """The lines that a token such as refs announces."""
        count = self.count(words)
        rows = [line.split() for line in self.lines[self.number : self.number + count]]
        if not all(rows):  # empty lines in between, which no program writes
            return [self.needed() for _ in range(count)]
        self.number += count
        return rows

    def fail(self, what: str, *, cause: str = "damaged or incomplete") -> NoReturn:
        fail(what, f"{self.where}, line {self.number}", cause=cause)


class _Geometry:
    """All objects' polygons so far, in world coordinates."""

    def __init__(self) -> None:
        self.vertices: list[NDArray[np.float64]] = [np.zeros((0, 3))]
        self.total = 0
        self.corners: list[int] = []
        self.sizes: list[int] = []


def parse(data: bytes, *, where: object = "") -> Mesh:
    """Raises InputError, with the number of the line, for all that is not as it should be."""
    lines, geometry = _Lines(data, where), _Geometry()
    if not lines.words()[:1] or not lines.lines[lines.number - 1].lstrip("ï»¿").startswith("AC3D"):  # some have a byte order mark
        fail("Not an AC3D file: it does not begin with AC3D", where, cause="another format under this name, or an empty file")
    top = _Place(np.eye(3), np.zeros(3), 1)
    open_objects: list[_Place] = []
    try:
        while words := lines.words():
            if words[0] == "OBJECT":
                parent = open_objects.pop() if open_objects else top
                open_objects.append(parent._replace(kids=parent.kids - 1))
                open_objects.append(_object(lines, geometry, parent))
                while open_objects and not open_objects[-1].kids:
                    open_objects.pop()
            elif open_objects:
                lines.fail(f"An OBJECT is due, not {words[0][:20]!r}")
            # else materials, which newer versions describe over several lines
    except InputError:
        raise
    except (ValueError, IndexError, OverflowError) as error:
        lines.fail(f"A line cannot be understood: {error}")
    # Files that announce more kids than come are common (13 of FlightGear's 221), and complete otherwise: what is there is read.
    return mesh_from_polygons(np.concatenate(geometry.vertices), geometry.corners, geometry.sizes, where=where)


def _object(lines: _Lines, geometry: _Geometry, parent: _Place) -> _Place:
    """Read one object after its OBJECT line, up to and with `kids`, and put its polygons into `geometry`."""
    rotation, shift, points = np.eye(3), np.zeros(3), np.zeros((0, 3))
    while True:
        words = lines.needed()
        match words[0]:
            case "kids":
                break
            case "OBJECT":
                lines.fail("An object without kids: the line is due at the end of each")
            case "rot":
                rotation = np.array([float(w) for w in words[1:10]]).reshape(3, 3)
            case "loc":
                shift = np.array([float(w) for w in words[1:4]]).reshape(3)
            case "data":
                _skip_text(lines, int(words[1]))
            case "numvert":
                rows = lines.rows(words)
                points = np.array([[float(w) for w in row[:3]] for row in rows]).reshape(len(rows), 3)
            case "numsurf":
                for _ in range(lines.count(words)):
                    _surface(lines, geometry, len(points))
            case token if not token[0].isalpha():  # words that we do not know are of newer versions; numbers are lines too many
                lines.fail(f"{token[:20]!r} where a word is due, such as numvert or kids")
    rotation, shift = rotation @ parent.rotation, shift @ parent.rotation + parent.shift
    geometry.vertices.append(points @ rotation + shift)
    geometry.total += len(points)
    kids = int(words[1])
    if kids < 0:
        lines.fail(f"kids says {kids}")
    return _Place(rotation, shift, kids)


def _surface(lines: _Lines, geometry: _Geometry, count: int) -> None:
    words = lines.needed()
    if words[0] != "SURF":
        lines.fail(f"A SURF is due, not {words[0][:20]!r}")
    kind = int(words[1], 16 if "x" in words[1].lower() else 10) & _TYPE_BITS
    if kind != _POLYGON and kind not in _LINES:
        lines.fail(f"{words[1]!r} is no kind of surface that is known")
    while words[0] != "refs":
        words = lines.needed()
        if words[0] in ("SURF", "OBJECT", "kids"):
            lines.fail("A surface without refs")
    refs = [int(row[0]) for row in lines.rows(words)]
    if refs and not 0 <= min(refs) <= max(refs) < count:
        lines.fail(f"The surface that ends here names vertex {min(refs) if min(refs) < 0 else max(refs)}; the object has {count:,}, from 0")
    if kind == _POLYGON:
        geometry.corners += [geometry.total + ref for ref in refs]
        geometry.sizes.append(len(refs))


def _skip_text(lines: _Lines, length: int) -> None:
    """`data N` is followed by N characters, line ends included, of anything."""
    while length > 0 and lines.number < len(lines.lines):
        length -= len(lines.lines[lines.number]) + 1
        lines.number += 1
