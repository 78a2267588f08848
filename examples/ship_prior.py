"""Put a trained prior into the package, then what was measured with the package's copy into its card:

    python examples/ship_prior.py RUN
    metasdf evaluate NAME --data DATA --runs 3 --json results/NAME.json                  2D
    metasdf evaluate NAME --data DATA --surfaces --json results/NAME.json                3D
    python examples/ship_prior.py NAME results/NAME.json

In that order, because the package's copy is compact (`Prior.save`): its rates are rounded, so it is what must be measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from metasdf.prior import SHIPPED, load

LIMITS = {
    2: "handwritten digits, upright, y down; distances as in the paper's data, about half a pixel (1/128) above the true ones",
    3: "whole shapes of one category, y up, front to +z as in training; thin parts are lost or thickened where no point is near",
}


def metrics(measured: dict[str, Any]) -> dict[str, Any]:
    """Means over the test shapes; of surfaces with their medians, under the names of docs/metrics.md."""
    found = measured["metrics"]
    if "chamfer_field" in found:
        kept = {key: {name: found[key][name] for name in ("mean", "median")} for key in ("chamfer_field", "iou", "misclassified") if found.get(key)}
    else:
        kept = {key: found[key] for key in ("mse", "mae", "misclassified")} | {"runs": measured["runs"]}
    return kept | {key: measured[key] for key in ("n", "failed", "split")}


def main(source: str, result: str = "") -> None:
    prior = load(source)
    if result:
        measured = json.loads(Path(result).read_text())
        if measured["prior"] != prior.name or measured["training"] != prior.card["training"]:
            sys.exit(f"{result} was measured with another prior than {source}")
        prior.card["metrics"] = metrics(measured)
    prior.card["limits"] = LIMITS[prior.dim]
    target = SHIPPED / f"{prior.name}.safetensors"
    prior.save(target, compact=True)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
