"""Study: attacks that memorise pixels, under the defences.

A sweep of ``memories-dermamnist.toml``, beside this file; ``fl-sim study memories`` runs it.
"""

from experiments.studies.base import STUDIES, swept

STUDIES.register("memories", "attacks that memorise pixels, under the defences")(
    swept("memories", "memories-dermamnist", "Attacks that memorise pixels, under the defences")
)
