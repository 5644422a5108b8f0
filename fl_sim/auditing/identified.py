"""The network of a checkpoint: as its user states it, as the file says, or as what explains it."""

from dataclasses import dataclass, field, replace

import torch

from fl_sim.artifact import Artifact
from fl_sim.auditing.architecture import Match, Statement, fitting, recognise
from fl_sim.auditing.subject import Subject
from fl_sim.checkpoints import Checkpoint, Finding
from fl_sim.errors import FlSimError
from fl_sim.models import check, skeleton, state_model
from fl_sim.models.base import MODELS, ModelSpec

State = dict[str, torch.Tensor]
MASK, ORIGINAL = "_mask", "_orig"


@dataclass(frozen=True)
class Identified:
    """The network of a checkpoint, as far as it is known.

    Args:
        match: how the network explains the file; ``None`` where none does.
        words: the network in words.
        findings: about what the file says of itself.
        masks: pruning masks by the file's names; they belong to a weight and are no entries.
    """

    match: Match | None
    words: str
    findings: tuple[Finding, ...] = ()
    masks: State = field(default_factory=dict)

    def renamed(self, state: State) -> State:
        """Return a state by the network's names; what it does not have keeps its own."""
        state = {self._whole(n): t for n, t in state.items() if n not in self.masks}
        if self.match is None:
            return state
        names = {file: own for own, file in self.match.names.items()}
        return {names.get(name, name): tensor for name, tensor in state.items()}

    def _whole(self, name: str) -> str:
        """Return the name of a weight before it was pruned."""
        whole = name.removesuffix(ORIGINAL)
        return whole if whole + MASK in self.masks else name

    def in_file(self, state: State) -> State:
        """Return a state of the network by the names that its file had for it."""
        names = {} if self.match is None else self.match.names
        return {names.get(name, name): tensor for name, tensor in state.items()}

    def subject(self, checkpoint: Checkpoint, reference: State | None) -> Subject:
        """Return what the checks look at."""
        match = self.match
        layouts = self.renamed(dict(checkpoint.layouts))  # type: ignore[arg-type]
        return Subject(
            self.renamed(checkpoint.state),
            None if match is None else match.spec,
            match is not None and match.size_known,
            None if reference is None else self.renamed(reference),
            layouts,  # type: ignore[arg-type]
        )

    def shown(self, finding: Finding) -> Finding:
        """Return a finding with the name that its tensor has in the file."""
        return replace(finding, tensor=self.name_in_file(finding.tensor))

    def name_in_file(self, name: str | None) -> str | None:
        """Return the name that an entry of the network has in the file."""
        if name is not None and self.match is not None:
            name = self.match.names.get(name, name)
        return name + ORIGINAL if name and name + MASK in self.masks else name


def identified(checkpoint: Checkpoint, network: ModelSpec | Statement | None = None) -> Identified:
    """Return the network of a checkpoint: as stated, else as the file says, else what explains it.

    Raises:
        FlSimError: if a stated network does not exist or cannot be built.
    """
    state, masks = unmasked(checkpoint.state)
    found = _identified(checkpoint, state, network)
    return replace(found, masks=masks, findings=(*found.findings, *map(_of_mask, masks.items())))


def unmasked(state: State) -> tuple[State, State]:
    """Return a state with pruned weights by their own names, and the masks apart.

    ``torch.nn.utils.prune`` keeps a weight as ``weight_orig`` and multiplies it by ``weight_mask``.
    """
    masks = {
        name: tensor
        for name, tensor in state.items()
        if name.endswith(MASK)
        and (whole := state.get(name.removesuffix(MASK) + ORIGINAL)) is not None
        and whole.shape == tensor.shape
    }
    names = {name.removesuffix(MASK) + ORIGINAL: name.removesuffix(MASK) for name in masks}
    return {names.get(n, n): t for n, t in state.items() if n not in masks}, masks


def _of_mask(item: tuple[str, torch.Tensor]) -> Finding:
    name, mask = item
    pruned = int((mask == 0).sum())
    what = f"A pruning mask: {pruned} of {mask.numel()} weights stand in the file and are not used."
    return Finding("file", "note", what, name, {"weights": float(pruned)})


def _identified(
    checkpoint: Checkpoint, state: State, network: ModelSpec | Statement | None
) -> Identified:
    if isinstance(network, ModelSpec):
        return Identified(fitting(state, network), f"{_words(network)}, as given")
    stated = network or Statement()
    findings: tuple[Finding, ...] = ()
    if stated.model is None and checkpoint.spec is not None:
        found = _own_word(state, checkpoint.spec)
        if found is not None:
            found = replace(found, spec=stated.of_pixels(found.spec))
            return Identified(found, f"{_words(found.spec)}, as the file states")
        what = f"Its header states a {_words(checkpoint.spec)}, and the entries are of no such one."
        findings = (Finding("file", "suspicious", what),)
    if stated.model is not None:
        state_model(stated.model)
    found = recognise(state, stated)
    if found is None and stated.model is not None:
        found = replace(fitting(state, _stated_spec(stated)), size_known=stated.size is not None)
    if found is None:
        return Identified(None, "unknown", findings)
    found = replace(found, spec=stated.of_pixels(found.spec))
    told = "as given" if stated.model is not None else _told(found)
    words = f"{_words(found.spec, found.size_known)}, {told}"
    return Identified(found, words, findings)


def _own_word(state: State, spec: ModelSpec) -> Match | None:
    """Return how what a file states of itself fits; ``None`` if it is not what the file holds."""
    try:
        own = skeleton(spec)
    except FlSimError:
        return None
    held = sum(t.numel() for t in state.values())
    found = fitting(state, spec) if sum(t.numel() for t in own.values()) <= held else None
    return None if found is None or found.missing else found


def _stated_spec(stated: Statement) -> ModelSpec:
    """Return a specification of what is stated, where no variant of it fits the file."""
    entry = MODELS.get(str(stated.model))
    stem = stated.stem or "default"
    spec = ModelSpec(
        name=str(stated.model),
        channels=stated.channels or 3,
        stem=stem,
        task=entry.tasks[0],
        size=stated.size or max(64, entry.min_sizes.get(stem, 64)),
        classes=stated.classes or 2,
    )
    check(spec)
    return spec


def _told(match: Match) -> str:
    how = "the order and shapes of its layers" if match.by_order else "its names and shapes"
    return f"recognised by {how}"


def _words(spec: ModelSpec, size_known: bool = True) -> str:
    side = f"{spec.size} x {spec.size}" if size_known else "of a size that shapes do not tell"
    return (
        f"{spec.name}, {spec.classes} outputs, images of {spec.channels} channels, {side}, "
        f"stem {spec.stem}"
    )


def identified_artifact(
    checkpoint: Checkpoint, network: ModelSpec | Statement | None, file: str
) -> tuple[Artifact, Identified]:
    """Return a checkpoint as a model that can be run and fine-tuned, and how its network is known.

    Args:
        checkpoint: as read.
        network: what the user knows of the network.
        file: name of the file, for messages.

    Returns:
        The artifact, its entries under the network's names, further ones under their own.

    Raises:
        FlSimError: if the network is not known, lacks entries in the file, or the weights are kept
            in a form that cannot be trained.
    """
    known = identified(checkpoint, network)
    match = known.match
    if match is None:
        raise FlSimError(
            f"The network of {file} is not known; state it with --model: a registered name, any "
            f"classifier of torchvision, or package.module:function."
        )
    if match.missing:
        raise FlSimError(
            f"The file {file} lacks {len(match.missing)} entries of the network "
            f"'{match.spec.name}', such as '{match.missing[0]}'; state the network that it is of "
            f"with --model."
        )
    if known.masks:
        raise FlSimError(
            f"Weights of {file} are kept with pruning masks, such as '{next(iter(known.masks))}'; "
            f"make the pruning permanent (torch.nn.utils.prune.remove) and save it again."
        )
    if checkpoint.layouts:
        name, layout = next(iter(checkpoint.layouts.items()))
        raise FlSimError(
            f"The entry '{name}' of {file} is {layout}, and such weights cannot be fine-tuned; ask "
            f"for the network before it was converted."
        )
    counts = {name: torch.zeros((), dtype=torch.int64) for name in match.lacking}
    return Artifact(match.spec, known.renamed(checkpoint.state) | counts), known
