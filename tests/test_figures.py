"""The figures' numbers are those of evaluation and of the tables; what is missing is said; the page shows all there is."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from metasdf import figures
from metasdf.cli import cli
from metasdf.data.digits import digit_parts
from metasdf.data.mnist import MNIST
from metasdf.data.prepare import prepare_slice
from metasdf.data.store import Store
from metasdf.errors import UsageError
from metasdf.evaluate import grid_errors, spread
from metasdf.experiments import Experiment
from metasdf.figures import NAMES, TEXTS, TITLES, draw, moves, reduced, trained
from metasdf.prior import Prior, load
from metasdf.reproduce import digits
from metasdf.reproduce.plan import LABELS, Plan
from metasdf.reproduce.tables import Cell, fill

METHODS = ("concat", "cnp4", "metasdf")  # one of each kind
LIMIT = 4
CPU = torch.device("cpu")


def small(e: Experiment) -> Experiment:
    codes = replace(e.method.codes, steps=7)
    return replace(e, n_context=40, n_query=40, field=replace(e.field, width=16), method=replace(e.method, code_dim=16, codes=codes),
                   train=replace(e.train, epochs=1))  # fmt: skip


class Drawn:
    """A folder with trained cells and all the figures of them."""

    def __init__(self, work: Path) -> None:
        self.plan = Plan(work, work / "results", budget=None, runs=1, limit=LIMIT, small=True)
        self.cells = {m: json.loads(fill(Cell("dense", m), self.plan, say=lambda text: None).read_text()) for m in METHODS}
        self.said: list[str] = []
        self.page = work / "page" / "figures.md"
        draw(self.plan, out=work / "images", page=self.page, only=["qualitative", "steps-against-iterations", "field", "speed"], say=self.said.append)
        self.store = prepare_slice(work / "data" / "mnist-slice")

    def facts(self, name: str) -> dict[str, Any]:
        return json.loads((self.plan.results / f"{name}.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawn]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metasdf.reproduce.tables._small", small)
        yield Drawn(tmp_path_factory.mktemp("figures"))


def mse_of(prior: Prior, store: Store, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    e = prior.experiment
    return grid_errors(prior.conditioner, prior.head, store, indices=np.array(rows), rule=e.context, n_context=e.n_test, seed=0, device=CPU).shapes


def test_what_auto_decoders_have_when_metasdf_is_done() -> None:
    def curve(*points: tuple[int, float, float]) -> list[dict[str, float]]:
        return [{"steps": steps, "ms": ms, "mse": mse} for steps, ms, mse in points]

    concat, cnp4 = curve((0, 1, 5e-3), (30, 79, 2e-4), (31, 81, 1e-4)), curve((1, 5, 2e-4))
    refined = [point for k, n in enumerate((10, 20, 40, 80, 160)) for point in curve((n, 100 + n, (3 - k / 2) * 1e-5))]
    curves = {"metasdf": curve((0, 1, 5e-3), (5, 80, 3e-5)), "refined": refined, "concat": concat, "cnp4": cnp4}
    facts = {"methods": [{"method": name, "label": name.upper()} for name in curves], "curves": curves}
    said = (" MetaSDF is done after 80 ms, with an MSE of 30.0e-6; CONCAT has by then made 30 iterations and has 200.0e-6, in the end 100.0e-6. "
            "Refined by 40 steps of Adam MetaSDF has 20.0e-6 after 140 ms. "
            "Refined by 160 steps of Adam MetaSDF has 10.0e-6 after 260 ms.")  # fmt: skip
    assert figures._in_the_same_time(facts) == said
    assert figures._in_the_same_time(facts | {"curves": {"concat": curves["concat"]}}) == ""


def test_curves_end_where_evaluation_does(drawn: Drawn) -> None:
    facts = drawn.facts("steps-against-iterations")
    assert facts["n"] == LIMIT and not facts["comparable"] and {m["method"] for m in facts["methods"]} == set(METHODS)
    for method in METHODS:
        points, metrics = facts["curves"][method], drawn.cells[method]["metrics"]
        assert points[-1]["mse"] == pytest.approx(metrics["mse"], rel=1e-4)
        assert points[-1]["misclassified"] == pytest.approx(metrics["misclassified"], abs=0.05)
        assert all(point["ms"] > 0 for point in points)
    steps = {method: [point["steps"] for point in points] for method, points in facts["curves"].items()}
    assert steps == {"concat": [0, 1, 2, 3, 4, 5, 6, 7], "cnp4": [0], "metasdf": [0, 1, 2, 3, 4, 5], "refined": [10, 20, 40, 80, 160]}
    assert facts["curves"]["refined"][0]["ms"] > facts["curves"]["metasdf"][-1]["ms"]
    assert [p["mse"] for p in facts["curves"]["metasdf"]] == pytest.approx(drawn.cells["metasdf"]["after_step"]["mse"], rel=1e-4)


def test_an_auto_decoder_starts_at_the_mean_code(drawn: Drawn) -> None:
    """Its first point is the field of z = 0, the same for every shape."""
    (method,) = (m for m in trained("dense", drawn.plan, say=lambda text: None) if m.cell.method == "concat")
    model = method.prior.conditioner
    model.config = replace(model.config, steps=1, lr=1e-12)  # type: ignore[assignment, arg-type]
    rows = spread(drawn.store.split("test"), LIMIT)
    start = drawn.facts("steps-against-iterations")["curves"]["concat"][0]["mse"]
    assert start == pytest.approx(mse_of(method.prior, drawn.store, rows).mean(), rel=1e-4)


@pytest.mark.parametrize("column", ["dense", "levelset"])
def test_pictures_show_what_evaluation_measures(drawn: Drawn, column: str) -> None:
    facts = drawn.facts(f"qualitative-{column}")
    labels = drawn.store.arrays["labels"][facts["rows"]]
    assert len(set(labels.tolist())) == len(labels) == LIMIT and set(facts["rows"]) <= set(drawn.store.split("test").tolist())
    methods = trained(column, drawn.plan, say=lambda text: None)
    assert facts["mse"].keys() == {m.cell.method for m in methods}
    for method in methods:
        assert method.prior.experiment.context == column
        assert facts["mse"][method.cell.method] == pytest.approx(mse_of(method.prior, drawn.store, facts["rows"]), rel=1e-4)


def test_the_level_set_column_takes_the_dense_auto_decoder(drawn: Drawn) -> None:
    assert drawn.facts("qualitative-levelset")["mse"].keys() == {"concat"}  # the others see contexts in training, and were trained on dense ones
    assert drawn.facts("qualitative-levelset")["context"] == "512 points of the zero level"


def test_the_field_after_each_step(drawn: Drawn) -> None:
    facts = drawn.facts("field-per-step")
    for context, name in figures.SHIPPED.items():
        mse = np.array(facts["mse"][context])
        assert mse.shape == (2, 6)
        assert mse[:, -1] == pytest.approx(mse_of(load(name), drawn.store, facts["rows"]), rel=1e-4)
        assert (mse[:, -1] < mse[:, 0] / 50).all()


def test_the_table_of_times_has_the_errors_of_the_tables(drawn: Drawn) -> None:
    facts = drawn.facts("speed")
    assert (facts["n"], facts["rounds"], facts["batch"]) == (LIMIT, LIMIT, 1)
    assert {m["method"]: m["fit"] for m in facts["methods"]} == {
        "concat": "7 Adam iterations of 256 points", "cnp4": "one pass", "metasdf": "5 gradient steps",
    }  # fmt: skip
    for name, row in facts["speed"].items():
        assert row["mse"] == pytest.approx(drawn.cells[name]["metrics"]["mse"], rel=1e-4)
        assert row["alone_ms"] > 0 and row["batched_ms"] > 0


def test_what_is_missing_is_said_with_its_command(drawn: Drawn) -> None:
    missing = [text for text in drawn.said if "left out" in text]
    assert {text.partition(":")[0] for text in missing} == {"qualitative-dense", "qualitative-levelset", "steps-against-iterations", "speed"}
    assert any(text.startswith(f"speed: {LABELS['hyper']} is left out") for text in missing)
    for text in missing:
        program, name, *arguments = shlex.split(text[text.index("metasdf reproduce") :])
        cli.commands[name].make_parser(click.Context(cli.commands[name])).parse_args([*arguments])
        assert program == "metasdf" and arguments[:2] == ["table1", "--cell"] and str(drawn.plan.work) in arguments


def test_a_run_that_is_not_finished_is_left_out(drawn: Drawn, tmp_path: Path) -> None:
    prior = load(drawn.plan.work / "runs" / "mnist-slice-mnist-dense-cnp4")
    prior.card["validation"] = {}
    prior.save(tmp_path / "runs" / "mnist-slice-mnist-dense-cnp4" / "prior.safetensors")
    said: list[str] = []
    assert trained("dense", drawn.plan._replace(work=tmp_path), say=said.append) == []
    assert sum("not finished" in text for text in said) == 1 and sum("missing" in text for text in said) == len(digits.METHODS) - 1


def test_the_page(drawn: Drawn) -> None:
    text = drawn.page.read_text()
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(pictures) == 4
    for link in pictures:
        with Image.open(drawn.page.parent / link) as image:
            image.load()
            assert image.width > 400
    row = drawn.facts("speed")["speed"]["metasdf"]
    assert f"| MetaSDF | 5 gradient steps | {row['alone_ms']:,.1f} | {row['batched_ms']:,.1f} | {row['mse'] * 1e6:,.1f} |" in text
    assert text.count("comparable with nothing") == text.count("n = ") == 5 and "trained " in text and "{" not in text


def test_labels_of_one_and_of_three_digits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 255, (40, 28, 28), dtype=np.uint8)
    images[:, :8] = 0
    mnist = MNIST(images, np.arange(40, dtype=np.uint8) % 10, images, np.arange(40, dtype=np.uint8) % 10)
    for name, label in (("mnist", "digit 7"), ("mnist-composite", "digits 045")):
        parts = digit_parts(name, mnist, resolution=64, limit=12)
        store = SimpleNamespace(meta={"rows": {part.name: [0, 0] for part in parts}}, arrays={"labels": [45 if "composite" in name else 7]})
        assert figures._label(store, 0) == label  # type: ignore[arg-type]


def test_every_figure_has_a_title_and_a_text() -> None:
    assert list(TITLES) == list(NAMES)
    assert {name if not name.startswith("qualitative") else "qualitative" for name in NAMES} == set(TEXTS)


def test_principal_components_are_those_of_the_singular_values() -> None:
    rows = torch.randn(12, 40, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 40)
    ours, share = reduced(rows, 5)
    u, s, _ = np.linalg.svd((rows - rows.mean(0)).double().numpy(), full_matrices=False)
    assert np.abs(ours.numpy()) == pytest.approx(np.abs(u[:, :5] * s[:5]), abs=1e-4)
    assert share == pytest.approx(np.square(s[:5]).sum() / np.square(s).sum())
    whole, share = reduced(rows, 50)  # all directions that 12 points have: distances stay
    assert whole.shape == (12, 11) and share == pytest.approx(1.0)
    assert torch.cdist(whole, whole).numpy() == pytest.approx(torch.cdist(rows, rows).numpy(), abs=1e-3)


def test_tsne_of_what_moves(drawn: Drawn, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    draw(drawn.plan._replace(limit=10, results=tmp_path), out=tmp_path, page=tmp_path / "page.md", only=["tsne"], say=lambda text: None)
    facts = json.loads((tmp_path / "tsne.json").read_text())
    rows = spread(drawn.store.split("test"), 10)
    digits = drawn.store.arrays["labels"][rows]
    for name in figures.SHIPPED.values():
        prior = load(name)
        moved = moves(prior, drawn.store, rows, device=CPU)
        theta = torch.cat([t.flatten() for layer in prior.conditioner.theta for t in layer])  # type: ignore[operator, union-attr]
        context = figures._observed(prior, drawn.store, rows[-1:], device=CPU)[0]
        with torch.no_grad():
            phi = torch.cat([t.flatten() for layer in prior.conditioner(context) for t in layer])
        assert torch.allclose(moved[-1], phi - theta, atol=1e-6)
        apart = torch.cdist(moved.double(), moved.double()).fill_diagonal_(torch.inf)
        same = float((digits[apart.argmin(1).numpy()] == digits).mean())
        assert facts["priors"][name]["same_digit_nearest"] == pytest.approx(same)
    with Image.open(tmp_path / "tsne.png") as image:
        assert image.width > 400


def test_without_scikit_learn_the_extra_is_named(drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UsageError, match="scikit-learn") as caught:
        draw(drawn.plan, out=tmp_path, page=tmp_path / "page.md", say=lambda text: None)  # before any other figure is drawn
    assert "metasdf[figures]" in caught.value.fix and not list(tmp_path.glob("*.png"))


def test_from_the_command_line(drawn: Drawn, tmp_path: Path) -> None:
    work = str(drawn.plan.work)
    arguments = ["reproduce", "figures", "--scale", "small", "-w", work, "-o", str(tmp_path), "--page", str(tmp_path / "page.md"), "--limit", "2"]
    done = CliRunner().invoke(cli, [*arguments, "--only", "qualitative-dense"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.glob("*.png")] == ["qualitative-dense.png"] and "hypernetwork is left out" in done.output
    assert (drawn.plan.work / "results" / "figures" / "qualitative-dense.json").is_file()
    for name, words in (("qualitative-unseen", "there is no figure"), ("nothing", "steps-against-iterations")):
        done = CliRunner().invoke(cli, [*arguments, "--only", name])
        assert done.exit_code == 2 and words in done.output


def test_nothing_is_trained(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["reproduce", "figures", "--scale", "small", "-w", str(tmp_path), "--only", "speed"])
    assert done.exit_code == 2 and "there is nothing to draw" in done.output and "metasdf reproduce table1" in done.output
