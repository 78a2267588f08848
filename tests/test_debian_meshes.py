"""examples/debian_meshes.py on tiny packages of the real ones' layout, and its list against the shapes at hand."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import REPOSITORY

from metasdf.data.sources import ShapeKey, check_key, find_meshes, read_source, read_split_file
from metasdf.errors import InputError, UsageError
from metasdf.geometry.io import read_mesh
from metasdf.geometry.mesh import areas

SCRIPT = REPOSITORY / "examples" / "debian_meshes.py"
SHAPES = REPOSITORY.parent / "shared" / "data" / "shapes"

# A square 2 x 2 m, moved 1 m along x.
PLANE = """AC3Db
MATERIAL "m" rgb 1 1 1 amb 1 1 1 emis 0 0 0 spec 1 1 1 shi 0 trans 0
OBJECT world
kids 1
OBJECT poly
loc 1 0 0
numvert 4
0 0 0
2 0 0
2 0 2
0 0 2
numsurf 1
SURF 0x10
mat 0
refs 4
0 0 0
1 1 0
2 1 1
3 0 1
kids 0
"""
# A tetrahedron: the last face has no area, and its first corner is written twice.
TABLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nv 0 0 0\nf 1 3 2\nf 5 2 4\nf 1 4 3\nf 2 3 4\nf 1 5 2\n"
CHAIR = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\nf 3 2 1\n"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("debian_meshes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Both packages, unpacked into one folder: one aircraft, and a library of two pieces of furniture."""
    root = tmp_path / "packages"
    for name, line in (("flightgear-data-ai", "flightgear-data (1:2020.3.16+dfsg-1) unstable"),
                       ("sweethome3d-furniture", "sweethome3d-furniture (1.8-1) unstable")):  # fmt: skip
        changelog = root / "usr/share/doc" / name / "changelog.Debian.gz"
        changelog.parent.mkdir(parents=True)
        changelog.write_bytes(gzip.compress(f"{line}; urgency=medium\n\n  * Release\n".encode()))
    plane = root / "usr/share/games/flightgear/AI/Aircraft/A-1/Models/A-1.ac"
    plane.parent.mkdir(parents=True)
    plane.write_text(PLANE)
    library = root / "usr/share/sweethome3d/furniture/Scopia.sh3f"
    library.parent.mkdir(parents=True)
    with zipfile.ZipFile(library, "w") as archive:
        archive.writestr("scopia/round-table/round-table.obj", TABLE)
        archive.writestr("scopia/chair/chair.obj", CHAIR)
    return root


def three(script: ModuleType) -> list[object]:
    return [script.Model("planes", "a_1_a_1", "train", "GPL-2.0-or-later", "FlightGear contributors", "A-1/Models/A-1"),
            script.Model("tables", "scopia_round_table", "val", "CC-BY-3.0", "Scopia", "Scopia/scopia/round-table/round-table"),
            script.Model("chairs", "scopia_chair", "test", "CC-BY-3.0", "Scopia", "Scopia/scopia/chair/chair")]  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_meshes_come_out_in_folders_of_categories(script: ModuleType, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    script.convert(packages, out, models=three(script))
    assert capsys.readouterr().out == f"{out}: 1 planes, 1 tables, 1 chairs\n"
    found = find_meshes(out)
    assert [(source.name, source.category) for source in found.sources] == [
        ("chairs/scopia_chair", "chairs"), ("planes/a_1_a_1", "planes"), ("tables/scopia_round_table", "tables")]  # fmt: skip
    assert not found.dropped
    plane = read_mesh(out / "planes" / "a_1_a_1.ply")
    assert np.array_equal(np.unique(plane.vertices, axis=0), [[1, 0, 0], [1, 0, 2], [3, 0, 0], [3, 0, 2]])
    assert areas(plane).sum() == 4
    assert [(len(mesh.vertices), len(mesh.faces)) for mesh in map(read_source, found.sources)] == [(3, 2), (4, 2), (4, 4)]
    assert {path.name for path in out.iterdir()} == {
        "chairs", "planes", "tables", "sources.tsv", "splits.json", "chairs.json", "planes.json", "tables.json"}  # fmt: skip


def test_sources_and_splits_say_what_was_written(script: ModuleType, packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script.convert(packages, out, models=three(script))
    plane, table, chair = rows(out / "sources.tsv")
    assert plane == {"category": "planes", "name": "a_1_a_1", "source": "flightgear-data-ai 2020.3.16 (Debian)", "license": "GPL-2.0-or-later",
                     "creator": "FlightGear contributors", "vertices": "4", "faces": "2", "watertight": "False"}  # fmt: skip
    assert table["source"] == chair["source"] == "sweethome3d-furniture 1.8 (Debian), Scopia"
    assert (table["vertices"], table["faces"], table["watertight"]) == ("4", "4", "True")  # welded, without the face of no area
    assert (chair["vertices"], chair["faces"]) == ("3", "2")  # both sides stay
    keys = [ShapeKey("planes", "train", "a_1_a_1"), ShapeKey("tables", "val", "scopia_round_table"), ShapeKey("chairs", "test", "scopia_chair")]
    assert read_split_file(out / "splits.json") == keys
    assert [read_split_file(out / f"{key.dataset}.json") for key in keys] == [[key] for key in keys]


def test_the_same_files_come_out_again(script: ModuleType, packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = []
    for _ in range(2):
        script.convert(packages, out, models=three(script))
        written.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert written[0] == written[1] and len(written[0]) == 8


def test_what_is_not_there_is_said_before_anything_is_written(script: ModuleType, packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="flightgear-data-ai is not there"):
        script.convert(tmp_path / "elsewhere", out, models=three(script))
    extra = script.Model("tables", "scopia_desk", "train", "CC-BY-3.0", "Scopia", "Scopia/scopia/desk/desk")
    with pytest.raises(InputError, match="1 of 4 models are not in the packages, the first one Scopia/scopia/desk/desk"):
        script.convert(packages, out, models=[*three(script), extra])
    assert not out.exists()


@pytest.mark.parametrize("text", [b"not gzip", gzip.compress(b"\xff\xfe nothing"), gzip.compress(b"")[:10]])
def test_a_damaged_changelog_is_a_package_that_is_not_there(script: ModuleType, packages: Path, tmp_path: Path, text: bytes) -> None:
    (packages / "usr/share/doc/sweethome3d-furniture/changelog.Debian.gz").write_bytes(text)
    with pytest.raises(UsageError, match="sweethome3d-furniture is not there"):
        script.convert(packages, tmp_path / "out", models=three(script))


def test_another_version_is_refused(script: ModuleType, packages: Path, tmp_path: Path) -> None:
    changelog = packages / "usr/share/doc/flightgear-data-ai/changelog.Debian.gz"
    changelog.write_bytes(gzip.compress(b"flightgear-data (1:2024.1.1+dfsg-1) unstable; urgency=medium\n"))
    with pytest.raises(UsageError, match=r"of version 1:2024\.1\.1\+dfsg-1; the list of models is made for 1:2020\.3\.16\+dfsg-1"):
        script.convert(packages, tmp_path / "out", models=three(script))


def test_the_command_says_what_is_wrong_and_leaves_with_its_code(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["debian_meshes.py", str(tmp_path / "none"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    error = capsys.readouterr().err
    assert "The package flightgear-data-ai is not there" in error and "docs/data.md" in error and "Traceback" not in error


def test_the_list_names_each_shape_once(script: ModuleType) -> None:
    models = script.read_list()
    assert Counter(model.category for model in models) == {"planes": 136, "chairs": 66, "tables": 51, "benches": 5}
    assert len({(model.category, model.name) for model in models}) == len({model.model for model in models}) == len(models) == 258
    assert {model.split for model in models} == {"train", "val", "test"}
    assert {model.license for model in models} == {"GPL-2.0-or-later", "CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US"}
    for model in models:
        assert all(model)
        check_key(ShapeKey("debian", model.category, model.name))


@pytest.mark.skipif(not SHAPES.is_dir(), reason="the shapes at hand are not here: shared/data/shapes is missing beside the repository")
def test_the_list_is_that_of_the_shapes_at_hand(script: ModuleType) -> None:
    models, wanted = script.read_list(), rows(SHAPES / "sources.tsv")
    assert [(m.category, m.name, script.source_of(m), m.license.removesuffix("-US"), m.creator) for m in models] == [
        (row["category"], row["name"], row["source"], row["license"], row["creator"]) for row in wanted]  # fmt: skip
    splits = json.loads((SHAPES / "splits.json").read_text())
    assert {(model.category, model.split, model.name) for model in models} == {
        (category, split, name) for category, parts in splits.items() for split in ("train", "val", "test") for name in parts[split]}  # fmt: skip
