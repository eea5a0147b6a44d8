"""Registries of named objects that a config can choose: selectors, regularisers, methods, backbones."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from uda.core.errors import UserError

T = TypeVar("T")


def nearest(name: str, known: list[str], cutoff: float = 0.6) -> str:
    """`", did you mean 'softmax'?"` for the known name closest to `name`. Empty if none is close.

    `cutoff`: how similar names must be, 0 to 1.
    """
    close = difflib.get_close_matches(str(name), known, n=5, cutoff=cutoff)
    # Swapped letters are a likelier mistake than another letter, but difflib gives both the same score.
    close.sort(key=lambda found: sorted(found) != sorted(str(name)))
    return f", did you mean '{close[0]}'?" if close else ""


class UnknownNameError(UserError, KeyError):
    """A name that is not registered."""

    __str__ = Exception.__str__  # KeyError would print the message's repr


class Registry(Mapping[str, T]):
    """A mapping from name to object, filled by a decorator.

        SELECTORS = Registry("selector")

        @SELECTORS.register("softmax")
        def softmax(features, logits, weight): ...

    Looking up an unknown name raises `UnknownNameError`, which lists the known names and the nearest one. Registering a
    name twice raises `ValueError`.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers its object under `name`."""

        def file(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            known = ", ".join(sorted(self)) or "none"
            raise UnknownNameError(f"unknown {self.kind} '{name}'{nearest(name, sorted(self))} (known: {known})")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def describe(self) -> list[tuple[str, str]]:
        """Sorted names, each with the first line of its docstring."""
        return [(name, (self[name].__doc__ or "").strip().split("\n")[0]) for name in sorted(self)]
