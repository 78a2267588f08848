"""What the readers share: errors, numbers out of text, and meshes put together out of many parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metasdf.errors import InputError
from metasdf.geometry.mesh import Mesh, concatenate, prune, transform

MAX_FACES = 20_000_000
MAX_VERTICES = 100_000_000  # read, not kept
MAX_NODES = 100_000
MAX_DEPTH = 100
EXPORT_AGAIN = "open it in a modelling program and export it again"
Sibling = Callable[[str], bytes]  # the bytes of a file in the same folder, by the name that is written in a mesh file


def fail(what: str, where: object, *, cause: str = "damaged or incomplete", fix: str = EXPORT_AGAIN) -> NoReturn:
    raise InputError(what, where=where, cause=cause, fix=fix)


def floats(tokens: Sequence[str | bytes]) -> NDArray[np.float64]:
    """Text -> (N,). ValueError where one is no number."""
    return np.fromiter(map(float, tokens), np.float64, len(tokens))


def integers(tokens: Sequence[str | bytes]) -> NDArray[np.int64]:
    """Text -> (N,). ValueError where one is no whole number, OverflowError beyond 64 bits."""
    return np.fromiter(map(int, tokens), np.int64, len(tokens))


def lines_of(data: bytes) -> list[str]:
    """Lines of text in any encoding: all that is not ASCII is in names, and those are not used."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode("latin-1").split("\n")


class Assembly:
    """Parts of a scene, each moved to its place; small files that refer to the same parts again and again are stopped in time."""

    def __init__(self, where: object) -> None:
        self.where, self.parts, self.faces, self.nodes = where, list[Mesh](), 0, 0

    def add(self, meshes: Iterable[Mesh], matrix: ArrayLike) -> None:
        for mesh in meshes:
            self.faces += len(mesh.faces)
            if self.faces > MAX_FACES:
                fail(f"The scene has more than {MAX_FACES:,} faces", self.where, cause="parts that are used again and again")
            self.parts.append(transform(prune(mesh), matrix))

    def enter(self, depth: int) -> None:
        """To be called for every node that is put on the list of those to visit; a file may reach one along many ways."""
        self.nodes += 1
        if depth > MAX_DEPTH:
            fail(f"Parts within parts, more than {MAX_DEPTH} deep", self.where, cause="a part that contains itself")
        if self.nodes > MAX_NODES:
            fail(f"The scene has more than {MAX_NODES:,} nodes", self.where, cause="parts that are used again and again")

    def mesh(self) -> Mesh:
        return concatenate(self.parts)
