"""The README's numbers are those of the files in results/, which a documented command regenerates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

from metasdf.demo import PAPER
from metasdf.prior import SHIPPED, load, shipped
from metasdf.reproduce.page import read, write_page

NAMES = ("mnist-dense", "mnist-levelset")


def row(name: str) -> str:
    """A prior's line of the README table, from its result file."""
    r = json.loads((REPOSITORY / "results" / f"{name}.json").read_text())
    m, t = r["metrics"], r["fit_ms"]
    return (f"| `{name}` | {r['context']['points']:,} {'samples' if r['context']['rule'] == 'dense' else 'contour points'} | {m['mse'] * 1e6:.1f} | "
            f"{PAPER[name] * 1e6:.1f} | {m['mae'] * 1e3:.2f} | {m['misclassified']:.2f} | {t['alone']:.0f} / {t['batched']:.0f} | "
            f"{r['n']:,} | {r['failed']} |")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_quotes_the_result_files(name: str) -> None:
    assert row(name) in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_results_are_of_the_whole_official_test_split(name: str) -> None:
    r = json.loads((REPOSITORY / "results" / f"{name}.json").read_text())
    assert (r["prior"], r["split"], r["data"]["source"], r["n"] + r["failed"]) == (name, "test", "MNIST", 10_000)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_priors_are_small_and_carry_the_measured_numbers(name: str) -> None:
    assert name in shipped()
    assert (SHIPPED / f"{name}.safetensors").stat().st_size < 4e6
    card = load(name).card
    r = json.loads((REPOSITORY / "results" / f"{name}.json").read_text())
    assert card["metrics"]["mse"] == r["metrics"]["mse"] and card["metrics"]["n"] == r["n"]
    assert card["data"]["licence"] and card["training"]["commit"] not in ("", "unknown")


@pytest.mark.parametrize("name", ["mnist-dense-fourier", "mnist-levelset-fourier"])
def test_the_variants_are_what_the_readme_says(name: str) -> None:
    r = json.loads((REPOSITORY / "results" / f"{name}.json").read_text())
    m, prior = r["metrics"], load(name)
    readme = (REPOSITORY / "README.md").read_text()
    assert f"`{name}` MSE {m['mse'] * 1e6:.1f}e-6, MAE {m['mae'] * 1e3:.2f}e-3" in readme and f"on {r['n']:,} test digits" in readme
    assert r["failed"] == 0 and r["runs"] == 3 and r["split"] == "test"
    assert prior.card["metrics"]["mse"] == m["mse"] and prior.card["metrics"]["n"] == r["n"]
    assert (SHIPPED / f"{name}.safetensors").stat().st_size < 4e6
    assert prior.conditioner.spec.n_params <= load("mnist-dense").conditioner.spec.n_params and prior.experiment.inner.steps == 5


OBSERVED = {"dense": "distances", "levelset": "points", "oriented": "points with normals"}
VALIDATED = {"planes": 11, "tables": 5, "chairs": 6}  # shapes of the validation split, of which the usual misfit is known


@pytest.mark.parametrize("name", [name for name in shipped() if load(name).dim == 3])
def test_the_priors_of_solids_are_what_the_readme_says(name: str) -> None:
    r = json.loads((REPOSITORY / "results" / f"{name}.json").read_text())
    m, prior, readme = r["metrics"], load(name), (REPOSITORY / "README.md").read_text()
    both = [f"{m['chamfer_field'][which] * 1e3:.2f}" for which in ("mean", "median")], [f"{m['iou'][which]:.2f}" for which in ("mean", "median")]
    wrong = " / ".join(f"{m['misclassified'][which]:.2f}" for which in ("mean", "median"))
    assert (f"| `{name}` | {r['context']['points']:,} {OBSERVED[r['context']['rule']]} | {' / '.join(both[0])} | {' / '.join(both[1])} | {wrong} | "
            f"{r['fit_ms']:.0f} + {r['mesh_ms']:,.0f} | {r['n']} | {r['failed']} |") in readme  # fmt: skip
    assert prior.card["metrics"]["iou"]["mean"] == m["iou"]["mean"] and prior.card["training"]["steps"] == r["training"]["steps"]
    assert name == prior.name and name in shipped() and prior.card["misfit"]["n"] == VALIDATED[name.split("-")[0]]
    assert (SHIPPED / f"{name}.safetensors").stat().st_size < 4e6


def test_results_page_is_of_the_result_files(tmp_path: Path) -> None:
    write_page(read(REPOSITORY / "results" / "tables"), tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == (REPOSITORY / "docs" / "results.md").read_text()


def beside_the_baselines(shapes: str) -> str:
    """A row of the README's table: chamfer x 1e-3, mean / median, and mean IoU of cells of docs/results.md."""
    told = [shapes]
    for method in ("dense-deepsdf", "dense-metasdf", "dense-refined", "levelset-pointnet", "levelset-metasdf"):
        file = REPOSITORY / "results" / "tables" / f"{shapes}-{method}.json"
        m = json.loads(file.read_text())["metrics"] if file.exists() else None
        told.append(f"{m['chamfer_field']['mean'] * 1e3:.3g} / {m['chamfer_field']['median'] * 1e3:.3g}, {m['iou']['mean']:.2f}" if m else "-")
    return f"| {' | '.join(told)} |"


@pytest.mark.parametrize("shapes", ["planes", "tables", "chairs", "benches"])
def test_the_readme_sets_metasdf_beside_the_3d_baselines(shapes: str) -> None:
    assert beside_the_baselines(shapes).replace("| benches |", "| benches, by priors of tables |") in (REPOSITORY / "README.md").read_text()


RECIPES = REPOSITORY / "results" / "recipes"
# What the documentation calls *Fourier* in 3D.
FOURIER = (
    "field.activation=relu", "field.init=spread", "field.frequencies=3", "train.optimiser=muon", "inner.curvature=kronecker", "inner.init_rate=0.002",
    "train.batch=4", "train.lr=2e-3", "train.lr_muon=1e-2", "train.lr_rates=6e-2", "train.lr_curvature=3e-2",
)  # fmt: skip


def recipe_row(file: Path) -> str:
    """A recipe's line of its table in docs/performance.md, from its result file."""
    r = json.loads(file.read_text())
    changed = list(r["settings"]["set"])
    named = ["*Fourier*"] if tuple(changed[: len(FOURIER)]) == FOURIER else []
    changes = ", ".join(named + [f"`{change}`" for change in changed[len(named) * len(FOURIER) :]]) or "-"
    return f"| {file.stem} | {changes} | {r['steps']:,} | {r['val_mse'] * 1e6:.1f} | {r['val_mae'] * 1e3:.2f} | {r['cpu_seconds']:.0f} |"


@pytest.mark.parametrize("name", sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.json")))
def test_the_docs_quote_the_recipes(name: str) -> None:
    assert recipe_row(RECIPES / name) in (REPOSITORY / "docs" / "performance.md").read_text()


TRIALS = REPOSITORY / "results" / "trials"


@pytest.mark.parametrize("file", sorted(TRIALS.glob("*.json")), ids=lambda file: file.stem)
def test_the_docs_quote_the_trials(file: Path) -> None:
    r = json.loads(file.read_text())
    chamfer, iou, wrong = (r["metrics"][name] for name in ("chamfer_field", "iou", "misclassified"))
    changes = ", ".join(f"`{change}`" for change in r["set"]) or "-"
    row = (f"| {r['trial']} | {changes} | {r['training']['steps']:,} | {chamfer['mean'] * 1e3:.3g} / {chamfer['median'] * 1e3:.3g} | "
           f"{iou['mean']:.3g} / {iou['median']:.3g} | {wrong['mean']:.3g} | {r['fit_ms']:.0f} | {r['failed']} |")  # fmt: skip
    assert r["trial"] == file.stem and row in (REPOSITORY / "docs" / "performance.md").read_text()
