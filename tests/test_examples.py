"""The examples run, with a prior that is a ball and no trained one: what is learned is not judged here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_solid import ball

from metasdf.geometry.io import read_mesh
from metasdf.prior import load_sdf

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_robot_query(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = example("robot_query").main(ball("levelset"))
    assert before == pytest.approx(-2.5, abs=0.1) and after >= before  # the ball pushes what comes near to it
    assert "clearance" in capsys.readouterr().out


def test_a_path_is_pushed_out_of_a_ball() -> None:
    class Ball:
        def value_and_grad(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            distance = np.linalg.norm(x, axis=1)
            return distance - 2.0, x / distance[:, None]

    path = np.array([[0.5, 0.1, 0.0], [0.0, -2.5, 0.0], [0.0, 0.0, 9.0]])
    out = example("robot_query").push_out(Ball(), path, clear=1.0)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), [3, 3, 9])
    np.testing.assert_array_equal(out[2], path[2])
    np.testing.assert_allclose(np.cross(out, path), 0, atol=1e-12)


def test_batch_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ball("levelset").save(tmp_path / "ball.safetensors")
    x = np.random.default_rng(0).standard_normal((500, 3))
    (tmp_path / "scans").mkdir()
    for name, size in (("small", 1.0), ("large", 30.0)):
        np.savetxt(tmp_path / "scans" / f"{name}.xyz", x / np.linalg.norm(x, axis=1, keepdims=True) * size)
    (tmp_path / "scans" / "broken.ply").write_text("ply\n")
    np.save(tmp_path / "scans" / "small.npy", x)  # of the same name but for its ending
    failed = example("batch_convert").main(str(tmp_path / "scans"), str(tmp_path / "out"), str(tmp_path / "ball.safetensors"), resolution=32)
    assert failed == 1 and "broken.ply" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}{ending}" for name in ("large", "small", "small.xyz") for ending in (".ply", ".safetensors")
    )
    small, large = (np.ptp(read_mesh(tmp_path / "out" / f"{name}.ply").vertices) for name in ("small.xyz", "large"))
    assert large == pytest.approx(30 * small, rel=1e-3)
    assert load_sdf(tmp_path / "out" / "large.safetensors")(np.zeros((1, 3)))[0] < 0
