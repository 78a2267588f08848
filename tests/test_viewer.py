"""The viewer without a browser: what a real viser server is given, and how the command ends."""

from __future__ import annotations

import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_solid import PLACE, ball, directions

import metasdf.viewer
from metasdf.cli import cli
from metasdf.prior import Prior
from metasdf.solid import Fit, fit_scan
from metasdf.viewer import show, surfaces


@pytest.fixture
def prior() -> Prior:
    """One whose surface moves in each step."""
    return ball("levelset", rate=1e-3)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.xyz"
    np.savetxt(path, PLACE + 2.0 * directions(300) * (0.7, 0.8, 1.0), fmt="%.6f")
    return path


@pytest.fixture
def fit(scan: Path, prior: Prior) -> Fit:
    return fit_scan(scan, prior, up="z")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server() -> Iterator[Any]:
    viser = pytest.importorskip("viser", reason="viser is not installed: pip install 'metasdf[view]'")
    found = viser.ViserServer(host="127.0.0.1", port=free_port(), verbose=False)
    yield found
    found.stop()


def until(true: Any) -> None:
    """viser answers changes in a thread of its own."""
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def test_surfaces_are_those_of_the_steps(fit: Fit) -> None:
    steps = surfaces(fit.sdf, resolution=16)
    assert len(steps) == 3
    for j, step in enumerate(steps):
        assert step.mesh is not None
        np.testing.assert_array_equal(step.mesh.vertices, fit.sdf.after(j).mesh(16).vertices)
        assert np.abs(fit.sdf.after(j)(step.mesh.vertices)).max() < 0.1
    assert not np.array_equal(steps[0].mesh.vertices, steps[2].mesh.vertices)


def test_a_refined_fit_has_one_surface_more(fit: Fit) -> None:
    fit.sdf.refined = fit.sdf.path[1]
    steps = surfaces(fit.sdf, resolution=16)
    assert len(steps) == len(fit.sdf.path) + 1 and steps[-1].mesh is not None and steps[1].mesh is not None
    np.testing.assert_array_equal(steps[-1].mesh.vertices, steps[1].mesh.vertices)


def test_the_scene(fit: Fit, server: Any) -> None:
    """Points and surfaces in the scan's own axes and units, less the centre: single precision keeps them. The slider shows one step at a time."""
    steps = surfaces(fit.sdf, resolution=16)
    scene = show(server, fit, steps)
    centre = np.array(fit.sdf.frame.centre)
    np.testing.assert_allclose(np.asarray(scene.points.points, np.float64) + centre, fit.scan.x, atol=1e-6)
    for step, node in zip(steps, scene.steps, strict=True):
        np.testing.assert_allclose(np.asarray(node.vertices, np.float64) + centre, step.mesh.vertices, atol=1e-6)
        np.testing.assert_array_equal(node.faces, step.mesh.faces)
    np.testing.assert_array_equal(scene.wires.vertices, scene.steps[-1].vertices)
    assert [node.visible for node in scene.steps] == [False, False, True] and scene.wires.wireframe and not scene.wires.visible
    scene.slider.value = 1
    until(lambda: [node.visible for node in scene.steps] == [False, True, False])
    eye = server.initial_camera.position
    assert eye[2] > 0 and eye[1] < 0 and 2 < np.linalg.norm(eye) < 20  # above, before the front, which is at -y with z up
    assert server.initial_camera.near < 0.1 and server.initial_camera.far > 100


def test_a_step_without_a_surface_shows_nothing(fit: Fit, server: Any) -> None:
    with torch.no_grad():
        fit.sdf.path[1][-1].bias.fill_(9.0)
    steps = surfaces(fit.sdf, resolution=16)
    assert steps[1].mesh is None and "no surface" in steps[1].said and steps[2].mesh is not None
    scene = show(server, fit, steps)
    assert scene.steps[1] is None
    scene.slider.value = 1
    until(lambda: not scene.steps[2].visible)
    assert not scene.steps[0].visible


def test_without_viser(scan: Path, prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior.save(tmp_path / "p.safetensors")
    monkeypatch.setitem(sys.modules, "viser", None)
    done = CliRunner().invoke(cli, ["view", str(scan), "-m", str(tmp_path / "p.safetensors")])
    assert done.exit_code == 2 and "pip install 'metasdf[view]'" in done.output
    flat = CliRunner().invoke(cli, ["view", str(scan), "-m", "mnist-levelset"])
    assert flat.exit_code == 2 and "prior of 2D shapes" in flat.output


def test_the_command_serves_until_ctrl_c(scan: Path, prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("viser", reason="viser is not installed: pip install 'metasdf[view]'")
    prior.save(tmp_path / "p.safetensors")
    address, pages = f"http://127.0.0.1:{free_port()}", []

    class Pressed:
        def wait(self) -> None:
            with urllib.request.urlopen(address, timeout=20) as page:
                pages.append(page.read())
            raise KeyboardInterrupt

    monkeypatch.setattr(metasdf.viewer, "threading", SimpleNamespace(Event=Pressed))
    done = CliRunner().invoke(cli, ["view", str(scan), "-m", str(tmp_path / "p.safetensors"), "--resolution", "16", "--port", address[17:]])
    assert done.exit_code == 0, done.output
    assert f"http://localhost:{address[17:]} shows {scan} and 2 steps" in done.output and b"<html" in pages[0]
    assert "its point (4999999.98, -200000.003, 29.99" in done.output and "is shown at the origin" in done.output
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=5)
