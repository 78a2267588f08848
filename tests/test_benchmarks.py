"""Each benchmark runs to its end, at a tiny size, and writes the numbers it promises. What the numbers are is not tested here, but for two
things that are no matter of time: the forms of the gradient agree, and ours does exactly the matrix products that the limit counts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from solids import box
from test_train import write_circles

from metasdf.geometry.io import write_mesh

BENCHMARKS = REPOSITORY / "benchmarks"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")


def quick(script: str, out: Path, *options: str) -> tuple[dict[str, Any], str]:
    """What a smoke run writes as JSON, and what it prints; every number in it is finite and none is negative."""
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--quick", "--threads", "1", "--json", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["benchmark"] == script
    assert {"hardware", "cpu_capability", "threads", "torch", "commit", "settings", "definition"} <= result.keys()
    assert all(math.isfinite(value) and value >= 0 for value in leaves(result))
    assert str(REPOSITORY) not in out.read_text()
    return result, done.stdout


def leaves(value: Any) -> Iterator[float]:
    """Every number of a JSON value; null, which stands for NaN there, is NaN again."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    elif value is None:
        yield math.nan
    elif not isinstance(value, str | bool):
        yield value


def positive(row: dict[str, Any], *keys: str) -> None:
    assert all(row[key] > 0 for key in keys), {key: row[key] for key in keys}


def test_meta_step(tmp_path: Path) -> None:
    result, printed = quick("meta_step", tmp_path / "out.json")
    sides, limit = result["sides"], result["limit"]
    assert len(sides) == 10 and all(name in printed for name in sides)
    for row in sides.values():
        positive(row, "ms", "ms_min", "speedup", "speedup_kept", "percent_of_limit", "gflop")
        assert row["ms_min"] <= row["ms"] and len(row["ms_rounds"]) == result["settings"]["rounds"]
        assert row["difference"] < (1e-5 if row["products"] == "float32" else 0.1) or not row["second_order"]
        assert row["peak_mib"] < 2000
    assert sides["first order"]["difference"] > 1e-3  # it would be a second-order gradient under another name
    for row in limit.values():
        positive(row, "ms", "ms_min", "ms_hot", "ms_hot_min", "gflop", "gflop_per_s", "gflop_per_s_hot")
    # Nine products in every form that goes through the gradient, three where it does not; not one more.
    needed = limit["products, float32"]["gflop"]
    assert [sides[name]["gflop"] for name in ("straightforward", "explicit", "fused")] == pytest.approx([needed] * 3)
    assert sides["first order"]["gflop"] == pytest.approx(limit["products, float32, first order"]["gflop"])
    assert sides["fused, bfloat16, checkpoint"]["gflop"] > sides["fused, bfloat16"]["gflop"]


def test_memory(tmp_path: Path) -> None:
    figure = tmp_path / "memory.png"
    result, _ = quick("memory", tmp_path / "out.json", "--figure", str(figure))
    assert figure.read_bytes().startswith(b"\x89PNG")
    for sweep in ("steps", "context"):
        rows = result["sweeps"][sweep]
        for kind in ("plain", "checkpointed"):
            assert len(rows[kind]["peak_mib"]) == len(rows[kind]["saved_mib"]) == len(rows["values"])
            assert min(rows[kind]["saved_mib"]) > 0
            positive(rows["growth"][kind], "saved_mib")
        assert rows["growth"]["from"] < rows["growth"]["to"]
        # Counted, not measured, so exact: plain keeps the inside of every step, checkpointed the parameters alone.
        assert rows["growth"]["plain"]["saved_mib"] > rows["growth"]["checkpointed"]["saved_mib"]
    assert result["sweeps"]["context"]["growth"]["checkpointed"]["saved_mib"] == pytest.approx(1.0)


def test_fit(tmp_path: Path) -> None:
    result, _ = quick("fit", tmp_path / "out.json")
    assert result["data"]["distinct_shapes"] == result["settings"]["shapes"]
    for name in ("mnist-dense", "mnist-levelset"):
        files, contexts = result["files"][name], result["contexts"][name]
        assert {"straightforward", "ours", "ours, a quarter of the points"} <= files.keys() and len(contexts) == 2 * len(files)
        for row in files.values():
            positive(row, "ms", "ms_min", "context_ms", "adapt_ms", "speedup", "mse", "mae")
        for row in contexts.values():
            positive(row, "ms", "ms_min", "speedup", "speedup_best", "mse", "mae")
        ours, theirs = (contexts[f"{form}, batches of 2"] for form in ("ours", "straightforward"))
        assert ours["mse"] == pytest.approx(theirs["mse"], rel=1e-3)
        assert 0 < theirs["mse"] < 1e-3  # a fitted digit: the two halves of the benchmark speak of the same shapes


def test_recipe(tmp_path: Path) -> None:
    data = write_circles(tmp_path / "circles").path
    result, printed = quick("recipe", tmp_path / "out.json", "tried", "--data", str(data), "--set", "train.batch=4")
    assert result["recipe"] == "tried" and "--set train.batch=4" in result["command"] and result["steps"] == 5
    assert len(result["dead_units"]) == 3 and len(result["loss_by_tenths"]) == 5
    assert f"{result['val_mse']:.3e}" in printed


def test_time_to_accuracy(tmp_path: Path) -> None:
    data, figure = write_circles(tmp_path / "circles").path, tmp_path / "time.png"
    result, printed = quick("time_to_accuracy", tmp_path / "out.json", "--data", str(data), "--figure", str(figure), "--minutes", "0.05")
    assert figure.read_bytes().startswith(b"\x89PNG")
    curves = result["curves"]
    assert list(curves) == ["straightforward", "ours", "ours, a tenth"] and all(name in printed for name in curves)
    assert all(curve == sorted(curve) for curve in curves.values())
    assert curves["ours, a tenth"][-1][0] < curves["ours"][-1][0]


def test_real_meshes(tmp_path: Path) -> None:
    for k in range(2):
        write_mesh(tmp_path / f"in/boxes/box{k}.ply", box(size=(1, 1 + k, 2)))
    (tmp_path / "in/points.obj").write_text("v 0 0 0\n")
    result, printed = quick("real_meshes", tmp_path / "out.json", str(tmp_path / "in"), "--data", str(tmp_path / "data"), "--workers", "1")
    assert (result["found"], result["kept"]) == (3, 2) and result["dropped"][0]["name"] == "points" and "boxes/box1" in printed
    assert result["all"]["quantiles"] == [1, 1, 1, 1] and result["seconds"]["n"] == 2


def test_prepare(tmp_path: Path) -> None:
    pytest.importorskip("rtree", reason="trimesh's signed distance needs rtree")
    result, printed = quick("prepare", tmp_path / "out.json")
    for kind in ("none", "all at once"):
        found = result["speed"][kind]
        assert list(found["sides"]) == ["ours", "trimesh", "brute force"] and found["peak_mib"] > 0
        for row in found["sides"].values():
            positive(row, "build_ms", "us_per_sample", "per_second", "total_s", "speedup_over_trimesh", "speedup_over_brute_force")
        assert found["sides"]["ours"]["difference"] < 1e-9
    assert max(result["errors"]["none"]["auto"]) == 0 and all(kind in printed for kind in result["errors"])


def test_extract(tmp_path: Path) -> None:
    result, printed = quick("extract", tmp_path / "out.json")
    for field in ("torus", "network"):
        row, resolution = result["fields"][field], result["settings"]["resolution"]
        sparse, dense = row["sides"]["sparse"], row["sides"]["dense"]
        positive(sparse, "ms", "peak_mib", "faces")
        positive(row, "fewer_evaluations", "speedup")
        assert dense["evaluations"] == resolution**3 > 4 * sparse["evaluations"]
        assert sparse["faces"] == dense["faces"] and row["difference"] < 1e-3 and f"{field}, sparse" in printed
