"""How names and settings that stand in files are written for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(name: str) -> str:
    """Return a component's name for a sentence: words, and acronyms as they are written."""
    words = Path(name).stem.split("_")
    return " ".join(_SPELLED.get(word, word) for word in words)


_NAMES = """
    CNN MLP VGG11 ViT ResNet18 DenseNet121 U-Net LWLRD REFIT DEC Transpose Krum Bulyan FedAdagrad
    FedAdam FedAvg FedAvgM FedMedian FedProx FedTrimmedAvg FedYogi IID MIMIC CXR BraTS LiTS NIfTI
    BloodMNIST BreastMNIST ChestMNIST DermaMNIST OCTMNIST OrganAMNIST OrganCMNIST OrganSMNIST
    PathMNIST PneumoniaMNIST RetinaMNIST TissueMNIST
"""
_SPELLED = {name.lower(): name for name in _NAMES.split()} | {"unet": "U-Net"}
"""How names are written that are no plain words; others stay as they are."""


def sentence_case(text: str) -> str:
    """Return a text with a capital first letter; the rest stays, for the sake of acronyms."""
    return text[:1].upper() + text[1:]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as text by dotted key; what a component is called stands by itself.

    ``{"attack": {"name": "dec", "settings": {"images": 8}}}`` gives ``{"attack": "dec",
    "attack.images": "8"}``.
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            if set(value) == {"name", "settings"} and isinstance(value["settings"], Mapping):
                found[dotted] = str(value["name"])
                value = value["settings"]
            found |= flat(value, dotted)
        elif isinstance(value, list) and not any(isinstance(part, dict | list) for part in value):
            found[dotted] = ", ".join(map(str, value)) or "none"
        else:
            found[dotted] = _said(value)
    return found


def _said(value: object) -> str:
    """Return a plain value as a person would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
