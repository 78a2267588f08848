"""What a shape of a 3D data set is made from: a mesh file, DeepSDF's processed samples, or dice. Each can be sent to another process."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from metasdf.data.deepsdf import is_deepsdf, list_shapes, read_shape, sample_paths
from metasdf.data.procedural import CATEGORIES, procedural_parameters, procedural_shape
from metasdf.data.shape import PICTURE, SLICE, Sampling, Shape, keyed, pack_views, sample_mesh
from metasdf.data.sources import ShapeKey, Source, find_meshes, read_source
from metasdf.data.store import sha256_file
from metasdf.errors import InputError, UsageError
from metasdf.geometry.mesh import Mesh

PROCEDURAL = "procedural-"
UNREADABLE = "unreadable"
PROCEDURAL_COUNT = 100
STRETCH = 1.3  # of copies: sides of a shape differ by up to 1.3^2 more or less than they did
DRAWN = "negative inside; field units: field = (x - centre) * scale, the middle of the box at 0, the farthest vertex at 1/1.03; domain [-1, 1]^3"
TAKEN_OVER = ("samples, distribution and signs are as DeepSDF's preprocessing left them, negative inside; field units are those of the samples, "
              "field = (x - centre) * scale by NormalizationParameters; without these centre 0, scale 1, and no surface points")  # fmt: skip


class Origin(Protocol):
    """`name` is unique in a data set."""

    @property
    def name(self) -> str: ...
    @property
    def category(self) -> str: ...
    def checksum(self) -> str:
        """Of what the shape depends on besides the options."""
        ...

    def draw(self, how: Sampling) -> Shape:
        """Raises InputError where there is no surface, or the file cannot be read."""
        ...


class MeshFile(NamedTuple):
    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def category(self) -> str:
        return self.source.category

    def checksum(self) -> str:
        """Of the file; of a zip's member, what the zip itself says. Buffers beside a .gltf count: any of its folder, it may need them."""
        path, member = self.source.path, self.source.member
        if member is None:
            buffers = sorted(path.parent.glob("*.bin")) if path.suffix.lower() == ".gltf" else []
            return "-".join(sha256_file(each) for each in (path, *buffers))
        members = _members(path, path.stat().st_mtime_ns)
        buffers_inside = sorted(name for name in members if name.endswith(".bin")) if member.lower().endswith(".gltf") else []
        return "-".join(f"{members[each].CRC:08x}-{members[each].file_size}" for each in (member, *buffers_inside))

    def mesh(self) -> Mesh:
        return read_source(self.source)

    def draw(self, how: Sampling) -> Shape:
        return sample_mesh(self.mesh(), name=self.name, category=self.category, how=how)


class Dice(NamedTuple):
    """One of the procedural shapes."""

    category: str
    number: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.category}/{self.number:06d}"

    def checksum(self) -> str:
        return hashlib.sha256(json.dumps(procedural_parameters(self.category, self.number, seed=self.seed), sort_keys=True).encode()).hexdigest()

    def mesh(self) -> Mesh:
        return procedural_shape(self.category, self.number, seed=self.seed)

    def draw(self, how: Sampling) -> Shape:
        shape = sample_mesh(self.mesh(), name=self.name, category=self.category, how=how)
        shape.facts["parameters"] = procedural_parameters(self.category, self.number, seed=self.seed)
        return shape


class Stretched(NamedTuple):
    """A copy of a shape, each axis longer or shorter by a factor of its own: log-uniform within 1 / STRETCH and STRETCH, drawn by the copy's name."""

    origin: MeshFile | Dice
    number: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.origin.name}~{self.number}"

    @property
    def category(self) -> str:
        return self.origin.category

    @property
    def factors(self) -> NDArray[np.float64]:
        """(3,)"""
        return np.asarray(STRETCH ** keyed(self.seed, f"{self.name}, stretched").uniform(-1, 1, 3))  # not the numbers its samples are drawn by

    def checksum(self) -> str:
        return f"{self.origin.checksum()}-stretched-{','.join(f'{factor:.9f}' for factor in self.factors)}"

    def draw(self, how: Sampling) -> Shape:
        mesh = self.origin.mesh()
        shape = sample_mesh(Mesh(mesh.vertices * self.factors, mesh.faces), name=self.name, category=self.category, how=how)
        shape.facts.update(stretched=self.factors.tolist(), copy_of=self.origin.name)
        return shape


class Sampled(NamedTuple):
    """Samples that DeepSDF's preprocessing made: taken over as they are, all of them. Its surface points have no normals, and there are no views.
    Without NormalizationParameters nobody knows where surface points are: there are none then."""

    root: Path
    key: ShapeKey

    @property
    def name(self) -> str:
        return "/".join(self.key)

    @property
    def category(self) -> str:
        return self.key.category

    def checksum(self) -> str:
        return "-".join(sha256_file(path)[:32] for path in sample_paths(self.root, self.key) if path.exists())

    def draw(self, how: Sampling) -> Shape:
        given = read_shape(self.root, self.key)
        rng = keyed(how.seed, self.name)
        offset, scale = (np.zeros(3), 1.0) if given.offset is None or given.scale is None else (given.offset, given.scale)
        framed = given.offset is not None
        surface = (given.surface.astype(np.float64) + offset) * scale if given.surface is not None and framed else np.zeros((0, 3))
        arrays = {
            "samples": rng.permutation(np.column_stack((given.x, given.s)).astype(np.float32)),
            "volume": np.zeros((0, 4), np.float32),
            "surface": np.concatenate((surface, np.zeros_like(surface)), 1, dtype=np.float32),
            **pack_views([]),
            "slices": np.zeros((0, SLICE, SLICE), np.float32),
            "picture": np.zeros((0, PICTURE, 3), np.uint8),
        }
        facts = {"name": self.name, "category": self.category, "centre": (-offset).tolist(), "scale": scale, "kind": "samples",
                 "method": "given", "reason": "as DeepSDF's preprocessing found it", "framed": framed, "samples": len(given.s),
                 "dropped_rows": given.dropped_nan, "inside": float((given.s < 0).mean())}  # fmt: skip
        return Shape(arrays, facts)


class Origins(NamedTuple):
    """All that is found, and (name, reason) of what cannot even be tried. about: for the data set's card. sampled: others have drawn the samples."""

    found: list[Origin]
    dropped: list[tuple[str, str]]
    about: dict[str, Any]
    sampled: bool = False


def find_origins(source: str | Path, *, count: int | None = None, seed: int = 0) -> Origins:
    """What `source` is: `procedural-tables` and its like (`count` of them), a folder in DeepSDF's layout, or anything with meshes.

    Raises UsageError if there is nothing of the name, InputError if there is no mesh.
    """
    category = str(source).removeprefix(PROCEDURAL)
    if str(source).startswith(PROCEDURAL):
        if category not in CATEGORIES:
            raise UsageError(f"There are no procedural {category!r}", fix=f"use one of: {', '.join(PROCEDURAL + name for name in CATEGORIES)}")
        dice: list[Origin] = [Dice(category, number, seed) for number in range(count or PROCEDURAL_COUNT)]
        return Origins(dice, [], {"source": f"procedural {category}", "licence": "free: drawn by this program", "convention": DRAWN})
    if count is not None:
        raise UsageError("--count says how many procedural shapes to make", where=source, fix="take the first meshes only with --limit")
    path = Path(source)
    if path.is_dir() and is_deepsdf(path):
        about = {"source": "DeepSDF samples", "licence": "as the samples", "convention": TAKEN_OVER}
        return Origins([Sampled(path.absolute(), key) for key in list_shapes(path)], [], about, sampled=True)
    found = find_meshes(path)
    about = {"source": "meshes", "licence": "as the meshes", "convention": DRAWN}
    return Origins([MeshFile(each) for each in found.sources], found.dropped, about)


def checksum(origin: Origin) -> str:
    """Its own, or a word for what cannot be read: that will be dropped, with the reason, when it is drawn."""
    try:
        return origin.checksum()
    except (OSError, InputError, KeyError):
        return UNREADABLE


def key_of(origin: Origin, given: str, how: Sampling, *, version: int) -> str:
    """Under what name a shape is kept: equal keys are equal shapes, so a finished one is never drawn again. given: its checksum."""
    text = json.dumps([version, np.__version__, origin.name, given, type(origin).__name__, asdict(how)], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


@lru_cache(maxsize=4)
def _members(path: Path, changed: int) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: info for info in archive.infolist()}
