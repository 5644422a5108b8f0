"""What stolen images are worth: a fresh network trained on them, measured on real test images.

The rows of a run are ``<metric>_trained_on_<images>``, at the stages upload and release for

- ``stolen``: recovered images, by the extraction with the highest SSIM;
- ``stolen_raw``: recovered images as the key gives them;

and at upload, to compare with, for as many images

- ``originals``: the true images that were stolen, the most that they can be worth (ceiling);
- ``shuffled``: the same with their labels shuffled, which teach nothing (floor).

All are trained alike, with the labels that the attacker saw beside the images.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from fl_sim.data.base import Split
from fl_sim.metrics.measure import LeakageMeasurement
from fl_sim.metrics.vocabulary import RAW
from fl_sim.models import build
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, train

if TYPE_CHECKING:
    from experiments.run.study import Study


def usability(study: "Study", images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Train the case's network on images and measure it on the test set.

    Li et al. (MELBA 2025:032, section 4.2) train the utility network on stolen images in this way,
    with the labels that the attacker saw.

    Args:
        study: the run; its ``[measure] usability_epochs`` says how long.
        images: ``[n, channels, height, width]`` in [0, 1].
        labels: of the true images, ``[n, ...]``.

    Returns:
        Utility metrics by name.
    """
    scenario, case = study.scenario, study.case
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    stolen = Split(np.ascontiguousarray(pixels), labels.numpy())
    model = build(case.spec, scenario.seed + 2).to(study.device)
    train(
        LocalTraining(
            model=model,
            spec=case.spec,
            data=stolen,
            task=case.task,
            settings=scenario.training.model_copy(
                update={"epochs": float(scenario.measure.usability_epochs), "dp": None}
            ),
            stream=Stream(scenario.seed, ("usability",)),
            progress=study.progress,
        )
    )
    return study.utility(model)


def worth_of_stolen(
    study: "Study", leakage: LeakageMeasurement, labels: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Return utility by kind of recovered images; equal images are trained on once.

    Args:
        study: the run.
        leakage: what was measured of them; it has the images, raw and restored.
        labels: of the true images, ``[n, ...]``.
    """
    raw = usability(study, leakage.images[RAW], labels)
    if leakage.strongest == RAW:
        return {"stolen_raw": raw, "stolen": raw}
    restored = usability(study, leakage.images[leakage.strongest], labels)
    return {"stolen_raw": raw, "stolen": restored}


def comparisons(study: "Study", labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the labels of the true images for the ceiling and the floor of what they are worth."""
    generator = Stream(study.scenario.seed, ("usability",)).numpy("shuffled labels")
    return {"originals": labels, "shuffled": labels[generator.permutation(len(labels))]}
