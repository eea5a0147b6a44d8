"""Class names: which names are the same, and which number stands for which class."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.data.text import printable, read_lines, same_form

#: Values in place of a class number: no label, and a class that the source does not have.
NO_LABEL, UNKNOWN_CLASS = -1, -2

#: How an order is known. `given`: by data.classes or a card. `numbered`: by numbers in a list. `sorted`: by default.
KnownBy = Literal["given", "numbered", "sorted"]


@dataclass(frozen=True)
class ClassOrder:
    """Classes in label order, and how that order is known."""

    names: tuple[str, ...]
    where: str
    """Where the names are from, for messages: `the source domain`, `data.classes`."""
    known: KnownBy
    may_lack: bool = False
    """Whether a domain may lack some of them (a partial target)."""
    may_add: bool = False
    """Whether a domain may have other classes (an open target). All of them count as UNKNOWN_CLASS."""


def sample(names: Sequence[str], shown: int = 5) -> str:
    """The first `shown` names and the number of the others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(printable, names[:shown])) + more


def alike(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def closest(name: str, known: Iterable[str]) -> str:
    """`", did you mean 'cat'?"` with the known name that is nearest to `name`. Empty if none is near."""
    twin = next((other for other in known if alike(other) == alike(name) != ""), None)
    return nearest(name, list(known)) if twin is None else f", did you mean '{twin}'?"


def two_orders(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names sorted as text, and sorted as people do: without case, `class2` before `class10`.

    torchvision sorts in the first way, timm in the second. If both orders agree, there is no doubt.
    """
    as_text = sorted(names)
    return as_text, sorted(as_text, key=_natural)


def _natural(name: str) -> list[str | tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part for i, part in enumerate(parts)]


def read_class_names(classes: Sequence[str] | str | Path, key: str) -> tuple[str, ...]:
    """Class names in label order, from a list or from a text file with one name per line.

    Args:
        classes: the names, or the file's path.
        key: the setting or option that they are from, for messages.

    Raises:
        UserError: no such file, fewer than two names, or a name that is given twice.
    """
    if isinstance(classes, str | Path):
        if not Path(classes).is_file():
            raise UserError(
                f"{key}: no such file: {classes}; give names, [cat, dog], or a text file with one name per line"
            )
        key, classes = f"{key}: {classes}", [text for _, text in read_lines(Path(classes))]
    names = tuple(same_form(name.strip()) for name in classes)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{key}: {sample(twice)} is given twice; {len(set(names))} of {len(names)} names are different")
    if len(names) < 2 or not all(names):
        raise UserError(
            f"{key}: at least two names are needed, as [cat, dog] or one per line in a file, and none may be empty; "
            f"got {list(names)}"
        )
    return names


def unknown_note(where: str, counts: Mapping[str, int]) -> str:
    """A line for the log: which classes count as unknown, and how many images they have."""
    told = sample([f"{name} ({counts[name]:,})" for name in sorted(counts)], 8)
    return f"{where}: {sum(counts.values()):,} images are of classes that the source lacks and count as unknown: {told}"


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
    """Raise UserError that names the classes that are in only one of two places.

    Args:
        found: the classes of a domain.
        wanted: the classes that it should have.
        where, reference: the places of `found` and `wanted`, for the message.
        otherwise: another cure, for the end of the message.
        may_lack, may_add: as in `ClassOrder`. Names that are nearly the same are refused even then.
        is_target: whether `found` are a target's classes. The message then names `data.label_sets` as a cure.
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
            hint = f" ('{twin}' and '{almost[alike(twin)]}' differ only by case, spaces or punctuation)"
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
