"""Meshes -> data sets: every shape is kept or named, the same bytes come out in any way, and nothing finished is made twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from solids import ball, box, flipped, soup, torus

from metasdf.cli import cli
from metasdf.data import meshes, unfinished
from metasdf.data import store as store_module
from metasdf.data.deepsdf import list_shapes
from metasdf.data.deepsdf import read_shape as read_deepsdf
from metasdf.data.deepsdf import write_shape as write_deepsdf
from metasdf.data.isolation import Done, Failure, Limits
from metasdf.data.meshes import merge, prepare_meshes
from metasdf.data.origins import MeshFile
from metasdf.data.shape import Sampling, frame_of, read_shape
from metasdf.data.sources import ShapeKey, Source
from metasdf.data.splits import SplitFiles, split_of_file
from metasdf.data.store import Store, sha256_file
from metasdf.errors import InputError, MetaSDFError, UsageError
from metasdf.geometry.io import write_mesh
from metasdf.geometry.mesh import Mesh

FEW = Sampling(samples=400, surface=100, views=2, view_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shapes of two categories, one of them with half of its faces turned around, and two files that are no shapes."""
    root = tmp_path_factory.mktemp("meshes")
    for k in range(3):
        write_mesh(root / f"balls/ball{k}.ply", ball(2, radius=1 + k, centre=(k, 0, 5)))
    write_mesh(root / "boxes/long.obj", box(size=(4, 1, 1), cuts=2))
    write_mesh(root / "boxes/ring.stl", torus(16, 8))
    write_mesh(root / "boxes/turned.off", flipped(soup(box(cuts=3)), 0.5))
    (root / "boxes/empty.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n")
    (root / "boxes/points.obj").write_text("v 0 0 0\nv 1 0 0\n")
    return root


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes are made in this process: what is tested is what becomes of them."""

    def run(function: Any, jobs: Any, **options: Any) -> Iterator[Done]:
        for number, job in enumerate(jobs):
            try:
                yield Done(number, function(*job))
            except InputError as error:
                yield Done(number, Failure(error.what, error.fix))

    monkeypatch.setattr(meshes, "run", run)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_every_shape_is_kept_or_named(folder: Path, tmp_path: Path) -> None:
    """With worker processes."""
    said: list[str] = []
    store = prepare_meshes(folder, tmp_path / "data", sampling=FEW, workers=2, say=said.append, progress=False)
    names = ["balls/ball0", "balls/ball1", "balls/ball2", "boxes/long", "boxes/ring", "boxes/turned"]
    assert [facts["name"] for facts in store.meta["shapes"]] == names and len(store) == 6
    assert [entry["name"] for entry in store.meta["dropped"]] == ["boxes/empty", "boxes/points"]
    assert store.meta["found"] == 8 and all(entry["reason"] and entry["fix"] for entry in store.meta["dropped"])
    assert any("dropped boxes/points: " in text for text in said)
    assert sorted(np.concatenate(list(store.splits.values())).tolist()) == list(range(6))
    assert not list(tmp_path.glob(".*")) and Store.open(store.path, verify=True).fingerprint == store.fingerprint
    page = (store.path / "review.html").read_text()
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert re.search(r"test \d\. Categories: balls 3, boxes 3\.", words) and re.search(r"\d\. Signs by .* \d\. A sheet is", words)
    assert "8 found = 6 kept + 2 dropped" in page and "boxes/points" in page and page.count("data:image/png") == 6
    again = prepare_meshes(folder, tmp_path / "data", sampling=FEW, workers=1)
    assert again.fingerprint == store.fingerprint
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("here")
def test_what_a_shape_holds(folder: Path, tmp_path: Path) -> None:
    store = prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)
    for row, radius in enumerate((1, 2, 3)):
        shape = read_shape(store.item(row))
        frame = store.arrays["frames"][row]
        assert frame[3] == pytest.approx(1 / 1.03 / radius, rel=1e-6) and frame[:3] == pytest.approx((row, 0, 5), abs=1e-6)
        a = shape.arrays
        assert a["samples"].shape == (400, 4) and a["samples"].dtype == np.float32
        truth = np.linalg.norm(a["samples"][:, :3], axis=1) - 1 / 1.03
        assert np.abs(a["samples"][:, 3] - truth).max() < 0.03  # a ball of 320 faces
        assert a["surface"].shape == (100, 6) and (a["surface"][:, :3] * a["surface"][:, 3:]).sum(1).min() > 0.9  # outwards
        assert np.abs(np.linalg.norm(a["surface"][:, :3], axis=1) - 1 / 1.03).max() < 0.03
        assert a["view_offsets"][0] == 0 and a["view_offsets"][-1] == len(a["views"]) and len(a["view_offsets"]) == 3
        assert a["volume"].shape == (400, 4) and 0.9 < np.abs(a["volume"][:, :3]).max() <= 1
        assert np.abs(a["volume"][:, 3] - np.linalg.norm(a["volume"][:, :3], axis=1) + 1 / 1.03).max() < 0.03
        assert a["slices"].shape == (3, 96, 96) and a["slices"].min() < -0.9 and a["picture"].shape == (192, 192, 3)
        assert shape.facts["kind"] == "solid" and shape.facts["agreement"] == store.arrays["agreement"][row, 0] == 1
    first_half = read_shape(store.item(0)).arrays["samples"][:200]
    assert 0.3 < (np.abs(first_half[:, 3]) < 0.05).mean() / (np.abs(read_shape(store.item(0)).arrays["samples"][:, 3]) < 0.05).mean() < 1.2  # mixed


@pytest.mark.parametrize("size", [1e-290, 1e-170, 1e-155, 1.0, 1e90])
def test_frames_of_any_size(size: float) -> None:
    """Squares of the smallest and the largest sizes are no floating-point numbers."""
    frame = frame_of(Mesh(np.array([[-1.0, 0, 0], [1, 0, 0], [0, 0.5, 0]]) * size, np.array([[0, 1, 2]])))
    assert frame.scale * size == pytest.approx(1 / 1.03 / np.hypot(1, 0.25)) and frame.centre == pytest.approx((0, size / 4, 0))


def test_a_mesh_smaller_than_numbers_are() -> None:
    with pytest.raises(InputError, match="in size, and the inverse"):
        frame_of(Mesh(np.eye(3) * 1e-310, np.array([[0, 1, 2]])))


@pytest.mark.usefixtures("here")
def test_slices_are_what_is_seen(tmp_path: Path) -> None:
    """Of a box that is long in x, less so in y: wide and low where x goes right; rows go down as y or z do."""
    write_mesh(tmp_path / "in/plank.ply", Mesh(*box(size=(4, 2, 0.5))))
    store = prepare_meshes(tmp_path / "in", tmp_path / "data", sampling=FEW, progress=False)
    inside = [s < 0 for s in read_shape(store.item(0), "slices").arrays["slices"]]
    extents = [(s.any(1).sum(), s.any(0).sum()) for s in inside]  # rows, columns
    unit = 96 / 2 * store.arrays["frames"][0, 3]
    for found, size in zip(extents, ((2, 0.5), (0.5, 4), (2, 4)), strict=True):
        assert found == pytest.approx(np.array(size) * unit, abs=2)


@pytest.mark.usefixtures("here")
def test_the_same_bytes_in_any_way(folder: Path, tmp_path: Path) -> None:
    whole = prepare_meshes(folder, tmp_path / "whole", sampling=FEW, progress=False)
    parts = [prepare_meshes(folder, tmp_path / f"part{i}", sampling=FEW, shard=(i, 3), progress=False).path for i in (1, 2, 3)]
    merged = merge([parts[2], parts[0], parts[1]], tmp_path / "merged")
    assert files(merged.path) == files(whole.path)
    for i in (1, 2, 3):  # the parts may go
        shutil.rmtree(tmp_path / f"part{i}")
    assert Store.open(merged.path, verify=True).fingerprint == whole.fingerprint
    shutil.copytree(folder, tmp_path / "elsewhere" / "of another name")
    moved = prepare_meshes(tmp_path / "elsewhere" / "of another name", tmp_path / "moved", sampling=FEW, progress=False)
    assert files(moved.path) == files(whole.path)


@pytest.mark.usefixtures("here")
def test_parts_that_do_not_belong_together(folder: Path, tmp_path: Path) -> None:
    one = prepare_meshes(folder, tmp_path / "one", sampling=FEW, shard=(1, 2), progress=False).path
    other = prepare_meshes(folder, tmp_path / "other", sampling=Sampling(300, 100, 2, 12), shard=(2, 2), progress=False).path
    whole = prepare_meshes(folder / "balls", tmp_path / "whole", sampling=FEW, progress=False).path
    shutil.copytree(folder, tmp_path / "more" / folder.name)
    write_mesh(tmp_path / "more" / folder.name / "another.ply", box())
    came = prepare_meshes(tmp_path / "more" / folder.name, tmp_path / "came", sampling=FEW, shard=(2, 2), progress=False).path
    wrong = {"There are 2 parts": ([one], [one, one]), "different options": ([one, other], [one, came]), "Not a part": ([one, whole],)}
    for says, parts in ((says, parts) for says, lists in wrong.items() for parts in lists):
        with pytest.raises(UsageError, match=says):
            merge(parts, tmp_path / "merged")
    for shard in ((0, 2), (3, 2)):
        with pytest.raises(UsageError, match=r"shard"):
            prepare_meshes(folder, tmp_path / "none", sampling=FEW, shard=shard, progress=False)
    assert not (tmp_path / "merged").exists() and not (tmp_path / "none").exists()


@pytest.mark.usefixtures("here")
def test_whole_data_sets_become_one(folder: Path, tmp_path: Path) -> None:
    """Real shapes beside procedural ones: each keeps its split, its facts and its file."""
    real = prepare_meshes(folder, tmp_path / "real", sampling=FEW, split=(50, 25, 25), progress=False)
    drawn = prepare_meshes("procedural-tables", tmp_path / "drawn", sampling=Sampling(400, 150, 2, 12), count=2, split=(1, 0, 0), progress=False)
    both = merge([real.path, drawn.path], tmp_path / "both")
    assert len(both) == len(real) + 2 and both.meta["found"] == both.meta["kept"] + len(both.meta["dropped"])
    names = [facts["name"] for facts in both.meta["shapes"]]
    assert names == sorted(names)
    for part in (real, drawn):
        for split, rows in part.splits.items():
            assert {part.meta["shapes"][row]["name"] for row in rows} <= {names[row] for row in both.split(split)}
        for row, facts in enumerate(part.meta["shapes"]):
            at = names.index(facts["name"])
            assert both.item(at).read_bytes() == part.item(row).read_bytes()
            assert both.arrays["frames"][at].tolist() == part.arrays["frames"][row].tolist()
    assert sum(map(len, both.splits.values())) == len(both) and (both.path / "review.html").is_file()
    assert merge([real.path, drawn.path], tmp_path / "both").fingerprint == both.fingerprint  # found again
    with pytest.raises(UsageError, match="Two data sets have a shape called"):
        merge([real.path, real.path], tmp_path / "twice")


@pytest.mark.usefixtures("here")
def test_stretched_copies_of_training_shapes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are the same bytes as without copies; a copy is the box that its factors say, and again the same, wherever it was interrupted."""
    few = replace(FEW, seed=1)  # of which boxes/long is for training
    plain = prepare_meshes(folder, tmp_path / "plain", sampling=few, split=(50, 25, 25), progress=False)
    store = prepare_meshes(folder, tmp_path / "data", sampling=few, split=(50, 25, 25), stretch=2, progress=False)
    names = [facts["name"] for facts in store.meta["shapes"]]
    assert names == sorted(names) and store.meta["found"] == len(store) + len(store.meta["dropped"])
    learned = {plain.meta["shapes"][row]["name"] for row in plain.split("train")}
    assert {names[row] for row in store.split("train")} == learned | {f"{name}~{k}" for name in learned for k in (1, 2)}
    for split in ("val", "test"):
        assert [names[row] for row in store.split(split)] == [plain.meta["shapes"][row]["name"] for row in plain.split(split)]
    for row, facts in enumerate(plain.meta["shapes"]):
        assert store.item(names.index(facts["name"])).read_bytes() == plain.item(row).read_bytes()
    for row, facts in enumerate(store.meta["shapes"]):
        if "~" not in facts["name"]:
            continue
        factors = np.array(facts["stretched"])
        assert facts["copy_of"] == facts["name"].partition("~")[0] and (factors >= 1 / 1.3).all() and (factors <= 1.3).all()
        if facts["copy_of"] == "boxes/long":
            x, s = np.split(read_shape(store.item(row), "samples").arrays["samples"].astype(np.float64), [3], axis=1)
            out = np.abs(x) - np.array([4, 1, 1]) / 2 * factors * facts["scale"]
            assert np.allclose(s[:, 0], np.linalg.norm(out.clip(0), axis=1) + out.max(1).clip(max=0), atol=1e-5)
    assert "boxes/long" in learned and store.meta["shapes"][names.index("boxes/long~1")]["stretched"] != store.meta["shapes"][
        names.index("boxes/long~2")]["stretched"]  # fmt: skip
    made = counted(monkeypatch)
    more = prepare_meshes(folder, tmp_path / "data", sampling=few, split=(50, 25, 25), stretch=3, force=True, progress=False)
    assert sorted(made) == sorted([f"{name}~3" for name in learned] + ["boxes/empty", "boxes/points"]) and len(more) == len(store) + len(learned)


@pytest.mark.usefixtures("here")
def test_copies_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    for name in ("ball", "ball~1"):
        write_mesh(tmp_path / f"two/{name}.ply", ball(1))
    with pytest.raises(UsageError, match="A copy would be called ball~1"):
        prepare_meshes(tmp_path / "two", tmp_path / "data", sampling=FEW, split=(1, 0, 0), stretch=1, progress=False)
    with pytest.raises(UsageError, match="There are no stretched copies of a part"):
        prepare_meshes(folder, tmp_path / "data", sampling=FEW, stretch=1, shard=(1, 2), progress=False)
    sampled(tmp_path / "deepsdf")
    with pytest.raises(UsageError, match="There are no stretched copies of samples"):
        prepare_meshes(tmp_path / "deepsdf", tmp_path / "data", stretch=1, progress=False)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    draw = meshes._draw
    monkeypatch.setattr(meshes, "_draw", lambda origin, *rest: (made.append(origin.name), draw(origin, *rest))[1])
    return made


@pytest.mark.usefixtures("here")
def test_nothing_finished_is_made_twice(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    store = prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)
    assert len(made) == 8
    with pytest.raises(UsageError, match="Another data set is already there") as caught:
        prepare_meshes(folder, tmp_path / "data", sampling=FEW, signs={"boxes/turned": "visibility"}, progress=False)
    assert "signs" in caught.value.cause and len(made) == 8
    other = prepare_meshes(folder, tmp_path / "data", sampling=FEW, signs={"boxes/turned": "visibility"}, force=True, progress=False)
    assert made[8:] == ["boxes/empty", "boxes/points", "boxes/turned"]
    assert [facts["method"] for facts in other.meta["shapes"]] == ["winding"] * 5 + ["visibility"]
    assert (other.arrays["frames"] == store.arrays["frames"]).all() and other.fingerprint != store.fingerprint
    with pytest.raises(UsageError, match="--sign names 'boxes/turnd'"):
        prepare_meshes(folder, tmp_path / "data", sampling=FEW, signs={"boxes/turnd": "winding"}, progress=False)


@pytest.mark.usefixtures("here")
def test_an_interruption_keeps_what_is_done(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare_meshes(folder, tmp_path / "whole", sampling=FEW, progress=False)
    made, draw = counted(monkeypatch), meshes._draw

    def stop(origin: Any, *rest: Any) -> Any:
        if origin.name == "boxes/ring":
            raise KeyboardInterrupt
        return draw(origin, *rest)

    with monkeypatch.context() as m:
        m.setattr(meshes, "_draw", stop)
        with pytest.raises(meshes.Interrupted, match="4 of 8 shapes are done and kept; the same command goes on"):
            prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)
    assert not (tmp_path / "data").exists() and len(made) == 6  # two of them are no shapes
    halves = sorted((tmp_path / ".data.unfinished").glob("*.safetensors"))
    halves[0].write_bytes(halves[0].read_bytes()[:100])  # whatever did that: it is made again
    made.clear()
    store = prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)
    assert files(store.path) == files(whole.path) and len(made) == 3 and {"boxes/ring", "boxes/turned"} < set(made)
    assert not (tmp_path / ".data.unfinished").exists()


@pytest.mark.usefixtures("here")
def test_failures_are_remembered(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between an interruption and the end, under the same limits, of the same file."""
    shutil.copytree(folder, tmp_path / "in")
    made, draw, said = counted(monkeypatch), meshes._draw, list[str]()
    bad = ["boxes/empty", "boxes/points"]

    def prepare(*, to_the_end: bool = False, **options: Any) -> list[str]:
        """Shapes that were tried."""
        made.clear()

        def stop(origin: Any, *rest: Any) -> Any:
            if origin.name == "boxes/ring" and not to_the_end:
                raise KeyboardInterrupt
            return draw(origin, *rest)

        with monkeypatch.context() as m:
            m.setattr(meshes, "_draw", stop)
            try:
                prepare_meshes(tmp_path / "in", tmp_path / "data", sampling=FEW, say=said.append, progress=False, **options)
            except meshes.Interrupted:
                assert not to_the_end
        return sorted(made)

    assert set(bad) < set(prepare()) and prepare() == []
    assert prepare(limits=Limits(seconds=700)) == bad and prepare() == bad == prepare(retry=True) and prepare() == []
    (tmp_path / "in/boxes/points.obj").write_text("v 0 0 0\nv 2 0 0\n")
    assert prepare() == ["boxes/points"]
    for note in (tmp_path / ".data.unfinished").glob("*.failed"):
        note.write_bytes(note.read_bytes()[:9])
    assert prepare() == bad
    said.clear()
    assert prepare(to_the_end=True) == ["boxes/ring", "boxes/turned"]
    assert [text.partition(" (")[0] for text in said if "dropped" in text] == [f"dropped {name} earlier" for name in bad]
    whole = prepare_meshes(tmp_path / "in", tmp_path / "whole", sampling=FEW, progress=False)
    assert files(tmp_path / "data") == files(whole.path)
    assert prepare(to_the_end=True) == [] and prepare(to_the_end=True, retry=True) == bad
    assert files(tmp_path / "data") == files(whole.path)


def test_what_may_go_well_next_time_is_tried_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def run(function: Any, jobs: Any, **options: Any) -> Iterator[Done]:
        tried.append(len(jobs))
        yield Done(0, Failure("its Ray worker was lost", "try again", lasting=False))
        yield Done(1, Failure("took longer", "more time"))
        raise KeyboardInterrupt

    monkeypatch.setattr(meshes, "run", run)
    for _ in range(2):
        with pytest.raises(meshes.Interrupted):
            prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)
    assert tried == [8, 7]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("where", ["find_origins", "checksum", "take_over", "review"])
def test_an_interruption_at_any_point_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Also before and after shapes are made."""
    made = counted(monkeypatch)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ("prepare", folder / "balls", "-o", tmp_path / "data", "--samples", 50, "--surface-points", 9, "--views", 0)
    with monkeypatch.context() as m:
        m.setattr(meshes, where, stop)
        done = command(*arguments)
    assert done.exit_code == 130 and "the same command goes on from here" in done.output and "Aborted" not in done.output
    assert not (tmp_path / "data").exists() and len(made) == (3 if where == "review" else 0)
    made.clear()
    assert command(*arguments).exit_code == 0 and len(made) == (0 if where == "review" else 3)


@pytest.mark.usefixtures("here")
def test_what_is_taken_over_is_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)
    read: list[str] = []

    def counting(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    for module in (unfinished, store_module):
        monkeypatch.setattr(module, "sha256_file", counting)
    again = prepare_meshes(folder, tmp_path / "data", sampling=FEW, force=True, progress=False)
    assert sorted(name for name in read if name.endswith(".safetensors")) == sorted(store.item(row).name for row in range(6))
    assert again.fingerprint == store.fingerprint


def test_killed_and_typed_again(folder: Path, tmp_path: Path) -> None:
    """The whole command, ended by a signal while workers are at it."""
    arguments = [sys.executable, "-m", "metasdf", "prepare", "procedural-tables", "--count", "6", "-o", str(tmp_path / "data"), "--samples", "20000",
                 "--surface-points", "100", "--views", "1", "--workers", "1"]  # fmt: skip
    job = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    unfinished = tmp_path / ".data.unfinished"
    deadline = time.monotonic() + 90
    while not list(unfinished.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 130
    assert "the same command goes on" in job.communicate()[1]
    done = len(list(unfinished.glob("*.safetensors")))
    assert 1 <= done < 6 and not (tmp_path / "data").exists()
    again = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    assert f"{done} of 6 shapes are there already" in again.stderr and "6 found = 6 kept + 0 dropped" in again.stdout


@pytest.mark.usefixtures("here")
def test_two_at_once(folder: Path, tmp_path: Path) -> None:
    with meshes.unfinished(tmp_path / "data"), pytest.raises(UsageError, match="being prepared by another process"):
        prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)


@pytest.mark.usefixtures("here")
def test_a_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"shapes need about .* are free"):
        prepare_meshes(folder, tmp_path / "data", sampling=Sampling(samples=10**12), progress=False)
    assert not list(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise MetaSDFError("x could not be written: No space left on device")

    monkeypatch.setattr(meshes, "write_whole", full)
    with pytest.raises(MetaSDFError, match="No space left"):  # and not: all shapes dropped
        prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("here")
def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/points.obj").write_text("v 0 0 0\n")
    with pytest.raises(InputError, match="None of the 1 shapes can be used") as caught:
        prepare_meshes(tmp_path / "in", tmp_path / "data", sampling=FEW, progress=False)
    assert "points" in caught.value.cause and [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.usefixtures("here")
def test_split_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x_train.json").write_text(json.dumps({"Any": {"balls": ["ball0", "ball2"], "boxes": ["long"]}}))
    (tmp_path / "rest.json").write_text(json.dumps({"Any": {"balls": ["ball1"], "boxes": ["lost"]}}))
    options = ["--samples", 400, "--surface-points", 100, "--views", 1]
    named = ["--split-file", tmp_path / "x_train.json", "--split-file", f"test={tmp_path / 'rest.json'}"]
    done = command("prepare", folder, "-o", tmp_path / "data", *named, *options)
    assert done.exit_code == 0, done.output
    assert "4 found = 4 kept + 0 dropped; train 3, val 0, test 1" in done.output and "not found: 1, the first one Any/boxes/lost" in done.output
    store = Store.open(tmp_path / "data")
    assert [store.meta["shapes"][row]["name"] for row in store.split("train")] == ["balls/ball0", "balls/ball2", "boxes/long"]
    (tmp_path / "all.json").write_text(json.dumps({"balls": {"train": ["ball0"], "val": ["ball1"], "test": ["ball2"]}}))
    done = command("prepare", folder, "-o", tmp_path / "data2", "--split-file", tmp_path / "all.json", *options)
    assert "train 1, val 1, test 1" in done.output
    done = command("prepare", folder, "-o", tmp_path / "data3", "--split-file", tmp_path / "rest.json", *options)
    assert done.exit_code == 2 and "which split the file is for" in done.output


@pytest.mark.usefixtures("here")
def test_deepsdf_there_and_back(folder: Path, tmp_path: Path) -> None:
    store = prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)
    done = command("datasets", "export", store.path, "-o", tmp_path / "theirs", "--name", "solids")
    assert done.exit_code == 0 and "6 shapes" in done.output
    keys = list_shapes(tmp_path / "theirs")
    assert [f"{key.category}/{key.shape}" for key in keys] == [facts["name"] for facts in store.meta["shapes"]]
    for row, key in enumerate(keys):
        ours, theirs = read_shape(store.item(row)).arrays["samples"], read_deepsdf(tmp_path / "theirs", key)
        assert sorted(map(tuple, ours)) == sorted(map(tuple, np.column_stack((theirs.x, theirs.s))))
    splits = [f"{name}={tmp_path / 'theirs' / f'solids_{name}.json'}" for name in ("train", "val", "test")]
    done = command("prepare", tmp_path / "theirs", "-o", tmp_path / "back", *(part for split in splits for part in ("--split-file", split)))
    assert done.exit_code == 0, done.output
    back = Store.open(tmp_path / "back")
    assert [f"solids/{facts['name']}" for facts in store.meta["shapes"]] == [facts["name"] for facts in back.meta["shapes"]]
    assert {name: rows.tolist() for name, rows in back.splits.items()} == {name: rows.tolist() for name, rows in store.splits.items()}
    np.testing.assert_allclose(back.arrays["frames"], store.arrays["frames"])
    a, b = (read_shape(s.item(0)).arrays for s in (store, back))
    assert sorted(map(tuple, a["samples"])) == sorted(map(tuple, b["samples"])) and np.abs(a["surface"][:, :3] - b["surface"][:, :3]).max() < 1e-6
    assert "agreement" not in (back.path / "review.html").read_text().split("<h2>")[0].split("<body>")[1]


def sampled(root: Path, *, lost: int = 0, framed: bool = True, name: str = "a") -> None:
    """A ball in DeepSDF's layout, in a cube of side 4; some of its 300 samples are not finite."""
    x = np.random.default_rng(0).uniform(-2, 2, (300, 3)).astype(np.float32)
    rows = np.column_stack((x, np.linalg.norm(x, axis=1) - 1)).astype(np.float32)
    where = {"offset": np.array((1.0, 2, 3)), "scale": 0.5} if framed else {}
    write_deepsdf(root, ShapeKey("set", "balls", name), x=x, s=rows[:, 3], surface=x[:7], **where)  # type: ignore[arg-type]
    rows[:lost, 3] = np.nan
    np.savez(root / f"SdfSamples/set/balls/{name}.npz", pos=rows, neg=rows[:0])


SAMPLING_OPTIONS = [("--samples", 500_000), ("--surface-points", 9), ("--views", 2), ("--sign", "winding"), ("--sign", "set/balls/a=winding"),
                    ("--hollows", "keep"), ("--thickness", 0.01), ("--count", 3), ("--resolution", 8)]  # fmt: skip


@pytest.mark.parametrize("option", SAMPLING_OPTIONS, ids=lambda option: option[0])
def test_samples_of_others_are_taken_over(tmp_path: Path, option: tuple[str, object]) -> None:
    """An option that would do nothing is refused, even where it says what is the default for meshes."""
    sampled(tmp_path / "in")
    done = command("prepare", tmp_path / "in", "-o", tmp_path / "data", *option)
    assert done.exit_code == 2 and f"{option[0]} does not go with" in done.output and "DeepSDF's layout" in done.output
    assert not (tmp_path / "data").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("here")
def test_what_is_said_of_samples_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame, sampling and samples are what they are, whatever meshes would get."""
    monkeypatch.setattr(meshes, "check_space", lambda *_: pytest.fail("the space that samples of meshes need is none of ours"))
    sampled(tmp_path / "in", lost=30)
    sampled(tmp_path / "in", lost=90, framed=False, name="b")
    sampled(tmp_path / "in", name="c")
    done = command("prepare", tmp_path / "in", "-o", tmp_path / "data", "--seed", 5)
    assert done.exit_code == 0, done.output
    assert "120 samples of 2 shapes; the worst: set/balls/b (30.00% of its samples), set/balls/a (10.00% of its samples)" in done.output
    assert "without NormalizationParameters: 1 shapes" in done.output
    store = Store.open(tmp_path / "data")
    assert store.meta["sampling"] == store.request["sampling"] == {"seed": 5}
    assert "1/1.03" not in store.meta["convention"] and "[-1, 1]" not in store.meta["convention"]
    page = (tmp_path / "data/review.html").read_text()
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "120 samples of 2 shapes are left out" in words and "set/balls/b 90 30.00% set/balls/a 30 10.00%" in words and "1.03" not in page
    a, b = (read_shape(store.item(row)) for row in (0, 1))
    assert store.arrays["frames"][:2].tolist() == [[-1, -2, -3, 0.5], [0, 0, 0, 1]]
    assert (len(a.arrays["samples"]), len(b.arrays["samples"]), len(a.arrays["surface"]), len(b.arrays["surface"])) == (270, 210, 7, 0)
    np.testing.assert_allclose(a.arrays["samples"][:, 3], np.linalg.norm(a.arrays["samples"][:, :3], axis=1) - 1, atol=1e-6)
    for wrong in ({"sampling": FEW}, {"signs": {"set/balls/a": "winding"}}):
        with pytest.raises(UsageError, match="taken over as they are"):
            prepare_meshes(tmp_path / "in", tmp_path / "other", progress=False, **wrong)  # type: ignore[arg-type]


def as_deepsdf_draws(file: Path) -> None:
    """Its loader takes as many samples of `pos` as of `neg`, at random places of each: there must be some."""
    with np.load(file) as npz:
        for side in (npz["pos"], npz["neg"]):
            np.random.default_rng(0).choice(len(side), 4)


@pytest.mark.usefixtures("here")
def test_no_split_file_sends_deepsdf_to_one_sided_shapes(tmp_path: Path) -> None:
    write_mesh(tmp_path / "in/c/sheet.ply", Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]])))
    for k in range(4):
        write_mesh(tmp_path / f"in/c/ball{k}.ply", ball(1))
    store = prepare_meshes(tmp_path / "in", tmp_path / "data", sampling=FEW, split=(1, 0, 0), progress=False)
    done = command("datasets", "export", store.path, "-o", tmp_path / "out", "--name", "d")
    assert done.exit_code == 0 and "5 shapes, 1 of them in no split file" in done.output and "loader fails: c/sheet" in done.output
    assert json.loads((tmp_path / "out/d_train.json").read_text()) == {"d": {"c": ["ball0", "ball1", "ball2", "ball3"]}}
    for k in range(4):
        as_deepsdf_draws(tmp_path / f"out/SdfSamples/d/c/ball{k}.npz")
    with pytest.raises(ValueError, match="a"):
        as_deepsdf_draws(tmp_path / "out/SdfSamples/d/c/sheet.npz")
    theirs = read_deepsdf(tmp_path / "out", ShapeKey("d", "c", "sheet"))
    assert len(theirs.s) == 400 and (theirs.s >= 0).all()  # nothing is lost
    sampled(tmp_path / "inner")  # the other way round: inside only
    x = np.full((5, 3), 0.1, np.float32)
    write_deepsdf(tmp_path / "inner", ShapeKey("set", "balls", "in"), x=x, s=-x[:, 0])
    prepare_meshes(tmp_path / "inner", tmp_path / "data2", progress=False)
    assert "loader fails: set/balls/in\n" in command("datasets", "export", tmp_path / "data2", "-o", tmp_path / "out2").output


@pytest.mark.usefixtures("here")
def test_procedural(tmp_path: Path) -> None:
    done = command("prepare", "procedural-benches", "--count", 4, "-o", tmp_path / "data", "--samples", 400, "--surface-points", 100, "--views", 0,
                   "--seed", 3)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "4 found = 4 kept + 0 dropped; train 2, val 1, test 1" in done.output and "median 100.00%" in done.output
    store = Store.open(tmp_path / "data")
    assert store.meta["shapes"][2]["name"] == "benches/000002" and store.meta["shapes"][2]["parameters"]
    done = command("datasets", "show", tmp_path / "data", "-o", tmp_path / "sheet.png", "--shapes", 3)
    assert done.exit_code == 0 and (tmp_path / "sheet.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["procedural-cars"], "There are no procedural 'cars'"),
        (["MESHES", "--count", "3"], "--count says how many procedural shapes"),
        (["MESHES", "--resolution", "32"], "--resolution does not go with"),
        (["mnist-slice", "--samples", "10"], "--samples does not go with mnist-slice"),
        (["MESHES", "MESHES"], "more than one source"),
        (["MESHES", "--sign", "magic"], "There is no sign method 'magic'"),
        (["MESHES", "--sign", "winding", "--sign", "visibility"], "--sign says both winding and visibility for all shapes"),
        (["MESHES", "--sign", "balls/ball0=winding", "--sign", "balls/ball0=auto"], "both winding and auto for balls/ball0"),
        (["MESHES", "--memory", "nan"], "nan is no finite number"),
        (["MESHES", "--memory", "inf"], "inf is no finite number"),
        (["MESHES", "--thickness", "nan"], "nan is no finite number"),
        (["MESHES", "--thickness", "inf"], "inf is no finite number"),
        (["MESHES", "--time-limit", "nan"], "'nan' is no duration"),
        (["MESHES", "--split", "nan/1/1"], "A split is three shares"),
        (["MESHES", "--split", "80"], "--split 80 is not three shares"),
        (["MESHES", "--shard", "2"], "--shard 2 is not I/N"),
        (["MESHES", "--split-file", "nowhere.json"], "The split file does not exist"),
        (["nowhere"], "there is no source 'nowhere'"),
        (["merge", "nowhere"], "The data set does not exist"),
    ],
)
def test_bad_requests(folder: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    done = command("prepare", *[str(folder) if a == "MESHES" else a for a in arguments], "-o", tmp_path / "data")
    assert done.exit_code == 2 and says in done.output, done.output
    assert not list(tmp_path.iterdir())


def test_limits_are_for_the_user_to_set(folder: Path, tmp_path: Path) -> None:
    """A shape that takes too long costs itself only; with more time it is made, and the others are taken over."""
    with pytest.raises(InputError, match="None of the 3 shapes can be used") as caught:
        prepare_meshes(folder / "balls", tmp_path / "data", sampling=FEW, limits=Limits(seconds=1e-3), workers=1, progress=False)
    assert "took longer than 0.001 s" in caught.value.cause and "--time-limit" in caught.value.fix


@pytest.mark.usefixtures("here")
def test_other_limits_are_another_request(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    prepare_meshes(folder, tmp_path / "data", sampling=FEW, limits=Limits(seconds=5), progress=False)
    made.clear()
    with pytest.raises(UsageError, match="Another data set") as caught:
        prepare_meshes(folder, tmp_path / "data", sampling=FEW, limits=Limits(seconds=50), progress=False)
    assert "limits" in caught.value.cause and "--force" in caught.value.fix
    prepare_meshes(folder, tmp_path / "data", sampling=FEW, limits=Limits(seconds=50), force=True, progress=False)
    assert made == ["boxes/empty", "boxes/points"]


@pytest.mark.usefixtures("here")
def test_parts_may_be_empty(tmp_path: Path) -> None:
    """More parts than shapes, and one that holds nothing usable: the whole is what one command makes."""
    write_mesh(tmp_path / "in/a.ply", ball(1))
    (tmp_path / "in/b.obj").write_text("v 0 0 0\n")
    parts = [prepare_meshes(tmp_path / "in", tmp_path / f"part{i}", sampling=FEW, shard=(i, 3), progress=False) for i in (1, 2, 3)]
    assert [(len(part), len(part.meta["dropped"])) for part in parts] == [(1, 0), (0, 1), (0, 0)]
    whole = prepare_meshes(tmp_path / "in", tmp_path / "whole", sampling=FEW, progress=False)
    done = command("prepare", "merge", *(part.path for part in parts), "-o", tmp_path / "merged")
    assert "2 found = 1 kept + 1 dropped" in done.output and files(tmp_path / "merged") == files(whole.path)
    for arguments, says in (([], "no parts to merge"), ([parts[0].path, "--samples", "7"], "merge takes parts and nothing else")):
        done = command("prepare", "merge", *arguments, "-o", tmp_path / "other")
        assert done.exit_code == 2 and says in done.output


@pytest.mark.usefixtures("here")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    write_mesh(tmp_path / "in/plain.ply", ball(1))
    try:
        shutil.copy(tmp_path / "in/plain.ply", os.fsdecode(os.fsencode(tmp_path / "in") + b"/bad\xff; $(rm) '<b>.ply"))
    except OSError:
        pytest.skip("this disk takes no such names")
    store = prepare_meshes(tmp_path / "in", tmp_path / "data", sampling=FEW, progress=False)
    assert len(store) == 2
    page = (store.path / "review.html").read_text()
    assert "<b>" not in page.split("<h2>Dropped")[0].split("How far the signs")[1].replace("<b>agreement</b>", "")
    assert "&#39;&#34;&#39;&#34;&#39;" in page  # the quote in the name is quoted for the shell, and then for HTML


@pytest.mark.usefixtures("here")
def test_damage_is_not_taken_over(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare_meshes(folder, tmp_path / "data", sampling=FEW, progress=False)
    whole, item = files(store.path), store.item(2)
    data = bytearray(item.read_bytes())
    data[-1] ^= 1
    item.write_bytes(data)
    made = counted(monkeypatch)
    prepare_meshes(folder, tmp_path / "data", sampling=FEW, force=True, progress=False)
    assert files(store.path) == whole and made == ["balls/ball2", "boxes/empty", "boxes/points"]


@pytest.mark.usefixtures("here")
def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write_mesh(tmp_path / f"in/{name}.ply", ball(1))
    draw = meshes._draw

    def change(origin: Any, *rest: Any) -> Any:
        if origin.name == "a":
            write_mesh(tmp_path / "in/b.ply", ball(1, radius=9))
        return draw(origin, *rest)

    monkeypatch.setattr(meshes, "_draw", change)
    store = prepare_meshes(tmp_path / "in", tmp_path / "data", sampling=FEW, progress=False)
    assert [entry["name"] for entry in store.meta["dropped"]] == ["b"] and "changed while it was read" in store.meta["dropped"][0]["reason"]


@pytest.mark.usefixtures("here")
def test_what_file_managers_leave_behind(folder: Path, tmp_path: Path) -> None:
    store = prepare_meshes(folder / "balls", tmp_path / "data", sampling=FEW, progress=False)
    (store.path / ".DS_Store").touch()
    assert prepare_meshes(folder / "balls", tmp_path / "data", sampling=FEW, progress=False).fingerprint == store.fingerprint
    (store.path / "sheet.png").touch()
    with pytest.raises(UsageError, match="no data set of ours") as caught:
        prepare_meshes(folder / "balls", tmp_path / "data", sampling=FEW, force=True, progress=False)
    assert "sheet.png" in caught.value.cause


@pytest.mark.usefixtures("here")
def test_exports_that_would_lose_shapes(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/b_c"):
        write_mesh(tmp_path / f"in/{name}.ply", ball(1))
    store = prepare_meshes(tmp_path / "in", tmp_path / "data", sampling=FEW, progress=False)
    done = command("datasets", "export", store.path, "-o", tmp_path / "out")
    assert done.exit_code == 2 and "Two shapes would be called metasdf/a/b_c" in done.output and not (tmp_path / "out").exists()
    done = command("datasets", "export", store.path, "-o", store.path)
    assert done.exit_code == 2 and Store.open(store.path, verify=True)


def test_split_files_say_their_split(tmp_path: Path) -> None:
    assert [split_of_file(name) for name in ("x/sv2_planes_train.json", "val.json", "my-test.json", "latest.json", "contest.json")] == [
        "train", "val", "test", "", ""]  # fmt: skip
    (tmp_path / "train.json").write_text("{}")
    assert SplitFiles.read([str(tmp_path / "train.json")]).listed == {}


@pytest.mark.usefixtures("here")
def test_a_folder_for_each_shape(tmp_path: Path) -> None:
    """Each is a category of one: they are split together."""
    for k in range(10):
        write_mesh(tmp_path / f"in/{k:08d}/model.ply", box(size=(1, 1, 1 + k)))
    store = prepare_meshes(tmp_path / "in", tmp_path / "data", sampling=FEW, progress=False)
    assert {name: len(rows) for name, rows in store.splits.items()} == {"train": 8, "val": 1, "test": 1}


def test_buffers_count(tmp_path: Path) -> None:
    (tmp_path / "a.gltf").write_text("{}")
    (tmp_path / "a.bin").write_bytes(b"1")
    origin = MeshFile(Source("a", tmp_path / "a.gltf", None, ""))
    before = origin.checksum()
    (tmp_path / "a.bin").write_bytes(b"2")
    assert origin.checksum() != before
