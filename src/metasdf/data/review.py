"""The page that says how good a 3D data set is: what was dropped and why, how far each sign can be trusted, the doubtful ones with pictures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from metasdf.data.show import data_uri, panels, png

SHOWN = 48  # pictures at most
LEAST = 6  # the lowest ones are shown even where all are fine
BINS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def review(files: Sequence[Path], meta: dict[str, Any], *, low: float, splits: dict[str, int]) -> str:
    """The page as HTML: no script, no address outside itself. files: of the shapes of `meta["shapes"]`, in their order."""
    shapes = meta["shapes"]
    judged = sorted((row for row, facts in enumerate(shapes) if "agreement" in facts), key=lambda row: shapes[row]["agreement"])
    doubtful = [row for row in judged if shapes[row]["agreement"] < low]
    shown = judged[: min(SHOWN, max(LEAST, len(doubtful)))]
    pictures = panels([files[row] for row in shown])
    environment = Environment(loader=PackageLoader("metasdf"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("review.html.j2").render(
        meta=meta, low=low, doubtful=[shapes[row] for row in doubtful], splits=splits, bins=histogram([shapes[row]["agreement"] for row in judged]),
        quantiles=quantiles([shapes[row]["agreement"] for row in judged]), kinds=_counts(shapes, "kind"), methods=_counts(shapes, "method"),
        categories=_counts(shapes, "category"), other=other_sign, lost=with_lost_rows(shapes), lost_share=lost_share, unframed=without_frame(shapes),
        shown=[(shapes[row], data_uri(png(picture))) for row, picture in zip(shown, pictures, strict=True)],
    )  # fmt: skip


def with_lost_rows(shapes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Facts of the shapes that lost samples which were not finite, those that lost the largest share first."""
    return sorted((facts for facts in shapes if facts.get("dropped_rows")), key=lambda facts: (-lost_share(facts), facts["name"]))


def lost_share(facts: dict[str, Any]) -> float:
    """Of the samples that were found."""
    return float(facts["dropped_rows"] / (facts["samples"] + facts["dropped_rows"]))


def without_frame(shapes: Sequence[dict[str, Any]]) -> int:
    """How many shapes came without the frame that leads back to the mesh's own units."""
    return sum(not facts.get("framed", True) for facts in shapes)


def other_sign(facts: dict[str, Any]) -> str:
    """The option that tries the other method for one shape, safe to be pasted into a shell."""
    return "--sign " + shlex.quote(f"{facts['name']}={'visibility' if facts['method'] == 'winding' else 'winding'}") + " --force"


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Lowest, 5 %, median; empty for none."""
    return dict(zip(("lowest", "5 %", "median"), np.quantile(values, (0.0, 0.05, 0.5)).tolist(), strict=True)) if len(values) else {}


def histogram(values: Sequence[float]) -> list[tuple[str, int]]:
    counts = np.histogram(values, (*BINS, 1.0 + 1e-9))[0]
    names = [f"{a:.1%} to {b:.1%}" for a, b in zip(BINS, (*BINS[1:], 1.0), strict=True)]
    return list(zip(names, counts.tolist(), strict=True))


def _counts(shapes: Sequence[dict[str, Any]], name: str) -> dict[str, int]:
    values = [str(facts[name]) for facts in shapes]
    return {value: values.count(value) for value in sorted(set(values))}
