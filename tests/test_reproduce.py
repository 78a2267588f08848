"""The cells of the 2D tables: what they ask, that finished ones stay, and the comparison with the published numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from metasdf.cli import cli
from metasdf.errors import InputError, UsageError
from metasdf.experiments import Experiment
from metasdf.reproduce.digits import COLUMNS, METHODS, PUBLISHED, published
from metasdf.reproduce.page import against, comparison, read, write_page
from metasdf.reproduce.plan import Plan
from metasdf.reproduce.tables import Cell, cells, fill

TINY = {"cell": {"comparable": True}, "metrics": {"mse": 30.8e-6, "mse_std": 1e-6, "mae": 2e-3}, "training": {"seconds": 900.0, "steps": 7},
        "n": 10000, "failed": 1, "refine": 40, "fit_ms": {"batched": 12.3}, "preset": "cpu", "commit": "abc", "hardware": "a machine"}  # fmt: skip


def test_all_cells_of_both_tables() -> None:
    assert len(cells(["table1"])) == 11 and len(cells(["table2"])) == 18
    assert all(len(row) == len(COLUMNS) for row in PUBLISHED.values()) and tuple(PUBLISHED) == METHODS
    assert published("levelset", "metasdf") == (56.6, 0.5) and published("composite", "hyper") == (284, None)
    for cell in cells(["table1", "table2"]):
        e = cell.experiment(preset="paper")
        assert e.context == ("levelset" if cell.column == "levelset" else "dense")


def test_cells_by_name() -> None:
    assert cells(["table1"], ["dense-cnp4"]) == [Cell("dense", "cnp4")]
    assert {cell.column for cell in cells(["table1"], ["metasdf"])} == {"dense", "levelset"}
    with pytest.raises(UsageError, match="no cell 'rotated'"):
        cells(["table1"], ["rotated"])


def test_published_ours_ratio(tmp_path: Path) -> None:
    (tmp_path / "dense-metasdf.json").write_text(json.dumps(TINY))
    (tmp_path / "dense-cnp4.json").write_text(json.dumps({**TINY, "cell": {"comparable": False}}))
    (tmp_path / "dense-refined.json").write_text(json.dumps({**TINY, "metrics": {"mse": 20e-6, "mae": 1e-3}, "n": 96}))
    lines = read(tmp_path)
    assert list(comparison(lines.fields)) == [
        ("MetaSDF", "dense", "15.4 ± 0.2", "30.8 ± 1.0", "2.00", "2.00", "10,000", "1", "15", "12.3"),
        ("MetaSDF, then 40 steps of Adam", "dense", "-", "20.0", "-", "1.00", "96", "1", "15", "12.3"),
    ]
    write_page(lines, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    assert "| MetaSDF | dense | 15.4 ± 0.2 | 30.8 ± 1.0 | 2.00 |" in page
    assert "Departures" in page and "out of distribution" not in page and "3D" not in page


@pytest.mark.parametrize(("mse", "ratio", "ahead"), [(61.6e-6, "0.50", "MetaSDF"), (15.4e-6, "2.00", "**the baseline**")])
def test_metasdf_against_a_baseline(tmp_path: Path, mse: float, ratio: str, ahead: str) -> None:
    slow = {**TINY, "metrics": {"mse": mse, "mae": 1e-3}, "fit_ms": {"batched": 1230.0}}
    for name, cell in (("dense-metasdf", TINY), ("dense-refined", slow), ("dense-concat", slow)):
        (tmp_path / f"{name}.json").write_text(json.dumps(cell))
    lines = read(tmp_path)
    assert list(against(lines.fields)) == [
        ("dense", "MetaSDF", "auto-decoder, concatenation", "0.31", ratio, "0.01", ahead),
        ("dense", "MetaSDF, then 40 steps of Adam", "auto-decoder, concatenation", "-", "1.00", "1", "neither"),
    ]
    write_page(lines, tmp_path / "results.md")
    assert f"| dense | MetaSDF | auto-decoder, concatenation | 0.31 | {ratio} | 0.01 | {ahead} |" in (tmp_path / "results.md").read_text()


def test_a_strange_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "dense-metasdf.json").write_text("{}")
    with pytest.raises(InputError, match="no result of metasdf reproduce"):
        read(tmp_path)


def test_a_cell_from_nothing_to_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An auto-decoder's level-set cell takes the training of its dense one; a finished cell stays."""

    def small(e: Experiment) -> Experiment:
        codes = replace(e.method.codes, steps=3)
        return replace(e, n_context=40, n_query=40, n_test=40, field=replace(e.field, width=16), method=replace(e.method, code_dim=16, codes=codes),
                       train=replace(e.train, epochs=1))  # fmt: skip

    monkeypatch.setattr("metasdf.reproduce.tables._small", small)
    plan = Plan(tmp_path, tmp_path / "results", budget=None, runs=2, small=True, limit=4)
    said: list[str] = []
    path = fill(Cell("levelset", "concat"), plan, say=said.append)
    result = json.loads(path.read_text())
    assert (result["cell"]["comparable"], result["context"]["rule"], result["n"], result["runs"]) == (False, "levelset", 4, 2)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["mnist-slice-mnist-dense-concat"]
    before = path.stat().st_mtime_ns
    fill(Cell("levelset", "concat"), plan, say=said.append)
    assert path.stat().st_mtime_ns == before and "kept" in said[-1]
    monkeypatch.setattr("metasdf.reproduce.tables._small", lambda e: _with_fit(small(e), steps=2))  # how codes are fitted may change
    again = json.loads(fill(Cell("levelset", "concat"), plan, say=said.append).read_text())
    assert again["training"] == result["training"] and again["metrics"] != result["metrics"]
    with pytest.raises(UsageError, match="table 1 alone"):
        fill(Cell("rotated", "metasdf"), plan, say=said.append)


def _with_fit(e: Experiment, *, steps: int) -> Experiment:
    return replace(e, method=replace(e.method, codes=replace(e.method.codes, steps=steps)))


def test_nothing_to_compare(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["reproduce", "compare", "--results", str(tmp_path)])
    assert done.exit_code == 2 and "there are no results to compare" in done.output and "metasdf reproduce table1" in done.output
