"""Clean and audit a ``.pth`` of torchvision's: ``python own_checkpoint.py``, wherever it lies.

The file stands for one that a stranger's training left: a ResNet18 with images in its low bits.
"""

from pathlib import Path

import torch
from torchvision.models import resnet18

import fl_sim
from fl_sim.auditing.report import AuditReport
from fl_sim.data.base import Dataset


def trained(path: Path, data: Dataset, images: int) -> None:
    """Write what the stranger leaves: a state dictionary as everybody saves one."""
    network = resnet18(num_classes=4)
    attacked = fl_sim.attack(
        "dec",
        network,
        data.train,
        images=images,
        codec="png",
        training={"epochs": 0.1},
        progress=False,
    )
    torch.save(attacked.model.state_dict(), path)


def example(out: Path, images: int = 64, steps: int = 30) -> tuple[AuditReport, AuditReport]:
    """Audit the file, clean it on held-out images, and audit what leaves instead."""
    data = fl_sim.load_dataset("phantoms", {"size": 32, "train": 128, "validation": 48})
    out.mkdir(parents=True, exist_ok=True)
    came, leaves = out / "came.pth", out / "leaves.pth"
    trained(came, data, images)

    before = fl_sim.audit(came, model=resnet18(num_classes=4), size=32, progress=False)
    state = torch.load(came, weights_only=True)
    cleaned = fl_sim.clean(
        resnet18(num_classes=4),
        data.validation,
        state=state,
        progress=False,
        defense="consistent_distillation",
        steps=steps,
    )
    torch.save(cleaned.model.state_dict(), leaves)
    return before, fl_sim.audit(leaves, model=resnet18(num_classes=4), size=32, progress=False)


if __name__ == "__main__":
    came, leaves = example(Path("own-checkpoint"))
    print(f"The file that came: {came.outcome}\nThe file that leaves: {leaves.outcome}")
