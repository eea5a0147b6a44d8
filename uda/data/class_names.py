"""Names of classes: which are the same, and in which order numbers mean them."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.data.text import printable, read_lines, same_form

#: In place of the number of a class: no label, and a class that is none of those that count.
NO_LABEL, UNKNOWN_CLASS = -1, -2

#: How an order is known: `given` by data.classes or a card; `numbered` by a list of numbers; `sorted`: no one has said.
KnownBy = Literal["given", "numbered", "sorted"]


@dataclass(frozen=True)
class ClassOrder:
    """Classes in label order, and how that order is known."""

    names: tuple[str, ...]
    where: str
    """Where they are from, for messages: `the source domain`, `data.classes`."""
    known: KnownBy
    may_lack: bool = False
    """Whether a domain may lack some of them (a partial target)."""
    may_add: bool = False
    """Whether it may have other classes, all of which count as UNKNOWN_CLASS (an open target)."""


def sample(names: Sequence[str], shown: int = 5) -> str:
    """The first few of some names and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(printable, names[:shown])) + more


def alike(name: str) -> str:
    """What stays of a name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def closest(name: str, known: Iterable[str]) -> str:
    """`", did you mean 'cat'?"` for the known name that `name` may be meant for, or an empty string."""
    twin = next((other for other in known if alike(other) == alike(name) != ""), None)
    return nearest(name, list(known)) if twin is None else f", did you mean '{twin}'?"


def two_orders(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names as programs sort them, and as people do: without case, `class2` before `class10`.

    torchvision sorts in the first way, timm in the second. Where both agree, the order is beyond doubt.
    """
    as_text = sorted(names)
    return as_text, sorted(as_text, key=_natural)


def _natural(name: str) -> list[str | tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part for i, part in enumerate(parts)]


def read_class_names(classes: Sequence[str] | str | Path, key: str) -> tuple[str, ...]:
    """Class names in label order, from a list or from a text file with a name a line.

    Args:
        classes: the names, or the file's path.
        key: the setting or option that they are from, for messages.

    Raises:
        UserError: no such file, fewer than two names, or one that stands twice.
    """
    if isinstance(classes, str | Path):
        if not Path(classes).is_file():
            raise UserError(
                f"{key}: no such file: {classes}; give names, [cat, dog], or a text file with a name a line"
            )
        key, classes = f"{key}: {classes}", [text for _, text in read_lines(Path(classes))]
    names = tuple(same_form(name.strip()) for name in classes)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{key}: {sample(twice)} stands twice; {len(set(names))} of {len(names)} names are different")
    if len(names) < 2 or not all(names):
        raise UserError(
            f"{key}: at least two names are needed, as [cat, dog] or a line each in a file, and none may be empty; got "
            f"{list(names)}"
        )
    return names


def unknown_note(where: str, counts: Mapping[str, int]) -> str:
    """For the log: which classes count as unknown, and how many images they have."""
    told = sample([f"{name} ({counts[name]:,})" for name in sorted(counts)], 8)
    return f"{where}: images of classes that the source lacks count as unknown, {sum(counts.values()):,} in all: {told}"


def check_same_classes(
    found: Iterable[str],
    wanted: Iterable[str],
    where: str,
    reference: str,
    otherwise: str = "",
    may_lack: bool = False,
    may_add: bool = False,
    is_target: bool = False,
) -> None:
    """Raise UserError naming every class that is in only one of two places.

    Args:
        found, wanted: the classes of a domain, and those that it should have.
        where, reference: their places, for the message.
        otherwise: a further cure, for its end.
        may_lack, may_add: as in `ClassOrder`; names that are nearly the same are refused all the same.
        is_target: whether `found` are a target's, for which `data.label_sets` is a cure.
    """
    found, wanted = set(map(same_form, found)), set(map(same_form, wanted))
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if {alike(name) for name in missing}.isdisjoint({alike(name) for name in extra} - {""}):
        missing, extra = [] if may_lack else missing, [] if may_add else extra
    problems, hint = [], ""
    if missing:
        problems.append(f"classes of {reference} that are not in {where}: {sample(missing, 12)}")
    if extra:
        almost = {alike(name): name for name in missing}
        twin = next((name for name in extra if alike(name) and alike(name) in almost), None)
        if twin is not None:
            hint = f" ('{twin}' and '{almost[alike(twin)]}' differ by case, spaces or punctuation alone)"
        else:
            hint = nearest(extra[0], missing) if len(extra) == 1 else ""
        problems.append(f"classes of {where} that are not in {reference}: {sample(extra, 12)}{hint}")
    if problems:
        lacks, adds = may_lack or bool(missing), may_add or bool(extra)
        setting = "universal" if lacks and adds else "partial" if lacks else "open"
        cure = f"; or set data.label_sets={setting} if they really differ" if is_target and not hint else ""
        raise UserError(
            f"{'; '.join(problems)}: all domains need the same classes; rename, add or remove folders or labels"
            f"{cure}{otherwise}"
        )
