"""What is tried of a defence: ranges and choices of its settings, and points of the unit cube.

Every key has one coordinate in [0, 1), so that any search of the cube searches the settings.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from fl_sim.defenses.base import DEFENSES
from fl_sim.errors import FlSimError, did_you_mean, shown
from fl_sim.settings import Settings, parse

Values = dict[str, Any]
_DIGITS = 3
"""Significant digits of numbers that are drawn."""


class Range(Settings):
    """Numbers that one is drawn from.

    Args:
        low, high: ends, both included; whole numbers are drawn where both are written as such.
        log: draw evenly by ratio, where numbers span orders of magnitude.
    """

    low: int | float
    high: int | float
    log: bool = Field(False)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"with log = true, low ({self.low:g}) must be above 0")
        return self

    def at(self, place: float) -> int | float:
        """Return the number at a place from 0, the low end, up to 1."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        # Whole numbers have equal shares, those at the ends too.
        low, high = (self.low, self.high + 1) if whole else (self.low, self.high)
        if self.log:
            number = math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
        else:
            number = low + place * (high - low)
        rounded = math.floor(number) if whole else float(f"{number:.{_DIGITS}g}")
        return min(max(rounded, self.low), self.high)


class Space:
    """The settings of one defence that are tried.

    Args:
        where: how the defence is called in messages.
        defense: the defence's name.
        fixed: settings that every trial has, unless it tries another value: the first setting is
            these alone, and defaults for the rest.
        tried: by key a list of choices, of which any may be a range; or one range.

    Raises:
        FlSimError: if a key, a range or a setting is wrong.
    """

    def __init__(
        self, where: str, defense: str, fixed: Mapping[str, Any], tried: Mapping[str, Any]
    ) -> None:
        self.where = where
        self._kind: type[Settings] = DEFENSES.get(defense).Settings
        self.first = parse(self._kind, dict(fixed), where).plain()
        self._fixed = dict(fixed)
        self._choices = {key: self._read(key, choices) for key, choices in tried.items()}
        if not self._choices:
            raise FlSimError(f"{where} has nothing to try; name ranges in [defense.try].")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that are tried, one a coordinate."""
        return tuple(self._choices)

    def at(self, point: Sequence[float]) -> Values:
        """Return the settings at a point of the unit cube, every default filled in.

        Raises:
            FlSimError: if the defence refuses values that it takes one by one.
        """
        chosen = {}
        for (key, choices), place in zip(self._choices.items(), point, strict=True):
            number, within = divmod(min(place, math.nextafter(1, 0)) * len(choices), 1)
            choice = choices[int(number)]
            chosen[key] = choice.at(within) if isinstance(choice, Range) else choice
        return self._filled(chosen)

    def grid(self) -> Iterator[Values]:
        """Yield every combination of the choices that the defence takes.

        Raises:
            FlSimError: if one is a range.
        """
        for key, choices in self._choices.items():
            if any(isinstance(choice, Range) for choice in choices):
                raise FlSimError(
                    f"{self.where} has a range for '{key}', but search = \"grid\" tries lists "
                    f'only; list its values, or say search = "random".'
                )
        for values in itertools.product(*self._choices.values()):
            try:
                yield self._filled(dict(zip(self._choices, values, strict=True)))
            except FlSimError:  # such as a lowest rate above the highest
                continue

    def _filled(self, chosen: Values) -> Values:
        return parse(self._kind, {**self._fixed, **chosen}, self.where).plain()

    def _read(self, key: str, choices: Any) -> list[Any]:
        valid = self._kind.model_fields
        if key not in valid:
            raise FlSimError(f"{self.where} try has no key {shown(key)}.{did_you_mean(key, valid)}")
        listed = list(choices) if isinstance(choices, list | tuple) else [choices]
        if not listed or not isinstance(choices, list | tuple | Mapping):
            raise FlSimError(
                f"{self.where} try {key} is {shown(choices)}, but it should be a list, or a range "
                f"such as {{low = 1e-4, high = 1e-2, log = true}}."
            )
        place = f"{self.where} try {key}"
        read = [parse(Range, c, place) if isinstance(c, Mapping) else c for c in listed]
        for choice in read:
            for value in (choice.low, choice.high) if isinstance(choice, Range) else (choice,):
                self._require_possible(key, value, place)
        return read

    def _require_possible(self, key: str, value: Any, place: str) -> None:
        """Refuse a value that the key cannot have, whatever the other keys say."""
        field: Any = TypeAdapter(self._kind.model_fields[key].rebuild_annotation())
        try:
            field.validate_python(value)
        except ValidationError as error:
            why = error.errors()[0]["msg"]
            raise FlSimError(f"{place} has the value {shown(value)}. {why}.") from None
