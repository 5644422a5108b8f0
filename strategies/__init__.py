"""Flower server side: a defence wrapped around any Flower strategy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.any_app import Defended

__all__ = ["Defended"]


def __getattr__(name: str) -> Any:
    # Flower and torch cost seconds to import, which not every user of this package pays.
    if name == "Defended":
        from strategies.any_app import Defended

        return Defended
    raise AttributeError(f"module 'strategies' has no attribute {name!r}")
