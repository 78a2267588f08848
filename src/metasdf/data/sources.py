"""Where meshes come from: one file, a folder of any depth, zips, ShapeNet's layout; and which of them a split file names.

Zips are listed and read in memory, never extracted; a name in one that could lead elsewhere is refused, with that one mesh only. Everything that
looks like a mesh is either in `sources` or in `dropped`, so the numbers add up.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metasdf.errors import InputError, UsageError
from metasdf.geometry.io import MAX_BYTES, MESH_SUFFIXES, read_mesh, read_mesh_bytes
from metasdf.geometry.mesh import Mesh

MAX_JSON_BYTES = 2**26
_SYNSET = re.compile(r"\d{8}")
_SHAPENET = (("models", "model_normalized.obj"), ("model.obj",))  # version 2, version 1; the first is preferred
ZIP_SUFFIXES = (".zip", ".sh3f")  # the second: furniture libraries of Sweet Home 3D
SPLITS = ("train", "val", "test")


class Source(NamedTuple):
    """A mesh to read. `name` is unique in the job, with / between parts, and the same whenever the same files are found."""

    name: str
    path: Path
    member: str | None  # inside the zip at `path`
    category: str


class Found(NamedTuple):
    """`dropped` are (name, reason): what looks like a mesh, or a zip of them, and cannot even be tried."""

    sources: list[Source]
    dropped: list[tuple[str, str]]


class ShapeKey(NamedTuple):
    """A shape in DeepSDF's layout. Each part is a plain file name."""

    dataset: str
    category: str
    shape: str


class _Candidate(NamedTuple):
    parts: tuple[str, ...]  # of the path below the root, the zip's name among them
    path: Path
    member: str | None


def find_meshes(path: str | Path) -> Found:
    """All meshes at `path`: a mesh file, a zip, or a folder that is searched at every depth for both. Sorted by name; hidden files are left out.

    A mesh is called by its path below `path` without suffixes, unless two would have one name: those keep theirs. Its category is the first
    folder. In ShapeNetCore's layout (`<synset>/<id>/models/model_normalized.obj` or `<synset>/<id>/model.obj`) the name is `<synset>/<id>`,
    the category is the synset, and a shape that is there in both versions counts once. A zip of one folder of folders stands for that folder.

    Raises UsageError if there is nothing at `path`, InputError if no mesh is found.
    """
    path = Path(path).absolute()  # other processes may have another working folder
    dropped: list[tuple[str, str]] = []
    root = path.resolve().stem if path.suffix.lower() in ZIP_SUFFIXES else path.resolve().name
    if path.is_dir():
        candidates = list(_in_folder(path, dropped))
    elif path.is_file() and path.suffix.lower() in ZIP_SUFFIXES:
        candidates, root = _within(list(_in_zip(path, (), dropped)), root)
    elif path.is_file() and path.suffix.lower() in MESH_SUFFIXES:
        candidates = [_Candidate((path.name,), path, None)]
    else:
        raise UsageError("There are no meshes there", where=path, cause="a wrong path" if not path.exists() else "neither a mesh nor a zip of them",
                         fix=f"pass a folder, a .zip, or a file that ends in {', '.join(MESH_SUFFIXES)}")  # fmt: skip
    sources = sorted(_named(candidates, root))
    if not sources:
        raise InputError("No mesh is found", where=path, cause=f"{dropped[0][0]}: {dropped[0][1]}" if dropped else "no file of a known kind",
                         fix=f"pass a folder that holds {', '.join(MESH_SUFFIXES)} or zips of them, at any depth")  # fmt: skip
    return Found(sources, sorted(dropped))


def read_source(source: Source) -> Mesh:
    """The mesh of a source, out of its file or its zip. Raises as `geometry.io.read_mesh`."""
    if source.member is None:
        return read_mesh(source.path)
    member = PurePosixPath(source.member)
    where = f"{source.path}: {member}"
    try:
        archive = _archive(source.path, source.path.stat().st_mtime_ns, os.getpid())
        data = _member(archive, source.member, where)
    except InputError:
        raise
    # Damaged zips raise what the decompressor happens to say
    except Exception as error:
        raise InputError(f"The zip cannot be read: {error}", where=where, cause="damaged, or changed since", fix="copy it again") from error
    # A buffer of a .gltf is looked up in the zip, whatever it is called; its name is never used as a path.
    return read_mesh_bytes(data, member.suffix, where=where, sibling=lambda name: _member(archive, (member.parent / name).as_posix(), where))


def read_split_file(path: str | Path) -> list[ShapeKey]:
    """DeepSDF's split file, `{dataset: {class: [id, ...]}}`, in its order; where its classes are splits, what else stands beside them is no list of
    shapes. Raises UsageError if there is none, InputError if it is no split file."""
    path = Path(path)
    if not path.is_file():
        raise UsageError("The split file does not exist", where=path, cause="a wrong path", fix="check the path")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError("The split file is absurdly large", where=path, cause="another kind of file")
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
        lists = [(dataset, category, shapes) for dataset, categories in tree.items() for category, shapes in categories.items()
                 if category in SPLITS or categories.keys().isdisjoint(SPLITS)]  # fmt: skip
        if not all(isinstance(shapes, list) for _, _, shapes in lists):
            raise ValueError("a class without a list of ids")
        keys = [ShapeKey(dataset, category, shape) for dataset, category, shapes in lists for shape in shapes]
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise InputError("Not a split file of DeepSDF's kind", where=path, cause=f"damaged, or another kind of JSON ({error})",
                         fix='it should say {"dataset": {"class": ["id", ...]}}') from error  # fmt: skip
    for key in keys:
        check_key(key, where=path)
    if repeated := [key for key, count in Counter(keys).items() if count > 1]:
        raise InputError(f"{'/'.join(repeated[0])} stands there more than once", where=path, fix="remove the repetition")
    return keys


def check_key(key: ShapeKey, *, where: object = "") -> None:
    """Its parts become file names, so each must be one and nothing else. Raises InputError."""
    for part in key:
        plain = isinstance(part, str) and 0 < len(part) <= 200 and _printable(part) and part[0] not in ". " and part[-1] not in ". "
        if not plain or any(c in part for c in '/\\:*?"<>|'):
            raise InputError(f"Not a name that can be used for a file: {part!r}", where=where, cause="made to do harm, or another kind of file",
                             fix="use letters, digits, - and _")  # fmt: skip


def _printable(text: str) -> bool:
    """With spaces of any kind."""
    return all(c.isprintable() or unicodedata.category(c) == "Zs" for c in text)


@lru_cache(maxsize=4)
def _archive(path: Path, changed: int, process: int) -> zipfile.ZipFile:
    """Kept open: ShapeNet's zips list tens of thousands of members. Not across a fork, where two processes would move one file position."""
    return zipfile.ZipFile(path)


def _in_folder(root: Path, dropped: list[tuple[str, str]]) -> Iterator[_Candidate]:
    seen = set[tuple[int, int]]()  # folders, which links may lead back to

    def unreadable(error: OSError) -> None:
        dropped.append((Path(error.filename).relative_to(root).as_posix(), f"the folder cannot be read: {error.strerror}"))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in sorted(files):
            path = Path(folder, name)
            parts = path.relative_to(root).parts
            if _hidden(name) or path.suffix.lower() not in (*MESH_SUFFIXES, *ZIP_SUFFIXES):
                continue
            if not path.is_file():
                dropped.append(("/".join(parts), "a link that leads nowhere, or no file"))
                continue
            if path.suffix.lower() in ZIP_SUFFIXES:
                yield from _in_zip(path, parts, dropped)
            elif path.suffix.lower() in MESH_SUFFIXES:
                yield _Candidate(parts, path, None)


def _in_zip(path: Path, parts: tuple[str, ...], dropped: list[tuple[str, str]]) -> Iterator[_Candidate]:
    """Members that are meshes; `parts` leads to the zip."""
    here = "/".join(parts) or "the zip"  # not its name: what is found depends on what is in it
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        dropped.append((here, f"the zip cannot be read: {error}"))
        return
    seen = set[PurePosixPath]()
    for info in members:
        name = info.filename
        inner = PurePosixPath(name.replace("\\", "/"))
        if info.is_dir() or inner.suffix.lower() not in (*MESH_SUFFIXES, *ZIP_SUFFIXES) or any(_hidden(part) for part in inner.parts if part != ".."):
            continue
        if reason := _refusal(info, inner, inner in seen):
            dropped.append((f"{here}: {name}", reason))
            continue
        seen.add(inner)
        yield _Candidate((*parts, *inner.parts), path, name)


def _within(candidates: list[_Candidate], root: str) -> tuple[list[_Candidate], str]:
    """The same as seen from the one folder that all folders lie in, if there is one, and its name: people zip `shapes`, not what is in it."""
    tops = {candidate.parts[0] for candidate in candidates}
    if len(tops) != 1 or any(len(candidate.parts) < 3 for candidate in candidates):
        return candidates, root
    return [candidate._replace(parts=candidate.parts[1:]) for candidate in candidates], tops.pop()


def _refusal(info: zipfile.ZipInfo, inner: PurePosixPath, repeated: bool) -> str:
    """Why a member is not even tried; empty if it is."""
    if inner.is_absolute() or ".." in inner.parts or ":" in inner.parts[0]:
        return "its name leads out of the archive"
    if any(unicodedata.category(c) == "Cc" for c in info.filename.replace("\t", " ")):  # what could act on the terminal where it is printed
        return "its name holds control characters"
    if inner.suffix.lower() in ZIP_SUFFIXES:
        return "a zip inside a zip"
    if info.flag_bits & 1:
        return "encrypted"
    if info.file_size > MAX_BYTES:
        return f"unpacked, it has {info.file_size:,} bytes; at most {MAX_BYTES:,} are read"
    return "its name is there twice" if repeated else ""


def _member(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """Contents of a member: never more than it declares, and that is bounded."""
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise InputError(f"{name[:80]!r} is needed, but not in the zip", where=where, cause="an incomplete archive") from error
    if info.file_size > MAX_BYTES:
        raise InputError(f"{name[:80]!r} has {info.file_size:,} bytes; at most {MAX_BYTES:,} are read", where=where, cause="made to do harm")
    with archive.open(info) as stream:
        return stream.read(info.file_size)


def _named(candidates: list[_Candidate], root: str) -> Iterator[Source]:
    """Give names; of a ShapeNet model that is there twice, the preferred file stays."""
    shapenet: dict[tuple[str, str], list[tuple[int, _Candidate]]] = {}
    others = []
    for candidate in candidates:
        if match := _shapenet(candidate.parts, root):
            shapenet.setdefault(match[0], []).append((match[1], candidate))
        else:
            others.append(candidate)
    # Version 1 of a shape that is there in version 2 is the same shape; two of one version are not.
    best = {key: [candidate for rank, candidate in found if rank == min(found)[0]] for key, found in shapenet.items()}
    named = {candidate: "/".join(key) for key, candidates in best.items() for candidate in candidates}
    named |= {candidate: _short(candidate) for candidate in others}
    while clashes := {name for name, count in Counter(named.values()).items() if count > 1}:
        named |= {candidate: "/".join(candidate.parts) for candidate, name in named.items() if name in clashes}
    synsets = {candidate: synset for (synset, _), candidates in best.items() for candidate in candidates}
    for candidate, name in named.items():
        folder = _without_zip(candidate.parts[0]) if len(candidate.parts) > 1 else ""
        yield Source(name, candidate.path, candidate.member, synsets.get(candidate, folder))


def _shapenet(parts: tuple[str, ...], root: str) -> tuple[tuple[str, str], int] | None:
    """(synset, shape) and how preferred the file is, if the path is one of ShapeNet's. The root itself may be the synset's folder."""
    full = (root, *parts)
    for rank, tail in enumerate(_SHAPENET):
        head = full[: -len(tail)]
        if full[-len(tail) :] == tail and len(head) >= 2 and _SYNSET.fullmatch(head[-2]):
            return (head[-2], head[-1]), rank
    return None


def _short(candidate: _Candidate) -> str:
    *folders, last = candidate.parts
    return "/".join([*(_without_zip(folder) for folder in folders), PurePosixPath(last).stem])


def _without_zip(name: str) -> str:
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in ZIP_SUFFIXES else name


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
