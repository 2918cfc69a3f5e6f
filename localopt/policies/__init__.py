"""Numbers of a step, one a layer -> learning-rate scales, one a layer: the rules that decide what is trained.

Read `protocol.py` (what a policy is), `rules.py` (the rules of the method), `beyond_norms.py` (rules on other signals),
`compose.py` (rules around rules), then `bound.py` (a policy bound to an optimizer's layers). `peers.py` and
`spectrum.py` are the shelf of other methods' rules.
"""

from localopt.policies.beyond_norms import Agreement, GainOverDamage, LossScaled, RelativeChange
from localopt.policies.compose import Every, Pinned, RelativeTo, Smoothed
from localopt.policies.peers import Cyclic, LayerDecay, RandomLayers
from localopt.policies.protocol import Policy
from localopt.policies.rules import AboveMean, Everything, Fixed, Proportional, Quantile, TopK
from localopt.policies.spectrum import HighestSNR

__all__ = [
    "AboveMean",
    "Agreement",
    "Cyclic",
    "Every",
    "Everything",
    "Fixed",
    "GainOverDamage",
    "HighestSNR",
    "LayerDecay",
    "LossScaled",
    "Pinned",
    "Policy",
    "Proportional",
    "Quantile",
    "RandomLayers",
    "RelativeChange",
    "RelativeTo",
    "Smoothed",
    "TopK",
]
