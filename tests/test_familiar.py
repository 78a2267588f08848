"""When a shape is not of the kind a prior knows: the misfit by closed form, what is usual by hand, and who is told what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spheres import CENTRE, radius, write_spheres
from test_solid import PLACE, ball, directions

from metasdf import familiar
from metasdf.familiar import FEWEST, KEY, UNUSUAL, Points, doubt, judged, misfit, usual
from metasdf.geometry.frame import Frame, identity
from metasdf.prior import SDF, Observed, Prior
from metasdf.reconstruct import reconstruct
from metasdf.solid import fit_scan, reconstruct_scan


def unit_ball(scale: float) -> Any:
    """A signed distance function whose units are `scale` field units."""

    def sdf(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x, axis=1) - 1.0

    sdf.frame = Frame((0.0, 0.0, 0.0), scale)  # type: ignore[attr-defined]
    return sdf


def test_misfit_is_the_mean_distance_in_field_units() -> None:
    x = directions(50)
    assert misfit(unit_ball(0.4), Points(1.5 * x)) == pytest.approx(0.4 * 0.5)
    assert misfit(unit_ball(0.4), Points(1.5 * x, np.full(50, 0.75))) == pytest.approx(0.4 * 0.25)
    assert misfit(unit_ball(0.4), Points(x * np.where(np.arange(50) == 3, np.nan, 1.0)[:, None])) == float("inf")


def test_points_of_the_context_judge_only_where_there_are_no_others() -> None:
    x = np.arange(3 * 400.0).reshape(-1, 3)
    np.testing.assert_array_equal(judged(Points(x, x[:, 0]), 400 - FEWEST).s, x[-FEWEST:, 0])
    np.testing.assert_array_equal(judged(Points(x), 401 - FEWEST).x, x[: 401 - FEWEST])
    np.testing.assert_array_equal(judged(Points(x), 400).x, x)


def test_usual_by_hand(tmp_path: Path) -> None:
    """Spheres with no more points than a context: all of them are fitted to, and judged."""
    store, prior = write_spheres(tmp_path / "store", surface=150), ball("levelset")
    rows = np.arange(5)
    found = []
    for row in rows:
        x = (CENTRE + radius(row) * normals(row, 150)).astype(np.float32)
        found.append(np.abs(prior.fit([Observed(identity(3), x, None)])[0](x)).mean())
    told = usual(prior, store, rows)
    assert told["n"] == 5
    assert told["median"] == pytest.approx(np.median(found), rel=1e-4) and told["p95"] == pytest.approx(np.quantile(found, 0.95), rel=1e-4)


def normals(index: int, n: int) -> np.ndarray:
    """Those of `write_spheres` with its 300 samples."""
    rng = np.random.default_rng(index)
    rng.uniform(-1, 1, (300, 3))
    found = rng.standard_normal((n, 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("rule", ["dense", "levelset", "partial", "oriented"])
def test_usual_judges_by_other_points(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, prior = write_spheres(tmp_path / "store", samples=1000, surface=1000, shapes=2), ball(rule)
    fitted, judging = [], []
    fit = Prior.fit
    monkeypatch.setattr(Prior, "fit", lambda self, observed: fitted.extend(observed) or fit(self, observed))
    monkeypatch.setattr(familiar, "misfit", lambda sdf, points: judging.append(points) or 1.0)
    assert usual(prior, store, np.arange(2)) == {"median": 1.0, "p95": 1.0, "n": 2}
    for index, (context, points) in enumerate(zip(fitted, judging, strict=True)):
        assert len(context.x) == 200 and len(points.x) == 200
        assert not {x.tobytes() for x in context.x} & {x.tobytes() for x in points.x}
        true = np.linalg.norm(points.x - CENTRE, axis=1) - radius(index)
        assert (points.s is None) == (rule in ("levelset", "partial"))
        np.testing.assert_allclose(true, 0 if points.s is None else points.s, atol=1e-6)


@pytest.fixture
def fitted() -> tuple[Prior, SDF, Points, float]:
    """A prior, and its field after 200 of 500 points far from the origin; the misfit at the others."""
    prior, points = ball("levelset"), Points(PLACE + 2.0 * directions(500))
    frame = prior.frame_of(points.x)
    (sdf,) = prior.fit([Observed(frame, frame.to_field(points.x[:200]), None)])
    return prior, sdf, points, misfit(sdf, points.rows(slice(200, None)))


def test_doubt_begins_beyond_what_is_usual(fitted: tuple[Prior, SDF, Points, float]) -> None:
    prior, sdf, points, found = fitted
    assert doubt(prior, sdf, points, 200) is None, "a card that does not say what is usual"
    for factor, doubtful in ((0.98, False), (1.02, True)):
        prior.card[KEY] = {"median": 0.1, "p95": found / (factor * UNUSUAL), "n": 7}
        assert (doubt(prior, sdf, points, 200) is not None) == doubtful
    text = doubt(prior, sdf, points, 200, units="metres", causes="a reason")
    unit = sdf.frame.scale
    assert text is not None and f"at 300 points it was not fitted to, the field is off by {found / unit:.3g} metres" in text
    assert f"keep to {found / (1.02 * UNUSUAL) / unit:.3g} (median {0.1 / unit:.3g}, n 7). Likely causes: a reason" in text
    assert "at 500 points it was fitted to" in str(doubt(prior, sdf, points, 500))


def test_a_shipped_prior_that_fits_better_is_named(fitted: tuple[Prior, SDF, Points, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """By its misfit over what is usual for itself; only one for the same dimension and observations, whose card says it."""
    prior, sdf, points, found = fitted
    prior.card[KEY] = {"median": 0.1, "p95": found / 3, "n": 7}
    others = {name: ball(rule) for name, rule in (("worse", "levelset"), ("good", "levelset"), ("best", "levelset"), ("dense", "dense"),
                                                  ("silent", "levelset"))}  # fmt: skip
    for name, share in (("worse", 3.1), ("good", 2.0), ("best", 1.1), ("dense", 0.1)):
        others[name].card[KEY] = {"median": 0.1, "p95": found / share, "n": 7}
    names = ["worse", "good", "dense", "silent"]
    monkeypatch.setattr(familiar, "shipped", lambda: names)
    monkeypatch.setattr(familiar, "load", lambda name: others[name])
    assert "; the prior good fits better" in str(doubt(prior, sdf, points, 200))
    names.append("best")
    assert "; the prior best fits better" in str(doubt(prior, sdf, points, 200))
    names[:] = ["worse", "dense", "silent"]
    assert "fits better" not in str(doubt(prior, sdf, points, 200))


def test_another_kind_of_shape_is_told_of(tmp_path: Path) -> None:
    """A prior that fits rods as usual, and a ball twice as badly: the whole way from a file to the summary."""
    prior, kinds = ball("levelset"), {"rod": PLACE + directions(500) * (1, 0.1, 0.1), "ball": PLACE + directions(500)}
    for name, x in kinds.items():
        np.savetxt(tmp_path / f"{name}.xyz", x, fmt="%.6f")
    prior.card[KEY] = {"median": 0.1, "p95": misfit(fit_scan(tmp_path / "rod.xyz", prior).sdf, Points(kinds["rod"])), "n": 1}
    assert not fit_scan(tmp_path / "rod.xyz", prior).notes
    (note,) = reconstruct_scan(tmp_path / "ball.xyz", prior, tmp_path / "ball.ply", resolution=16).summary.notes
    assert "does not look like what tables-levelset knows" in note
    assert "at 200 points it was not fitted to" in note and "--up" in note and "--align" in note and "--outliers drop" in note


def test_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digit, and what is none: for a shipped prior, with what is usual of it in its card."""
    from PIL import Image

    from metasdf.prior import load

    prior = load("mnist-levelset")
    prior.card[KEY] = {"median": 0.0056, "p95": 0.0085, "n": 80}  # of 80 validation digits
    monkeypatch.setattr(familiar, "shipped", lambda: [])
    one, comb = np.zeros((56, 56), np.uint8), np.zeros((56, 56), np.uint8)
    one[8:48, 25:31] = 255
    comb[8:48, 8:48:4] = comb[8:48, 9:48:4] = 255
    comb[8:12, 8:48] = 255
    notes = {}
    for name, image in (("one", one), ("comb", comb)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        notes[name] = [note for note in reconstruct(tmp_path / f"{name}.png", prior, tmp_path / "out").notes if "does not look like" in note]
    assert not notes["one"] and "pixels on average" in notes["comb"][0] and "it was fitted to" in notes["comb"][0]
