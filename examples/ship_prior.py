"""Put a trained prior into the package, with the measured errors in its card:

    python examples/ship_prior.py RUN results/NAME.json

The result file comes from `metasdf evaluate RUN --data DATA --json results/NAME.json` on the whole test split.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from metasdf.prior import SHIPPED, load


def main(run: str, result: str) -> None:
    prior, measured = load(run), json.loads(Path(result).read_text())
    if measured["prior"] != prior.name or measured["training"] != prior.card["training"]:
        sys.exit(f"{result} was measured with another prior than {run}")
    kept = ("mse", "mae", "misclassified")
    prior.card["metrics"] = {name: measured["metrics"][name] for name in kept} | {key: measured[key] for key in ("n", "failed", "split")}
    prior.card["limits"] = "handwritten digits, upright, y down; distances as in the paper's data, about half a pixel (1/128) above the true ones"
    target = SHIPPED / f"{prior.name}.safetensors"
    prior.save(target)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
