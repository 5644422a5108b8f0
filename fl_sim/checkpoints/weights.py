"""From what a pickle describes to a checkpoint: weights, copies, and an account of the rest."""

from collections.abc import Mapping, Sequence

from fl_sim.checkpoints.beside import beside
from fl_sim.checkpoints.build import Built, build, hidden
from fl_sim.checkpoints.checkpoint import Checkpoint
from fl_sim.checkpoints.contents import INSIDE, Found, candidates, find_state
from fl_sim.checkpoints.finding import Finding
from fl_sim.checkpoints.globals import judge
from fl_sim.checkpoints.pickles import Pickled
from fl_sim.checkpoints.source import Damaged
from fl_sim.checkpoints.storage import Memory, Storage
from fl_sim.checkpoints.tensors import Entry, Tensors
from fl_sim.checkpoints.wrappers import compared, legible_names, split_copies, unwrapped
from fl_sim.errors import legible


def checkpoint_of(
    pickled: Pickled,
    tensors: Tensors,
    storages: Mapping[str, Storage],
    size: int,
    kind: str,
    findings: Sequence[Finding],
) -> Checkpoint:
    """Return the checkpoint that a pickle describes.

    Args:
        pickled: the pickle.
        tensors: recognises its tensors.
        storages: every storage of the file, by key.
        size: of the file in bytes, which bounds what may be asked for.
        kind: the file's format in words.
        findings: what the format's own reader found.

    Raises:
        Damaged: if it has no weights, or a tensor that cannot be.
    """
    named = judge(pickled.names)
    main = find_state(pickled.root, tensors)
    if main is None:
        raise Damaged(_without(pickled, tensors, named))
    copies = _copies(pickled.root, main, tensors)
    told = [*findings, *named, *_spare(pickled)]
    told += beside(pickled.root, main, list(copies.values()), tensors)
    entries, doubled = _last(main.entries)
    told += doubled
    inner = split_copies(entries, {name: entry.shape for name, entry in entries.items()})
    shared = {id(entry) for copy in inner.values() for entry in copy.values()}
    entries = {name: entry for name, entry in entries.items() if id(entry) not in shared}
    entries, outside = unwrapped(entries)
    shown, changed = legible_names(entries)
    entries = dict(zip(shown, entries.values(), strict=True))
    told += [*outside, *changed, *_masks(entries)]
    memory = Memory(size)
    built = build(entries, memory)
    if not built.state:
        raise Damaged("its tensors have no values: they are on the meta device")
    further = {".".join(found.path): dict(found.entries) for found in copies.values()}
    whole = {n: build(_legible(unwrapped(c)[0]), memory) for n, c in {**inner, **further}.items()}
    told += built.findings + [f for one in whole.values() for f in one.findings]
    told += [compared(one.state, built.state, name) for name, one in whole.items()]
    told += hidden(storages, _owners(entries))
    for storage in storages.values():
        storage.release()
    return _made(built, whole, told, _format(kind, main))


def _made(built: Built, copies: dict[str, Built], told: list[Finding], kind: str) -> Checkpoint:
    states = {legible(name, 80): copy.state for name, copy in copies.items()}
    return Checkpoint(
        built.state,
        None,
        tuple(told),
        built.layouts,
        states,
        kind,
        built.parts,
    )


def _format(kind: str, main: Found) -> str:
    return kind if main.kind in ("state dictionary", "TorchScript") else f"{kind}, {main.kind}"


def _legible(entries: dict[str, Entry]) -> dict[str, Entry]:
    return dict(zip(legible_names(entries)[0], entries.values(), strict=True))


def _without(pickled: Pickled, tensors: Tensors, named: list[Finding]) -> str:
    if any(finding.level == "carries" for finding in named):
        said = named[0].what.rstrip(".")
        return (
            f"it would run code when it is loaded and has no weights ({said}): ask its makers "
            f"for the state dictionary alone, as safetensors"
        )
    if tensors.entry(pickled.root) is not None:
        return "it is a single tensor and no state dictionary: save the whole state_dict()"
    where = f"no tensors by name, at its top or under {', '.join(INSIDE)}"
    named_ones = f"; {named[0].what.rstrip('.')}" if named else ""
    return f"it has no state dictionary: {where}{named_ones}"


def _copies(root: object, main: Found, tensors: Tensors) -> dict[int, Found]:
    """Return what has most of the weights' names and shapes."""
    shapes = {n: e.shape for n, e in unwrapped(dict(main.entries))[0].items()}
    found: dict[int, Found] = {}
    for candidate in candidates(root, tensors):
        if candidate.owner is main.owner or any("optim" in p.lower() for p in candidate.path):
            continue
        own = unwrapped(dict(candidate.entries))[0]
        same = sum(shapes.get(name) == entry.shape for name, entry in own.items())
        if 2 * same > max(len(own), len(shapes)) and not _same_entries(candidate, main):
            found[id(candidate.owner)] = candidate
    return found


def _same_entries(left: Found, right: Found) -> bool:
    """Whether two places refer to the very same tensors."""
    return {id(e) for _, e in left.entries} == {id(e) for _, e in right.entries}


def _last(entries: Sequence[tuple[str, Entry]]) -> tuple[dict[str, Entry], list[Finding]]:
    """Return entries by name; of doubled names the last counts, and the others are hidden."""
    kept: dict[str, Entry] = {}
    findings = []
    for name, entry in entries:
        if name in kept and kept[name] is not entry:
            size = kept[name].size
            what = f"The name is given twice: {size} bytes under the first are hidden."
            findings.append(Finding("file", "carries", what, name, {"bytes": size}))
        kept[name] = entry
    return kept, findings


def _masks(entries: Mapping[str, Entry]) -> list[Finding]:
    masked = [
        name
        for name in entries
        if name.endswith("_orig") and name.removesuffix("_orig") + "_mask" in entries
    ]
    if not masked:
        return []
    what = (
        f"{len(masked)} tensors are stored as pruning does, as '..._orig' with '..._mask': the "
        f"values behind the mask are there still."
    )
    return [Finding("pruning", "note", what, masked[0], {"entries": len(masked)})]


def _spare(pickled: Pickled) -> list[Finding]:
    size = sum(pickled.spare.values())
    if not size:
        return []
    words = ", ".join(f"{what} ({count} bytes)" for what, count in pickled.spare.items())
    what = f"{size} bytes of its pickle are held by no object: {words}."
    return [Finding("pickle", "carries", what, None, {"bytes": size})]


def _owners(entries: Mapping[str, Entry]) -> dict[int, str]:
    return {id(v.storage): name for name, entry in entries.items() for v in entry.views}
