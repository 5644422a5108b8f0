"""Adaptive federated optimisation after Reddi et al. 2021: FedAdam, FedAdagrad and FedYogi.

The server treats the mean update as a gradient. FedYogi and FedAdagrad are Algorithm 2 of "Adaptive
Federated Optimization" (arXiv 2003.00295), FedAdagrad with ``beta_1`` = 0 as in its experiments,
but for the second moment's start: zero in Flower, at least ``tau`` squared in the paper. Flower's
FedAdam is not: in round t it multiplies ``eta`` by the bias correction of Adam (Kingma and Ba
2015), ``sqrt(1 - beta_2^(t+1)) / (1 - beta_1^(t+1))``, with the exponent of Adam's next step. With
the defaults the factor is 0.74 in round 1, 0.47 in round 12, where it is smallest, 0.80 in round
100, and 1 in the end; Algorithm 2 has none. Flower's own defaults (``eta`` 0.1, ``tau`` 1e-3)
are for hospitals that train with SGD at a learning rate of 0.1; the defaults here are for
hospitals that train with Adam. Test AUC after 6 rounds of 3 hospitals with 200 phantoms each (28
px, small CNN, Adam at 1e-3, one pass a round, one seed), where FedAvg has 0.82: FedAdam has 0.71,
0.74, 0.79 and 0.72 at ``eta`` 0.001, 0.003, 0.01 and 0.1, FedAdagrad 0.80 at 0.003.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry, always

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy


class FedAdagradSettings(Settings):
    """Keys of FedAdagrad, whose steps shrink as squared updates add up.

    Args:
        eta: the server's learning rate, about the size of a weight's step in a round.
        eta_l: the hospitals' learning rate as the paper writes it; Flower only logs it.
        tau: added to the root of the second moment; updates far below it are not normalised.
    """

    eta: float = Field(0.003, gt=0)
    eta_l: float = Field(0.001, gt=0)
    tau: float = Field(1e-3, gt=0)


class FedAdamSettings(FedAdagradSettings):
    """Keys of FedAdam and FedYogi.

    Args:
        eta: the server's learning rate, about the size of a weight's step in a round.
        eta_l: the hospitals' learning rate as the paper writes it; Flower only logs it.
        beta_1: part of the first moment that is kept.
        beta_2: part of the second moment that is kept.
        tau: added to the root of the second moment; updates far below it are not normalised.
    """

    eta: float = Field(0.01, gt=0)
    beta_1: float = Field(0.9, ge=0, lt=1)
    beta_2: float = Field(0.99, ge=0, lt=1)


def build_fedadam(settings: FedAdamSettings) -> "Strategy":
    """Build Flower's FedAdam, which has a bias correction that the paper's does not have."""
    from flwr.serverapp.strategy import FedAdam

    return FedAdam(**settings.model_dump())


def build_fedyogi(settings: FedAdamSettings) -> "Strategy":
    """Build FedYogi."""
    from flwr.serverapp.strategy import FedYogi

    return FedYogi(**settings.model_dump())


def build_fedadagrad(settings: FedAdagradSettings) -> "Strategy":
    """Build FedAdagrad."""
    from flwr.serverapp.strategy import FedAdagrad

    return FedAdagrad(**settings.model_dump())


STRATEGIES.register("fedadam", "Adam on the server: Reddi et al. with Adam's bias correction")(
    StrategyEntry(FedAdamSettings, build_fedadam, server_optimizer=True, summed=always)
)
STRATEGIES.register("fedyogi", "Yogi on the server: Reddi et al.")(
    StrategyEntry(FedAdamSettings, build_fedyogi, server_optimizer=True, summed=always)
)
STRATEGIES.register("fedadagrad", "Adagrad on the server: Reddi et al.")(
    StrategyEntry(FedAdagradSettings, build_fedadagrad, server_optimizer=True, summed=always)
)
