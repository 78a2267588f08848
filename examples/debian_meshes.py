"""The 258 real meshes that metasdf is measured with, out of two Debian packages: python examples/debian_meshes.py PACKAGES OUT

PACKAGES is the folder that flightgear-data-ai and sweethome3d-furniture were unpacked into (docs/data.md says how), or / where they are
installed. debian_meshes.tsv, beside this file, lists the models: which, what each is called, of whom, under which licence, for which split.
Written are OUT/<category>/<name>.ply, welded and without faces of no area, OUT/sources.tsv, and split files for `metasdf prepare --split-file`:
OUT/<category>.json for one category, OUT/splits.json for all.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from pathlib import Path
from typing import NamedTuple

from metasdf.data.sources import Source, find_meshes, read_source
from metasdf.errors import InputError, MetaSDFError, UsageError
from metasdf.geometry.io import write_mesh, write_whole
from metasdf.geometry.mesh import clean, is_watertight

LIST = Path(__file__).with_suffix(".tsv")


class Package(NamedTuple):
    name: str
    version: str  # as its changelog has it; another one may have other models under the same names
    models: str


AIRCRAFT = Package("flightgear-data-ai", "1:2020.3.16+dfsg-1", "usr/share/games/flightgear/AI/Aircraft")
FURNITURE = Package("sweethome3d-furniture", "1.8-1", "usr/share/sweethome3d/furniture")


class Model(NamedTuple):
    """A row of the list. `model` is what `find_meshes` calls it in its package."""

    category: str
    name: str
    split: str
    license: str
    creator: str
    model: str


def read_list(path: Path = LIST) -> list[Model]:
    with path.open(encoding="utf-8", newline="") as lines:
        return [Model(**row) for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]


def convert(packages: Path, out: Path, *, models: list[Model]) -> None:
    """Read each model and write all files. Raises InputError if a model is missing or damaged, and as `models_of`."""
    found = models_of(packages, AIRCRAFT) | models_of(packages, FURNITURE)
    if missing := [model.model for model in models if model.model not in found]:
        raise InputError(f"{len(missing)} of {len(models)} models are not in the packages, the first one {missing[0]}", where=packages,
                         cause="unpacked in part", fix="unpack both packages again")  # fmt: skip
    rows = [("category", "name", "source", "license", "creator", "vertices", "faces", "watertight")]
    splits: dict[str, dict[str, list[str]]] = {}
    for model in models:
        mesh = clean(read_source(found[model.model]), coincident=False)
        write_mesh(out / model.category / f"{model.name}.ply", mesh)
        facts = (str(len(mesh.vertices)), str(len(mesh.faces)), str(is_watertight(mesh)))
        rows.append((model.category, model.name, source_of(model), model.license, model.creator, *facts))
        splits.setdefault(model.category, {"train": [], "val": [], "test": []})[model.split].append(model.name)
    write_whole(out / "sources.tsv", "".join("\t".join(row) + "\n" for row in rows).encode())
    for name, listed in [("splits", splits), *((category, {category: parts}) for category, parts in splits.items())]:
        write_whole(out / f"{name}.json", (json.dumps(listed, indent=1) + "\n").encode())
    print(f"{out}: " + ", ".join(f"{sum(map(len, parts.values()))} {category}" for category, parts in splits.items()))


def models_of(packages: Path, package: Package) -> dict[str, Source]:
    """All models of an unpacked package, by name. Raises UsageError if it is not there, or is of another version."""
    try:
        with gzip.open(packages / "usr/share/doc" / package.name / "changelog.Debian.gz", "rt", encoding="utf-8") as changelog:
            version = changelog.readline(1000).partition("(")[2].partition(")")[0]
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"The package {package.name} is not there", where=packages, cause=f"a wrong folder, or unpacked in part ({error})",
                         fix="unpack both packages into one folder, whole, as docs/data.md says, and pass that folder") from error  # fmt: skip
    if version != package.version:
        raise UsageError(f"{package.name} is of version {version}; the list of models is made for {package.version}", where=packages,
                         cause="a package of another release", fix="get the .deb file of that version, as docs/data.md says")  # fmt: skip
    return {source.name: source for source in find_meshes(packages / package.models).sources}


def source_of(model: Model) -> str:
    if model.category == "planes":
        return "flightgear-data-ai 2020.3.16 (Debian)"
    return f"sweethome3d-furniture 1.8 (Debian), {model.model.partition('/')[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Aircraft and furniture out of two Debian packages, as folders of meshes.")
    parser.add_argument("packages", type=Path, help="folder that both packages were unpacked into")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    try:
        convert(arguments.packages, arguments.out, models=read_list())
    except MetaSDFError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
