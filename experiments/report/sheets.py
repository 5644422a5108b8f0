"""Sheets of original and recovered images, as data URIs for a page without further files."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from experiments.report.measured import Words, number
from experiments.report.runs import Group
from experiments.tables.pictures import kept_extractions
from fl_sim.results import STAGES

if TYPE_CHECKING:
    import torch

CRISP = 64
"""Sides up to which every pixel is shown as it is; larger images are shown smaller, smoothly."""
LARGEST = 128
STRIP = 16
"""Images side by side, at most; further ones follow below."""


@dataclass(frozen=True)
class Thumb:
    """One image.

    Args:
        source: a data URI.
        alt: what it shows, and its SSIM.
        caption: its SSIM, or its number.
    """

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Strip:
    """The same images, read back in one way.

    Args:
        label: stage or defence.
        detail: extraction and mean SSIM.
        thumbs: one an image.
    """

    label: str
    detail: str
    thumbs: list[Thumb]


@dataclass(frozen=True)
class Sheet:
    """Strips below each other, column by column the same image.

    Args:
        title: which attack and images.
        strips: the originals first.
        side: of an image on the page, in CSS pixels.
        crisp: whether single pixels are shown as squares.
    """

    title: str
    strips: list[Strip]
    side: int
    crisp: bool
    note: str = field(default="")


def sheets_of_group(group: Group, count: int) -> list[Sheet]:
    """Return one group's images: originals, then raw and restored by stage; of its first seed.

    Args:
        group: of runs.
        count: images, the first ones.
    """
    pictures, words = group.first.pictures, Words(group)
    if "original" not in pictures or count < 1:
        return []
    rows = [("Original", "", "original")]
    for stage in STAGES:
        kept = kept_extractions(pictures, stage)
        if not kept or (stage == "release" and _same(pictures, rows, kept)):
            continue
        best = kept[-1]
        for extraction in dict.fromkeys(("raw", best) if "raw" in kept else (best,)):
            name = f"{stage}/{extraction}"
            how = "raw" if extraction == "raw" else f"restored: {words.extraction(extraction)}"
            rows.append((words.stage(stage).capitalize(), how, name))
    note = f"The first attacker's, of seed {group.first.seed}." if len(group.runs) > 1 else ""
    return _cut(pictures, rows, count, "", note)


def sheets_of_groups(groups: Sequence[Group], count: int) -> list[Sheet]:
    """Return sheets that compare what several defences leave of the same images.

    Groups whose stolen images are the same share a sheet: the originals, what was read before, and
    a strip a group of what was read at release, at best.

    Args:
        groups: of runs.
        count: images, the first ones.
    """
    families: list[list[Group]] = []
    for group in groups if count > 0 else ():
        if "original" not in group.first.pictures:
            continue
        for family in families:
            if _comparable(family[0], group):
                family.append(group)
                break
        else:
            families.append([group])
    found: list[Sheet] = []
    for family in families:
        first = family[0]
        pictures = {"original": first.first.pictures["original"]}
        rows = [("Original", "", "original")]
        earliest = next((s for s in STAGES if kept_extractions(first.first.pictures, s)), "release")
        if earliest != "release":
            _take(pictures, rows, first, earliest, Words(first).stage(earliest).capitalize(), "0")
        for place, group in enumerate(family, start=1):
            if _unchanged(group, earliest) and len(rows) > 1:
                continue
            _take(pictures, rows, group, "release", _differing(group, family), str(place))
        note = f"Strongest restoration of each; seed {first.first.seed}."
        found += _cut(pictures, rows, count, _shared(family), note)
    return found


def _take(
    pictures: "dict[str, torch.Tensor]",
    rows: list[tuple[str, str, str]],
    group: Group,
    stage: str,
    label: str,
    key: str,
) -> None:
    kept = kept_extractions(group.first.pictures, stage)
    if not kept:
        return
    source = f"{stage}/{kept[-1]}"
    name = f"{key}/{source}"
    pictures[name] = group.first.pictures[source]
    pictures[f"{name}/ssim"] = group.first.pictures[f"{source}/ssim"]
    how = "raw" if kept[-1] == "raw" else f"restored: {Words(group).extraction(kept[-1])}"
    rows.append((label, how, name))


def _comparable(one: Group, other: Group) -> bool:
    import torch

    first, second = one.first.pictures["original"], other.first.pictures["original"]
    return (
        one.fact("attack") == other.fact("attack")
        and one.labels.get("attack") == other.labels.get("attack")
        and one.fact("mode") == other.fact("mode")
        and torch.equal(first, second)
    )


def _differing(group: Group, family: Sequence[Group]) -> str:
    axes = [a for a in group.labels if len({member.labels[a] for member in family}) > 1]
    text = ", ".join(said for axis in axes if (said := group.said(axis)))
    text = text or Words(group).stage("release").capitalize()
    return text.replace("no defence", "No defence")


def _shared(family: Sequence[Group]) -> str:
    first = family[0]
    axes = [a for a in first.labels if len({member.labels[a] for member in family}) == 1]
    return ", ".join(said for axis in axes if (said := first.said(axis)))


def _unchanged(group: Group, stage: str) -> bool:
    """Tell whether what was released is what was trained."""
    pictures, rows = group.first.pictures, [("", "", f"{stage}/raw")]
    return stage == "upload" and _same(pictures, rows, kept_extractions(pictures, "release"))


def _same(
    pictures: "dict[str, torch.Tensor]", rows: list[tuple[str, str, str]], kept: list[str]
) -> bool:
    """Tell whether what was released is what was trained, so that it need not be shown twice."""
    import torch

    trained = [name.partition("/")[2] for _, _, name in rows if name.startswith("upload/")]
    return bool(trained and kept) and all(
        f"upload/{name}" in pictures
        and torch.equal(pictures[f"upload/{name}"], pictures[f"release/{name}"])
        for name in kept
    )


def _cut(
    pictures: "dict[str, torch.Tensor]",
    rows: Sequence[tuple[str, str, str]],
    count: int,
    title: str,
    note: str,
) -> list[Sheet]:
    """Draw rows of images, in sheets of :data:`STRIP` columns."""
    originals = pictures["original"]
    count = min(count, len(originals))
    height, width = (int(side) for side in originals.shape[2:])
    crisp = max(height, width) <= CRISP
    side = _side(max(height, width), min(count, STRIP), crisp)
    sheets = []
    for first in range(0, count, STRIP):
        places = range(first, min(count, first + STRIP))
        strips = []
        for label, how, name in rows:
            similarity = pictures.get(f"{name}/ssim")
            mean = "" if similarity is None else f"mean SSIM {number(float(similarity.mean()), 2)}"
            if similarity is not None and not pictures[name].any():
                how = "nothing could be read"
            thumbs = [
                _thumb(pictures[name][p], p + 1, label, how, similarity, crisp) for p in places
            ]
            strips.append(Strip(label, ", ".join(part for part in (how, mean) if part), thumbs))
        which = f"images {first + 1} to {places[-1] + 1}" if count > STRIP else ""
        sheets.append(Sheet(", ".join(t for t in (title, which) if t), strips, side, crisp, note))
    return sheets


def _side(pixels: int, count: int, crisp: bool) -> int:
    """Return how large an image is shown: about a page's width together, in whole pixels."""
    room = max(48, min(112, 1050 // count - 6))
    return max(1, room // pixels) * pixels if crisp else room


def _thumb(
    image: "torch.Tensor",
    place: int,
    label: str,
    how: str,
    similarity: "torch.Tensor | None",
    crisp: bool,
) -> Thumb:
    what = f"Stolen image {place}"
    if similarity is None:
        return Thumb(_data_uri(image, crisp), f"{what}, original", str(place))
    ssim = number(float(similarity[place - 1]), 2)
    text = f"{what}, {label[:1].lower()}{label[1:]}, {how}: SSIM {ssim}"
    return Thumb(_data_uri(image, crisp), text, ssim)


def _data_uri(image: "torch.Tensor", crisp: bool) -> str:
    """Return an image ``[channels, height, width]`` as a data URI; black if not finite."""
    import torch
    from PIL import Image

    values = torch.nan_to_num(image.detach().float()).clamp(0, 1)
    if len(values) not in (1, 3):
        values = values.mean(dim=0, keepdim=True)
    pixels = (values.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(pixels[..., 0] if len(values) == 1 else pixels)
    buffer = io.BytesIO()
    if crisp:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.thumbnail((LARGEST, LARGEST))
        picture.save(buffer, format="WEBP", quality=82)
    kind = "png" if crisp else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
