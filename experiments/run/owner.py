"""The data owner, or a federation's server: cleans models on the held-out set, and tests them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

import numpy as np
import torch
from torch import nn

from experiments.run.scenario import Scenario
from fl_sim.artifact import Artifact, further_entries
from fl_sim.case import Case
from fl_sim.defenses.base import DefenseReport, Release
from fl_sim.defenses.ledger import cap_bits
from fl_sim.errors import FlSimError
from fl_sim.metrics.utility import measured_utility
from fl_sim.models import state_of
from fl_sim.progress import Progress
from fl_sim.randomness import Stream
from fl_sim.training import computing_threads, predict

State = dict[str, torch.Tensor]
LOGGED_TEST_IMAGES = 1000
# All cores, or what OMP_NUM_THREADS says; noted before anything sets another number.
DEFAULT_THREADS = torch.get_num_threads()


class Owner:
    """Who holds the held-out set, and the machine that a data lake is trained on.

    Args:
        scenario: what is run.
        case: its data and network.
        progress: where long work reports.
    """

    def __init__(self, scenario: Scenario, case: Case, progress: Progress) -> None:
        self._scenario = scenario
        self._case = case
        self._progress = progress
        self._defense = scenario.make_defense()

    @property
    def device(self) -> str:
        """Where a centralized run trains, and where defences and utility are computed.

        Raises:
            FlSimError: if the scenario asks for a GPU and there is none.
        """
        wanted, available = self._scenario.device, torch.cuda.is_available()
        if wanted == "cuda" and not available:
            raise FlSimError('The scenario has device = "cuda", but torch sees no GPU here.')
        return "cuda" if available and wanted != "cpu" else "cpu"

    @property
    def defense_needs_uploads(self) -> bool:
        """Whether the defence asks for the uploads of a federation's hospitals."""
        return self._defense is not None and self._defense.needs_uploads

    def initial_model(self) -> nn.Module:
        """Build the network that training starts from, of this scenario's seed, on its device."""
        return self._case.initial(self._scenario.seed).model.to(self.device)

    def threads(self) -> AbstractContextManager[None]:
        """Run the server's or data owner's own computation on this run's threads."""
        return computing_threads(self._scenario.threads or DEFAULT_THREADS)

    def defend(
        self,
        state: State,
        server_round: int,
        reference: State | None = None,
        uploads: Sequence[State] | None = None,
    ) -> tuple[State, DefenseReport | None]:
        """Clean a model on the held-out set, as its owner would before it leaves.

        Args:
            state: as trained, or aggregated.
            server_round: from 1; 0 in centralized mode.
            reference: a state that the owner knows to be clean, if any.
            uploads: of the round's hospitals, in federated mode.
        """
        if self._defense is None:
            return state, None
        model = self.model(state)
        entries = {n: v.clone() for n, v in further_entries(state, model).items()}
        with self.threads():
            report = self._defense.apply(
                Release(
                    model=model,
                    entries=entries,
                    spec=self._case.spec,
                    held_out=self._case.held_out,
                    task=self._case.task,
                    stream=Stream(self._scenario.seed, ("release", server_round)),
                    evaluate=None if self._scenario.federation else self._logged_utility(),
                    progress=self._progress,
                    reference=reference,
                    training=None if self._scenario.federation else self._case.train,
                    uploads=uploads,
                )
            )
        return state_of(model) | entries, report

    def cap_bytes(self, released: State, report: DefenseReport | None) -> float:
        """Return the most bytes that can have passed from the model into what leaves.

        Args:
            released: what leaves.
            report: of the defence that :meth:`defend` applied, if any.
        """
        network = {name: tensor for name, tensor in released.items() if name in self._entries}
        further = {name: tensor for name, tensor in released.items() if name not in network}
        return cap_bits(report, network, further) / 8

    @cached_property
    def _entries(self) -> frozenset[str]:
        """Names of what the network itself has in a model file."""
        return frozenset(self.initial_model().state_dict())

    def model(self, state: State) -> nn.Module:
        """Return a network with a state, on the owner's device."""
        return Artifact(self._case.spec, state).model().to(self.device)

    def answers(self, model: nn.Module) -> torch.Tensor:
        """Return a network's answers to the test set; see :func:`fl_sim.training.predict`."""
        return predict(model, self._case.test, self._case.task)

    def utility(self, model: nn.Module, images: int | None = None) -> dict[str, float]:
        """Measure utility on the images that a case is tested on, or on the first of them."""
        test = self._case.test
        if images is not None and images < len(test):
            test = test.subset(np.arange(images))
        return measured_utility(model, test, self._case.task)

    def _logged_utility(self) -> Callable[[nn.Module], float]:
        metric = self._case.task.main_metric
        return lambda model: self.utility(model, LOGGED_TEST_IMAGES)[metric]
