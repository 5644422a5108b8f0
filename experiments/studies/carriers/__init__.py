"""Study: places for bits that survive LWLRD, and what the model pays for them.

A sweep of ``carriers-dermamnist.toml``, beside this file; ``fl-sim study carriers`` runs it.
"""

from experiments.studies.base import STUDIES, swept

STUDIES.register(
    "carriers", "places for bits that survive LWLRD, and what the model pays for them"
)(swept("carriers", "carriers-dermamnist", "Places for bits that survive LWLRD"))
