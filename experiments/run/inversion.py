"""Model inversion of every model that leaves, where ``[inversion]`` asks for it."""

import torch
from safetensors.torch import save
from torch import nn

from experiments.run.scenario import Scenario
from fl_sim.case import Case
from fl_sim.inversion.measured import CHANCE, shown
from fl_sim.inversion.search import InversionSettings, invert
from fl_sim.metrics.measure import Measured
from fl_sim.progress import Progress
from fl_sim.randomness import Stream


def inversion_rows(
    scenario: Scenario,
    settings: InversionSettings,
    case: Case,
    model: nn.Module,
    progress: Progress,
) -> tuple[list[Measured], bytes]:
    """Look for class representatives of a model, and measure what they show.

    They are compared with the training images, and with the images that utility is measured on,
    which no model has seen.

    Args:
        scenario: whose seed it is.
        settings: of the search.
        case: the data.
        model: of a stage, on the device that computes.
        progress: where the search reports.

    Returns:
        The rows, and the representatives as a safetensors file: ``images`` and ``labels``.
    """
    stream = Stream(scenario.seed, ("inversion",))
    found = invert(model, case.spec, case.task, settings, stream, progress)
    told = shown(found, case.train, case.test, stream)
    values = {
        "inversion_ssim": told.ssim,
        "inversion_ssim_floor_class_mean": told.class_mean,
        "inversion_ssim_floor_random": told.random,
        "inversion_trained_on": told.trained_on,
        "inversion_trained_on_floor": CHANCE,
        "inversion_sure": float(found.sure.mean()),
        "inversion_images": float(told.images),
    }
    pixels = (found.images * 255).round().to(torch.uint8)
    content = save({"images": pixels.contiguous(), "labels": found.labels.contiguous()})
    return [Measured("-", metric, value) for metric, value in values.items()], content
