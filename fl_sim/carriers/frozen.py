"""Values in early weights, written before training; the rest of the network learns around them.

A random first layer costs a network little (its features are mixed anew by what follows), so the
values need not be undone by the task. Names, shapes and the seed tell the receiver where they are.
"""

from fl_sim.carriers.base import CARRIERS, State
from fl_sim.carriers.placement import Ranked, tensor_by_tensor
from fl_sim.carriers.weights import ReplacedWeights, WeightsSettings, weight_tensors


class FrozenSettings(WeightsSettings):
    """Settings of the frozen carrier; see :class:`~fl_sim.carriers.weights.WeightsSettings`.

    Args:
        tensors: by default every layer but the last, used from the front as far as is needed.
    """


@CARRIERS.register("frozen", "values in early weights, kept fixed while the rest is trained")
class Frozen(ReplacedWeights[FrozenSettings]):
    """Values in early weights, layer after layer.

    One layer is full before the next is begun, each in its own keyed order, so how many layers a
    payload takes does not change where its beginning lies. The front is where convolutions come
    before matrices, by name: see :func:`~fl_sim.carriers.weights.weight_tensors`.
    """

    Settings = FrozenSettings
    frozen = True

    def names(self, state: State) -> list[str]:
        """Return the tensors that carry; see :class:`ReplacedWeights`."""
        if self.settings.tensors is not None:
            return weight_tensors(state, self.settings.tensors, self.settings.exclude)
        early = weight_tensors(state, ("*",), ())[:-1]
        return weight_tensors({n: state[n] for n in early}, ("*",), self.settings.exclude)

    def ranked(self, state: State, count: int) -> Ranked:
        """Rank tensor after tensor."""
        return tensor_by_tensor(state, self.names(state), count, self._key())
