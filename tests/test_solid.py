"""Scans to meshes, and how good they are. The prior is no trained one: its field starts as a ball (geometric initialisation), and hardly moves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from spheres import write_spheres

from metasdf.cli import cli
from metasdf.cli.options import HEADINGS
from metasdf.errors import EmptySurfaceError, InputError, UsageError
from metasdf.experiments import experiment
from metasdf.geometry.frame import FILL
from metasdf.geometry.io import read_mesh, write_mesh
from metasdf.geometry.isosurface import extract
from metasdf.geometry.mesh import is_watertight
from metasdf.geometry.pose import headings, pose_of
from metasdf.geometry.scan import read_scan
from metasdf.geometry.signed import MeshSDF
from metasdf.prior import Prior, build_conditioner
from metasdf.solid import PARTS, PARTS_REFINED, observations, reconstruct_scan
from metasdf.surfaces import evaluate_surfaces
from metasdf.tasks import OFFSET

PLACE = np.array([5e6, -2e5, 30.0])  # as maps have them


def ball(rule: str, *, rate: float = 1e-6) -> Prior:
    e = experiment(f"tables-{rule}", preset="paper")
    e = replace(e, n_test=200, category=None, field=replace(e.field, width=2048, hidden_layers=0),
                inner=replace(e.inner, init_rate=rate, steps=2))  # fmt: skip
    return Prior(e, build_conditioner(e, generator=torch.Generator().manual_seed(0))).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "ball.safetensors"
    ball("levelset").save(path)
    return path


def directions(n: int = 500) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Points of a ball of radius 2 metres, far from the origin."""
    path = tmp_path / "scan.xyz"
    np.savetxt(path, PLACE + 2.0 * directions(), fmt="%.6f")
    return path


@pytest.mark.parametrize("ending", [".ply", ".obj", ".off", ".stl", ".glb"])
def test_a_mesh_in_the_scans_own_units_and_place(scan: Path, tmp_path: Path, ending: str) -> None:
    done = reconstruct_scan(scan, ball("levelset"), tmp_path / f"out{ending}", resolution=48)
    mesh = read_mesh(tmp_path / f"out{ending}")
    exact = ending in (".ply", ".obj", ".off")
    radii = np.linalg.norm((mesh.vertices if exact else done.mesh.vertices) - PLACE, axis=1)
    assert 0.3 < np.median(radii) / 2.0 < 0.9 and np.ptp(radii) < 1.0  # a ball, nearly, smaller than the scan
    assert np.abs(done.sdf(done.mesh.vertices)).max() < 0.02
    assert is_watertight(done.mesh) and done.summary.watertight and not done.summary.clipped and done.summary.components == 1
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["observations"] == 500 and told["context"] == 200 and told["steps"] == 2 and told["kind"] == "points"
    assert told["faces"] == len(done.mesh.faces) and told["field_evaluations"] < 48**3
    away = np.abs(np.linalg.norm(2.0 * directions(), axis=1) - np.median(radii))
    assert told["residual"][1] == pytest.approx(np.median(away), abs=0.2)
    assert done.sdf(PLACE) < 0 < done.sdf(PLACE + 1.9 / FILL)


def test_turning_up_and_back(scan: Path, tmp_path: Path) -> None:
    """A scan with z up is turned for the prior; surface and gradients come back in its own axes."""
    rows = np.loadtxt(scan)
    tall = PLACE + (rows - PLACE) * (0.5, 0.5, 1.0)
    np.savetxt(tmp_path / "tall.xyz", tall, fmt="%.6f")
    done = reconstruct_scan(tmp_path / "tall.xyz", ball("levelset"), tmp_path / "tall.ply", resolution=32, up="z", turns=4)
    assert done.summary.up == "z" and done.summary.heading in (0.0, 90.0, 180.0, 270.0)
    field = done.sdf.pose.to_field(tall)
    assert np.ptp(field, 0).argmax() == 1  # up is y in the cube
    x = PLACE + np.array([[0.3, 0.1, 0.9], [-1.0, 0.7, 0.2]])
    _, gradient = done.sdf.value_and_grad(x)
    step = 1e-3
    numeric = [(done.sdf(x + step * axis) - done.sdf(x - step * axis)) / (2 * step) for axis in np.eye(3)]
    np.testing.assert_allclose(gradient, np.stack(numeric, -1), atol=2e-2)


def test_dense_priors_learn_from_samples_and_meshes(tmp_path: Path) -> None:
    x = np.random.default_rng(1).uniform(-3, 3, (2000, 3))
    np.save(tmp_path / "samples.npy", np.column_stack((x, np.linalg.norm(x, axis=1) - 2.0)))
    prior = ball("dense")
    from_samples = reconstruct_scan(tmp_path / "samples.npy", prior, tmp_path / "a.ply", resolution=32)
    assert from_samples.summary.kind == "samples" and from_samples.summary.context == 200
    write_mesh(tmp_path / "given.ply", from_samples.mesh)
    from_mesh = reconstruct_scan(tmp_path / "given.ply", prior, tmp_path / "b.ply", resolution=32)
    assert from_mesh.summary.kind == "mesh" and from_mesh.summary.context == 200
    np.savetxt(tmp_path / "bare.xyz", 2.0 * directions())
    with pytest.raises(InputError, match="learns from signed distances, the scan has points alone") as caught:
        reconstruct_scan(tmp_path / "bare.xyz", prior, tmp_path / "c.ply")
    assert str(tmp_path / "bare.xyz") in str(caught.value) and not list(tmp_path.glob("c.*"))


def test_oriented_priors_learn_from_normals(tmp_path: Path) -> None:
    """What they are given of a ball of 2 metres are true distances."""
    prior, n = ball("oriented"), directions()
    np.savetxt(tmp_path / "in.xyz", np.column_stack((PLACE + 2.0 * n, n)), fmt="%.9f")
    np.savetxt(tmp_path / "bare.xyz", PLACE + 2.0 * n)
    s = np.tile((-0.1, 0.1), len(n) // 2)
    np.savez(tmp_path / "samples.npz", points=PLACE + (2.0 + s[:, None]) * n, normals=n, sdf=s)
    done = reconstruct_scan(tmp_path / "in.xyz", prior, tmp_path / "out.ply", resolution=32)
    assert done.summary.context == 200 and not done.summary.notes
    for file in ("in.xyz", "out.ply"):
        scan = read_scan(tmp_path / file)
        pose = pose_of(scan.x)
        x, s = observations(scan, scan.x, prior, pose, rng=np.random.default_rng(0))
        assert s is not None and len(x) >= 400 and s.max() == pytest.approx(OFFSET / pose.frame.scale, rel=0.05) and s.min() < 0
        if file == "in.xyz":
            np.testing.assert_allclose(np.linalg.norm(x - PLACE, axis=1) - 2.0, s, atol=1e-6)
        else:
            np.testing.assert_allclose(MeshSDF(scan.mesh)(x), s, atol=2e-3)  # type: ignore[arg-type]
    for file, says in (("bare.xyz", "the scan has no normals"), ("samples.npz", "the scan has signed distances")):
        with pytest.raises(InputError, match=f"learns from surface points with normals, {says}"):
            reconstruct_scan(tmp_path / file, prior, tmp_path / "none.ply")


@pytest.mark.parametrize(("rule", "category", "normals", "told"), [
    ("levelset", "tables", True, True), ("levelset", "tables", False, False), ("levelset", None, True, False), ("oriented", "tables", True, False),
])  # fmt: skip
def test_normals_that_the_prior_does_not_use(tmp_path: Path, rule: str, category: str | None, normals: bool, told: bool) -> None:
    known, n = ball(rule), directions()
    prior = Prior(replace(known.experiment, category=category), known.conditioner).eval()
    np.savetxt(tmp_path / "in.xyz", np.column_stack((2.0 * n, n)) if normals else 2.0 * n, fmt="%.9f")
    notes = reconstruct_scan(tmp_path / "in.xyz", prior, tmp_path / "out.ply", resolution=16).summary.notes
    assert ["-m tables-oriented --refine" in note for note in notes] == [True] * told


@pytest.mark.parametrize(("rule", "file"), [("dense", "samples.npz"), ("dense", "mesh.ply"), ("oriented", "points.xyz"), ("oriented", "mesh.ply")])
def test_the_learned_steps_see_the_same_with_refining_and_without(tmp_path: Path, rule: str, file: str) -> None:
    """A fair draw, even of a file in order: samples outside before those inside, points from top to bottom."""
    n = directions(1000)
    n = n[np.argsort(n[:, 1])]
    x = np.concatenate((1.1 * n, 0.9 * n))
    s = np.repeat((0.1, -0.1), 1000)
    np.savez(tmp_path / "samples.npz", points=x[600:1400], sdf=s[600:1400])
    np.savetxt(tmp_path / "points.xyz", np.column_stack((n, n))[::2], fmt="%.9f")
    write_mesh(tmp_path / "mesh.ply", extract(lambda p: np.linalg.norm(p, axis=1) - 0.8, resolution=32).mesh)
    prior, scan = ball(rule), read_scan(tmp_path / file)
    few, many = (observations(scan, scan.x, prior, pose_of(scan.x), parts=parts, rng=np.random.default_rng(0)) for parts in (PARTS, PARTS_REFINED))
    assert len(few.x) == 2 * 200 and len(many.x) == {"samples.npz": 800, "points.xyz": 500, "mesh.ply": 8 * 200}[file]
    for name in ("x", "s"):
        np.testing.assert_array_equal(getattr(few, name)[:200], getattr(many, name)[:200])
    first = few.rows(slice(200))
    assert first.s is not None and 0.2 < (first.s < 0).mean() < 0.8
    assert abs(first.x[:, 1].mean() - many.x[:, 1].mean()) < 0.3 * many.x[:, 1].std()


@pytest.mark.parametrize("turns", [1, 4])
def test_refined_fits_follow_the_scan(tmp_path: Path, turns: int) -> None:
    """An ellipsoid, from a field that starts as a ball and whose steps hardly move."""
    radii = np.array([2.0, 1.2, 1.6])
    points = directions() * radii
    np.savetxt(tmp_path / "scan.xyz", np.column_stack((points, points / radii**2)), fmt="%.6f")
    rows = np.loadtxt(tmp_path / "scan.xyz")
    rows[:, 3:] /= np.linalg.norm(rows[:, 3:], axis=1, keepdims=True)
    np.savetxt(tmp_path / "scan.xyz", rows, fmt="%.6f")
    found = [reconstruct_scan(tmp_path / "scan.xyz", ball("oriented"), tmp_path / "out.ply", resolution=32, refine=refine, turns=turns)
             for refine in (0, 100)]  # fmt: skip
    plain, refined = (each.summary for each in found)
    assert refined.refine == 100 and refined.steps == plain.steps == 2 and refined.residual.rms < 0.5 * plain.residual.rms
    assert json.loads((tmp_path / "out.json").read_text())["refine"] == 100
    assert plain.context == refined.context == 200 and plain.refined_on == 0 and refined.refined_on == 500  # all there are
    with pytest.raises(UsageError, match="bare points are not enough to refine what tables-levelset finds"):
        reconstruct_scan(tmp_path / "scan.xyz", ball("levelset"), tmp_path / "none.ply", refine=1)


def test_what_cannot_be_written_is_said_first(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written as \.doc"):
        reconstruct_scan(scan, ball("levelset"), tmp_path / "out.doc")


def test_nothing_of_the_users_is_overwritten(saved: Path, scan: Path, tmp_path: Path) -> None:
    """Neither the scan, where the results go beside it, nor a file that has the name of a result; what an earlier call wrote is replaced."""
    prior = ball("levelset")
    given = tmp_path / "given.ply"
    reconstruct_scan(scan, prior, given, resolution=16)
    (tmp_path / "given.json").unlink()
    before = given.read_bytes()
    with pytest.raises(UsageError, match=r"given\.ply would be overwritten"):
        reconstruct_scan(given, prior, given, resolution=16)
    for _ in range(2):
        code, told = command("reconstruct", given, "-m", saved, "-o", tmp_path, "--resolution", 16)
        assert code == 0 and "given-ply.ply" in told
    assert given.read_bytes() == before and (tmp_path / "given-ply.json").is_file() and not (tmp_path / "given-ply-2.ply").exists()
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UsageError, match=r"notes\.json would be overwritten"):
        reconstruct_scan(scan, prior, tmp_path / "notes.ply", resolution=16)
    assert (tmp_path / "notes.json").read_text() == "{}" and not (tmp_path / "notes.ply").exists()
    assert "cannot be written as .vtk" in command("reconstruct", scan, "-m", saved, "-o", tmp_path / "table.vtk")[1]


def test_what_single_precision_loses_is_said(scan: Path, tmp_path: Path) -> None:
    """At coordinates of 5 million, single precision knows steps of half a metre."""
    prior = ball("levelset")
    lossy, exact = (reconstruct_scan(scan, prior, tmp_path / f"out{ending}", resolution=16).summary.notes for ending in (".glb", ".ply"))
    assert any("in single precision, come in steps of 0.5" in note for note in lossy) and not any("single" in note for note in exact)


def test_fewer_faces(scan: Path, saved: Path, tmp_path: Path) -> None:
    """The mesh that is written, its summary and residual are those of the simplified one; how far it moved is in the scan's units."""
    prior = ball("levelset")
    whole = reconstruct_scan(scan, prior, tmp_path / "whole.ply", resolution=32)
    done = reconstruct_scan(scan, prior, tmp_path / "out.ply", resolution=32, faces=300)
    assert len(read_mesh(tmp_path / "out.ply").faces) == done.summary.faces == 300 and done.summary.watertight and is_watertight(done.mesh)
    (note,) = done.summary.notes
    moved = float(note.split(" by up to ")[1].split()[0])
    assert f"simplified from {whole.summary.faces:,} faces" in note and note.endswith("units of the input")
    assert 0 < abs(done.summary.residual.median - whole.summary.residual.median) < moved < 0.1
    code, told = command("reconstruct", scan, "-m", saved, "-o", tmp_path / "tenth.ply", "--resolution", 24, "--simplify", "10%")
    assert code == 0 and "note: simplified from" in told
    for wrong in ("0", "3", "12.5", "100%", "0%", "many", "nan%"):
        code, told = command("reconstruct", scan, "-m", saved, "-o", tmp_path / "x.ply", "--simplify", wrong)
        assert code == 2 and "no number of faces" in told
    assert "--simplify are for 3D priors" in command("reconstruct", scan, "-m", "mnist-levelset", "-o", tmp_path / "x", "--simplify", "10%")[1]


def test_headings_that_are_tried(scan: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr("metasdf.solid.headings", lambda turns: (tried.append(turns), headings(1))[1])
    for text, turns in (("search", HEADINGS), ("3", 3), (None, 1)):
        options = ("--align", text) if text else ()
        code, _ = command("reconstruct", scan, "-m", saved, "-o", tmp_path / "a.ply", "--resolution", 16, *options)
        assert code == 0 and tried.pop() == turns
    for wrong in ("0", "361", "all", "-4", "2.5", "٣"):
        code, told = command("reconstruct", scan, "-m", saved, "-o", tmp_path / "x.ply", "--align", wrong)
        assert code == 2 and "no number of headings" in told


def test_no_surface_is_an_error_and_no_file(scan: Path, tmp_path: Path) -> None:
    prior = ball("levelset")
    with torch.no_grad():
        prior.conditioner.theta[-1].bias.fill_(9.0)  # type: ignore[operator, union-attr]
    with pytest.raises(EmptySurfaceError) as caught:
        reconstruct_scan(scan, prior, tmp_path / "none.ply")
    assert str(scan) in str(caught.value) and not list(tmp_path.glob("none.*"))


def command(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_many_scans_by_the_command(saved: Path, scan: Path, tmp_path: Path) -> None:
    """One that fails costs no other; equal names do not overwrite each other."""
    np.savetxt(tmp_path / "scan.csv", directions(), delimiter=",")
    (tmp_path / "empty.xyz").touch()
    code, told = command("reconstruct", scan, tmp_path / "empty.xyz", tmp_path / "scan.csv", "-m", saved, "-o", tmp_path / "out", "--resolution", 24)
    assert code == 1 and "1 of 3 inputs failed" in told and "empty.xyz" in told
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["scan-csv.json", "scan-csv.ply", "scan.json", "scan.ply"]
    code, told = command("reconstruct", scan, "-m", saved, "-o", tmp_path / "one.glb", "--resolution", 24)
    assert code == 0 and (tmp_path / "one.glb").is_file() and "watertight" in told
    for wrong, says in ((("--y-up",), "are for 2D priors"), (("--foreground", "dark"), "are for 2D priors")):
        assert says in command("reconstruct", scan, "-m", saved, "-o", tmp_path / "x", *wrong)[1]
    assert "are for 3D priors" in command("reconstruct", scan, "-m", "mnist-levelset", "-o", tmp_path / "x", "--up", "z")[1]
    code, told = command("reconstruct", scan, tmp_path / "scan.csv", "-m", saved, "-o", tmp_path / "x.ply")
    assert code == 2 and "2 scans cannot be written to one file" in told


def test_surfaces_are_measured(saved: Path, tmp_path: Path) -> None:
    """Against balls: the prior's own ball hardly moves, so that its IoU is that of two concentric balls, nearly."""
    store = write_spheres(tmp_path / "spheres", shapes=3, samples=4000, surface=31_000)
    result = evaluate_surfaces(ball("levelset"), store, split="train", resolution=48, progress=False)
    assert result["n"] == 3 and result["failed"] == 0 and result["best_of"] == 1
    by_name = {row["name"]: row for row in result["shapes"]}
    assert 0 < by_name["sphere0"]["iou"] < 1 and by_name["sphere0"]["misclassified"] > 0
    assert result["metrics"]["chamfer"]["mean"] > result["metrics"]["chamfer"]["median"] * 0.1
    code, told = command("evaluate", saved, "--data", store.path, "--split", "train", "--surfaces", "--resolution", 32, "--best-of", 2,
                         "--limit", 2, "--json", tmp_path / "r.json")  # fmt: skip
    assert code == 0 and "n 2, failed 0, the better of 2 by chamfer" in told
    saved_result = json.loads((tmp_path / "r.json").read_text())
    assert saved_result["best_of"] == 2 and saved_result["metrics"]["iou"]["n"] == 2 and saved_result["field_evaluations"] <= 32**3
    for wrong, says in ((("--resolution", 32), "are for --surfaces"), (("--best-of", 2), "are for --surfaces"),
                        (("--surfaces", "--runs", 2), "--runs is for errors of fields")):  # fmt: skip
        code, told = command("evaluate", saved, "--data", store.path, "--split", "train", *wrong)
        assert code == 2 and says in told
    dead = ball("levelset")
    with torch.no_grad():
        dead.conditioner.theta[-1].bias.fill_(9.0)  # type: ignore[operator, union-attr]
    none = evaluate_surfaces(dead, store, split="train", resolution=16, progress=False)
    assert none["n"] == 0 and none["failed"] == 3 and {each["name"] for each in none["failures"]} == {"sphere0", "sphere1", "sphere2"}


def test_surfaces_are_of_3d_shapes(saved: Path, tmp_path: Path) -> None:
    from test_train import write_circles

    code, told = command("evaluate", saved, "--data", write_circles(tmp_path / "store").path, "--surfaces")
    assert code == 2 and "surfaces are measured of 3D shapes" in told
