"""The README's numbers are those of the files in results/, which a documented command regenerates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

from metasdf.demo import PAPER
from metasdf.prior import SHIPPED, load, shipped

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


RECIPES = REPOSITORY / "results" / "recipes"


def recipe_row(file: Path) -> str:
    """A recipe's line of its table in docs/performance.md, from its result file."""
    r = json.loads(file.read_text())
    changes = ", ".join(f"`{change}`" for change in r["settings"]["set"]) or "-"
    return f"| {file.stem} | {changes} | {r['steps']:,} | {r['val_mse'] * 1e6:.1f} | {r['val_mae'] * 1e3:.2f} | {r['cpu_seconds']:.0f} |"


@pytest.mark.parametrize("name", sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.json")))
def test_the_docs_quote_the_recipes(name: str) -> None:
    assert recipe_row(RECIPES / name) in (REPOSITORY / "docs" / "performance.md").read_text()
