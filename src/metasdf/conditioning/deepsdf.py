"""DeepSDF (Park et al. 2019) as values of our parts: an auto-decoder by concatenation whose field sees its coordinates twice.

The paper uses "the official DeepSDF implementation" (supplement 3.2.2), so where that differs from DeepSDF's own text these are the numbers of
the implementation. What is left out of it is in the table of departures in docs/method.md.
"""

from __future__ import annotations

from metasdf.conditioning.codes import AutoDecoderConfig
from metasdf.conditioning.hypernetwork import BiasHypernetworkConfig
from metasdf.fields import FieldSpec

CODE_DIM = 256

# "8 hidden layers of 512 units": 9 affine maps, 7 of them from hidden to hidden. Code and coordinates enter again at the fifth map; the one
# before it is narrower by these 256 + 3 numbers, so that its input has 512 again.
FIELD = FieldSpec(in_dim=3, width=512, hidden_layers=7, skip=(4,), narrow=CODE_DIM + 3, init="uniform")
DECODER = BiasHypernetworkConfig(layers=(0, 4), weight_norm=True)
DROPOUT = 0.2  # of every hidden layer, in training

# Training: N(0, 1 / 256), penalty 1e-4. A new code: 800 steps of Adam at 5e-3, a tenth of that after half of them, on 8,000 points each (its
# reconstruct.py).
CODES = AutoDecoderConfig(init_norm=1.0, prior_weight=1e-4, steps=800, lr=5e-3, decay=0.1, points=8000)
