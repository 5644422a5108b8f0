"""Wrappers' prefixes, names as they may be shown, and further copies of the weights."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch

from fl_sim.checkpoints.finding import Finding, Level
from fl_sim.errors import legible

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.", "averaged_model.")
"""What wrappers put before names: DataParallel, torch.compile, Lightning, and usual attributes."""

_COPIES = frozenset(
    {"ema", "teacher", "swa", "averaged", "average", "target", "momentum", "shadow"}
)
_LONG_NAME = 200
_MOST_WRAPPERS = 8
_NEAR = 0.5
"""Averages over a training stay above; networks trained apart, and payloads, are near 0."""

_SAMPLE = 1 << 20
T = TypeVar("T")


def unwrapped(entries: dict[str, T]) -> tuple[dict[str, T], list[Finding]]:
    """Take off prefixes that most entries share; the others keep their names and are told."""
    findings: list[Finding] = []
    for _ in range(_MOST_WRAPPERS):
        for prefix in PREFIXES:
            inside = [name for name in entries if name.startswith(prefix) and name != prefix]
            rest = [name for name in entries if not name.startswith(prefix)]
            short = {name[len(prefix) :] for name in inside}
            if 2 * len(inside) <= len(entries) or short & set(rest):
                continue
            entries = _partly(entries, prefix)
            findings += _outside(prefix, rest)
            break
        else:
            break
    return entries, findings


def _partly(entries: dict[str, T], prefix: str) -> dict[str, T]:
    return {
        name[len(prefix) :] if name.startswith(prefix) and name != prefix else name: entry
        for name, entry in entries.items()
    }


def _outside(prefix: str, rest: list[str]) -> list[Finding]:
    if not rest:
        return []
    listed = ", ".join(f"'{legible(name, 60)}'" for name in rest[:4])
    what = (
        f"Most entries' names begin with '{prefix}', which was taken off; not those of "
        f"{len(rest)}: {listed}."
    )
    return [Finding("wrapper", "note", what, None, {"entries": len(rest)})]


def split_copies(entries: dict[str, T], shape: Mapping[str, object]) -> dict[str, dict[str, T]]:
    """Return copies of the weights that lie in the same dictionary under a prefix of their own.

    Args:
        entries: by name, before prefixes are taken off.
        shape: what must agree, by name.
    """
    found = {}
    heads = Counter(name.partition(".")[0] + "." for name in entries)
    for head, count in heads.items():
        if not _is_copy(head) or count < 2:
            continue
        tails = {name[len(head) :]: name for name in entries if name.startswith(head)}
        for other in ("", *(h for h in heads if not _is_copy(h))):
            same = sum(shape.get(other + tail) == shape[name] for tail, name in tails.items())
            if 2 * same > count:
                found[head.rstrip(".")] = {tail: entries[name] for tail, name in tails.items()}
                break
    return found


def _is_copy(head: str) -> bool:
    return bool(_COPIES & set(head.rstrip(".").split("_")))


def legible_names(names: Iterable[str]) -> tuple[list[str], list[Finding]]:
    """Return names as they may be shown, each its own, and tell which were changed.

    A name that is very long or has characters that do not print is kept short and escaped; that it
    was longer is a finding with its size.
    """
    used: set[str] = set()
    counts: Counter[str] = Counter()
    shown, changed = [], []
    for name in names:
        text = legible(name, _LONG_NAME)
        if text != name:
            changed.append((text, len(name.encode("utf-8", "surrogatepass"))))
        unique = text
        while unique in used:
            counts[text] += 1
            unique = f"{text} ({counts[text] + 1})"
        used.add(unique)
        shown.append(unique)
    if not changed:
        return shown, []
    size = sum(length for _, length in changed)
    what = (
        f"{len(changed)} names of entries are too long or do not print, {size} bytes of them: "
        f"'{legible(changed[0][0], 80)}'."
    )
    level: Level = "carries" if size > 2 * _LONG_NAME else "suspicious"
    return shown, [Finding("file", level, what, changed[0][0], {"bytes": size})]


def compared(
    copy: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], name: str
) -> Finding:
    """Say how a further copy of the weights differs from the weights."""
    common = [n for n in copy if n in state and state[n].shape == copy[n].shape]
    size = sum(copy[n].numel() * copy[n].element_size() for n in copy)
    equal = sum(_same(copy[n], state[n]) for n in common)
    evidence: dict[str, float] = {"bytes": size, "equal": equal, "entries": len(copy)}
    level: Level = "note"
    lead = f"'{legible(name, 80)}' is a further copy of the weights, {size} bytes"
    if equal == len(copy):
        return Finding("copies", level, f"{lead}, equal to them bit for bit.", None, evidence)
    correlation = _correlation(copy, state, common)
    evidence["correlation"] = correlation
    words = f"its correlation with them is {correlation:.3f}"
    if len(common) < len(copy):
        words += f", and {len(copy) - len(common)} of its entries they do not have"
        level = "suspicious"
    if not correlation >= _NEAR:
        level = "suspicious"
        words += ": no average of the same training"
    return Finding("copies", level, f"{lead}; {words}.", None, evidence)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.numel() == 0:
        return left.dtype == right.dtype
    one, two = (t.contiguous().view(-1).view(torch.uint8) for t in (left, right))
    return torch.equal(one, two)


def _correlation(
    copy: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], common: list[str]
) -> float:
    """Return the least correlation of two copies' large entries, on a sample of each."""
    found = []
    for name in common:
        if not copy[name].is_floating_point() or not state[name].is_floating_point():
            continue
        left, right = (t.reshape(-1)[:_SAMPLE].double() for t in (copy[name], state[name]))
        if left.numel() < 64 or copy[name].dim() < 2:
            continue
        pair = torch.stack([left, right])
        if bool(pair.isfinite().all()) and float(pair.std(1).min()) > 0:
            found.append(float(torch.corrcoef(pair)[0, 1]))
        else:
            found.append(float(torch.equal(left, right)))
    return min(found) if found else 1.0
