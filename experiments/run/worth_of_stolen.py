"""What stolen images are worth: a fresh network trained on them, measured on real test images.

The rows of a run are ``<metric>_trained_on_<images>``, at the stages upload and release for

- ``stolen``: recovered images, by the extraction with the highest SSIM;
- ``stolen_raw``: recovered images as the key gives them;

and at upload, to compare with, for as many images

- ``originals``: the true images that were stolen, the most that they can be worth (ceiling);
- ``shuffled``: the same with their labels shuffled, which teach nothing (floor).

All are trained alike, with the labels that the attacker saw beside the images.
"""

import numpy as np
import torch

from experiments.run.owner import Owner
from experiments.run.scenario import Scenario
from fl_sim.case import Case
from fl_sim.data.base import Split
from fl_sim.metrics.measure import LeakageMeasurement
from fl_sim.models import build
from fl_sim.progress import Progress
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, train
from fl_sim.words import RAW


class Worth:
    """Trains the case's network on images and measures it on the test set.

    Li et al. (MELBA 2025:032, section 4.2) train the utility network on stolen images in this way,
    with the labels that the attacker saw.

    Args:
        scenario: what is run; its ``[measure] usability_epochs`` says how long is trained.
        case: its data and network.
        owner: who tests.
        progress: where training reports.
    """

    def __init__(self, scenario: Scenario, case: Case, owner: Owner, progress: Progress) -> None:
        self._scenario = scenario
        self._case = case
        self._owner = owner
        self._progress = progress

    def of(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Return the utility metrics of a network trained on images.

        Args:
            images: ``[n, channels, height, width]`` in [0, 1].
            labels: of the true images, ``[n, ...]``.
        """
        scenario, case = self._scenario, self._case
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        stolen = Split(np.ascontiguousarray(pixels), labels.numpy())
        model = build(case.spec, scenario.seed + 2).to(self._owner.device)
        train(
            LocalTraining(
                model=model,
                spec=case.spec,
                data=stolen,
                task=case.task,
                settings=scenario.training.model_copy(
                    update={"epochs": float(scenario.measure.usability_epochs), "dp": None}
                ),
                stream=self._stream,
                progress=self._progress,
            )
        )
        return self._owner.utility(model)

    def of_stolen(
        self, leakage: LeakageMeasurement, labels: torch.Tensor
    ) -> dict[str, dict[str, float]]:
        """Return utility by kind of recovered images; equal images are trained on once.

        Args:
            leakage: what was measured of them; it has the images, raw and restored.
            labels: of the true images, ``[n, ...]``.
        """
        raw = self.of(leakage.images[RAW], labels)
        if leakage.strongest == RAW:
            return {"stolen_raw": raw, "stolen": raw}
        return {"stolen_raw": raw, "stolen": self.of(leakage.images[leakage.strongest], labels)}

    def comparisons(
        self, originals: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, dict[str, float]]:
        """Return utility of the true images, with their labels and with these shuffled.

        Args:
            originals: the true images, as in :meth:`of`.
            labels: theirs.
        """
        order = self._stream.numpy("shuffled labels").permutation(len(labels))
        return {
            "originals": self.of(originals, labels),
            "shuffled": self.of(originals, labels[order]),
        }

    @property
    def _stream(self) -> Stream:
        return Stream(self._scenario.seed, ("usability",))
