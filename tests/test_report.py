"""Pictures: drawn quickly and whole, from fields that are good, flat or broken, and never the end of a training."""

from __future__ import annotations

import io
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metasdf import report
from metasdf.conditioning.base import Conditioner
from metasdf.data.prepare import prepare_slice
from metasdf.data.store import Store
from metasdf.experiments import Experiment, mnist_dense, mnist_levelset
from metasdf.fields import FieldSpec
from metasdf.geometry.image import pixel_grid
from metasdf.prior import build_conditioner
from metasdf.report import Steps, draw_steps, figure_curve, figure_fields, figure_fit, figure_steps, fit_steps, png

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare_slice(tmp_path_factory.mktemp("report") / "digits", resolution=32, progress=False)


def small(rule: str) -> tuple[Experiment, Conditioner]:
    base = mnist_dense() if rule == "dense" else mnist_levelset()
    experiment = replace(base, n_test=100, field=FieldSpec(width=16, hidden_layers=1), inner=replace(base.inner, steps=2, init_rate=0.01))
    return experiment, build_conditioner(experiment, generator=torch.Generator().manual_seed(0))


def circle(radius: float = 0.3, resolution: int = 32) -> np.ndarray:
    return (np.linalg.norm(pixel_grid(resolution), axis=1) - radius).reshape(resolution, resolution)


def steps(**changes: Any) -> Steps:
    x = pixel_grid(32)[::7]
    return Steps(x, np.linalg.norm(x, axis=1) - 0.3, np.stack([circle(0.1), circle(0.2), circle(0.29)]), circle(), "a circle")._replace(**changes)


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_fields_beside_each_other() -> None:
    row = steps(fields=np.stack([circle(0.2), np.full((32, 32), np.nan)]))
    assert row.mse[0] == pytest.approx(0.01) and np.isnan(row.mse[1]) and np.isnan(row._replace(truth=None).mse).all()
    figure = figure_fields(["one", "two\nlines"], [row, steps(fields=np.stack([circle(0.3), 1e9 * circle()]))], note="a note")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"truth", "one", "two\nlines", "MSE 1.0e-02", "MSE 0.0e+00", "not finite", "a circle", "a note"} <= set(texts)
    assert pixels(png(figure)).std() > 20


@pytest.mark.parametrize("rule", ["dense", "levelset"])
def test_draw_steps(tmp_path: Path, store: Store, rule: str) -> None:
    experiment, model = small(rule)
    path = tmp_path / "pictures" / "step-0000001.png"
    draw_steps(model, store, store.split("val"), experiment, path=path, device=CPU)
    image = pixels(path.read_bytes())
    assert image.shape[1] > image.shape[0] > 400 and image.std() > 20
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_fit_steps_is_what_evaluation_sees(store: Store) -> None:
    from metasdf.evaluate import grid_errors

    experiment, model = small("dense")
    rows = store.split("val")[:3]
    fitted = fit_steps(model, store, rows, experiment, device=CPU, labels=["a", "b", "c"])
    errors = grid_errors(model, build_head(experiment), store, indices=rows, rule="dense", n_context=100, seed=experiment.train.seed, device=CPU)
    assert [f.label for f in fitted] == ["a", "b", "c"]
    assert np.allclose([np.mean([np.mean((f.fields[j] - f.truth) ** 2) for f in fitted]) for j in range(3)], errors.mse, rtol=1e-5)
    assert all(np.array_equal(f.truth, store.arrays["sdf"][i]) for f, i in zip(fitted, rows, strict=True))  # type: ignore[arg-type]


def build_head(experiment: Experiment) -> Any:
    from metasdf.heads import Distance

    return Distance(experiment.outer_norm)


def test_the_same_picture_twice(tmp_path: Path, store: Store) -> None:
    experiment, model = small("dense")
    for name in "ab":
        draw_steps(model, store, store.split("val")[:1], experiment, path=tmp_path / f"{name}.png", device=CPU)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failure_is_a_warning_that_names_the_picture(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    experiment, model = small("dense")
    monkeypatch.setattr(report, "figure_steps", broken)
    with pytest.warns(RuntimeWarning, match=r"a\.png could not be drawn: MemoryError: no room"):
        draw_steps(model, store, store.split("val")[:1], experiment, path=tmp_path / "a.png", device=CPU)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_not_swallowed(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    experiment, model = small("dense")
    monkeypatch.setattr(report, "figure_steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_steps(model, store, store.split("val")[:1], experiment, path=tmp_path / "a.png", device=CPU)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"s": np.zeros(len(pixel_grid(32)[::7]))},  # surface points
        {"truth": None},
        {"fields": np.stack([circle() + 5, circle() - 5])},  # no zero level
        {"fields": np.zeros((1, 32, 32))},  # a method without steps
        {"fields": np.full((2, 32, 32), np.nan)},
        {"fields": np.stack([circle(), np.full((32, 32), np.inf)])},
        {"fields": np.full((2, 32, 32), 1e30)},
        {"label": "price $5 and $6"},
    ],
)
def test_figure_steps(changes: dict[str, Any]) -> None:
    row = steps(**changes)
    image = pixels(png(figure_steps([row, row])))
    panels = 1 + len(row.fields) + (2 if row.truth is not None else 0)
    assert image.shape[1] / image.shape[0] == pytest.approx(panels * 1.06 / 2.6, rel=0.12)


def test_red_inside_blue_outside_y_down() -> None:
    """A disc in the upper right corner is red there, and blue below."""
    grid = pixel_grid(32)
    field = (np.linalg.norm(grid - (0.25, -0.25), axis=1) - 0.15).reshape(32, 32)
    image = pixels(png(figure_steps([steps(fields=field[None], truth=None, label="")], panel=2.0)))
    height, width = image.shape[:2]
    side = width / (2 + 0.06 + 0.2)  # two panels, a gap, two margins
    left, top = side * (0.1 + 1.06), height - side * (0.1 + 0.06 + 1)
    inside = image[round(top + 0.25 * side), round(left + 0.75 * side)]
    outside = image[round(top + 0.75 * side), round(left + 0.25 * side)]
    assert inside[0] > inside[2] and outside[2] > outside[0]


@pytest.mark.parametrize("s", [None, np.linspace(-1, 1, 40)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("y_up", [False, True])
def test_figure_fit(s: np.ndarray | None, offset: float, y_up: bool) -> None:
    axis = np.linspace(-1, 1, 32) + offset
    x = np.random.default_rng(0).uniform(-1, 1, (40, 2)) + offset
    figure = figure_fit(x, s, circle() * 2, centres=(axis, axis), unit="mm", y_up=y_up, title="a $ name of one dollar")
    assert pixels(png(figure)).std() > 20
    for axes in figure.axes[:2]:
        low, high = axes.get_ylim()
        assert (low < high) == y_up and axes.get_aspect() == 1.0


def test_figure_fit_shows_the_image_under_its_context() -> None:
    axis = np.arange(32) + 200.5
    image = np.zeros((3000, 300), np.uint8)
    image[:, 210:220] = 255
    figure = figure_fit(np.array([[210.0, 210]]), None, circle() * 32, centres=(axis, axis), unit="pixels", image=image)
    assert figure.axes[0].get_xlim() == (200, 232) and figure.axes[0].get_ylim() == (232, 200)
    assert figure.axes[0].images[0].get_extent() == [0, 300, 3000, 0] and figure.axes[0].images[0].get_array().shape[0] <= 1000  # type: ignore[union-attr]


def test_figure_curve() -> None:
    figure = figure_curve({"one": [1e-2, 1e-3, 1e-5], "two": [2e-2, 1e-4, 1e-4]})
    axes = figure.axes[0]
    assert axes.get_yscale() == "log" and [line.get_label() for line in axes.lines] == ["one", "two"]
    assert axes.lines[0].get_ydata()[-1] == 1e-5  # type: ignore[index]
    pixels(png(figure))


def test_names_in_other_scripts_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    png(figure_fit(np.zeros((3, 2)), None, circle(), centres=(np.arange(32), np.arange(32)), unit="px", title="数字"))
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_pictures_can_be_drawn_in_threads() -> None:
    """No global state: pyplot is never imported by us."""
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(png(figure_steps([steps()])))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len(set(results)) == 1
    source = Path(sys.modules["metasdf.report"].__file__ or "").read_text(encoding="utf-8")
    assert "import matplotlib.pyplot" not in source and "pyplot import" not in source
