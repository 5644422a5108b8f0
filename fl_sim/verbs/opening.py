"""A model file that anybody may have made, with the images of its owner."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fl_sim.artifact import Artifact
from fl_sim.auditing.architecture import Statement
from fl_sim.auditing.identified import Identified, identified_artifact
from fl_sim.checkpoints import Checkpoint, read_checkpoint
from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset, Split
from fl_sim.data.splits import HeldOutSettings, divide
from fl_sim.errors import FlSimError, legible
from fl_sim.files import briefly
from fl_sim.models.lent import require_answers


@dataclass(frozen=True)
class Opened:
    """A model file, with the images of its owner.

    Args:
        path: of the file.
        artifact: the network with the file's weights.
        checkpoint: the file as read.
        stated: what the user says of the network, with what the images tell.
        known: how its network is known.
        dataset: the owner's.
        held_out: its images for cleaning.
    """

    path: Path
    artifact: Artifact
    checkpoint: Checkpoint
    stated: Statement
    known: Identified
    dataset: Dataset
    held_out: Split

    def require_fitting(self, network: nn.Module) -> None:
        """Refuse a network that is not for the owner's images.

        Raises:
            FlSimError: naming what does not fit.
        """
        spec, task, name = self.artifact.spec, self.dataset.task, legible(briefly(self.path))
        shape = (self.dataset.channels, self.dataset.size, self.dataset.size)
        if spec.input_shape != shape:
            raise FlSimError(
                f"The network of {name} takes images of shape {list(spec.input_shape)}, and those "
                f"of {self.dataset.name} are {list(shape)}; choose the dataset or --size it was "
                f"trained on."
            )
        if spec.classes != task.outputs:
            raise FlSimError(
                f"The network of {name} has {spec.classes} outputs, and the task of "
                f"{self.dataset.name} has {task.outputs}; choose the dataset it was trained on."
            )
        require_answers(spec, network)


def open_model_file(
    file: Path,
    network: Statement,
    dataset: Dataset | str,
    data_root: Path | None,
    images: int | None,
    seed: int,
) -> Opened:
    """Read a model file that anybody may have made, and the images to clean it with.

    Args:
        file: of any format; nothing in it is run.
        network: what the user says of its network; the images tell the rest.
        dataset: the owner's; a registered name, or the path of an ``.npz`` file.
        data_root: folder of data files.
        images: how many held-out images; all of the validation split where not given.
        seed: which they are.

    Raises:
        FlSimError: if a file is missing or damaged, or the network is not known.
    """
    checkpoint = read_checkpoint(file)
    own = checkpoint.spec if network.model is None else None
    side = network.size or (own.size if own else None)
    if isinstance(dataset, str):
        dataset = load_dataset(dataset, {} if side is None else {"size": side}, data_root)
    channels = network.channels or dataset.channels
    stated = replace(network, channels=channels, size=dataset.size)
    artifact, known = identified_artifact(checkpoint, stated, briefly(file))
    held_out = divide(dataset, HeldOutSettings(images=images, public_images=0), seed).held_out
    return Opened(file, artifact, checkpoint, stated, known, dataset, held_out)
