"""Put a trained prior into the package, then the errors measured with what was put there into its card:

    python examples/ship_prior.py RUN
    metasdf evaluate NAME --data DATA --runs 3 --json results/NAME.json
    python examples/ship_prior.py NAME results/NAME.json

In that order, because the package's copy is compact (`Prior.save`): its rates are rounded, so it is what must be measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from metasdf.prior import SHIPPED, load


def main(source: str, result: str = "") -> None:
    prior = load(source)
    if result:
        measured = json.loads(Path(result).read_text())
        if measured["prior"] != prior.name or measured["training"] != prior.card["training"]:
            sys.exit(f"{result} was measured with another prior than {source}")
        kept = ("mse", "mae", "misclassified")
        prior.card["metrics"] = {name: measured["metrics"][name] for name in kept} | {key: measured[key] for key in ("n", "failed", "split", "runs")}
    prior.card["limits"] = "handwritten digits, upright, y down; distances as in the paper's data, about half a pixel (1/128) above the true ones"
    target = SHIPPED / f"{prior.name}.safetensors"
    prior.save(target, compact=True)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
