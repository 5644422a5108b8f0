"""What stolen images are worth: a fresh network trained on them, measured on real test images."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from fl_sim.data.base import Split
from fl_sim.models import build
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, train

if TYPE_CHECKING:
    from experiments.study import Study


def usability(study: "Study", images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Train the case's network on recovered images and measure it on the test set.

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
