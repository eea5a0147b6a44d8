"""Text in a terminal: names from outside made harmless, and how many columns they take."""

import unicodedata

#: Columns of a table in log.txt, in a pipe and in a notebook.
WIDTH = 80
#: Marks that change the direction of the text after them. A terminal or an editor may obey them.
_DIRECTION = frozenset("\u061c\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LEFT_TO_RIGHT_MARK = "\u200e"


def harmless(text: str, keep: str = "") -> str:
    """A text with every control character, line break and mark of direction written as `\\x1b`.

    `keep`: characters that stay as they are.
    """
    return "".join(_escaped(one) if _acts(one) and one not in keep else one for one in text)


def short_name(name: str, most: int) -> str:
    """A user's name within a line: harmless, and at most `most` columns wide. A long name loses its middle.

    A name that is written from right to left is followed by LEFT-TO-RIGHT MARK, which has no width. Without it a
    terminal would exchange the figures on the two sides of the name.
    """
    text = harmless(name)
    if columns_of(text) > most:
        text = f"{beginning(text, (most - 2) // 2)}...{beginning(text[::-1], (most - 3) // 2)[::-1]}"
    return text + _LEFT_TO_RIGHT_MARK * any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)


def columns_of(text: str) -> int:
    """Columns that a text takes: two for a wide (Chinese, Japanese, Korean) character, none for a combining one."""
    return sum(map(_columns, text))


def beginning(text: str, most: int) -> str:
    """The longest beginning of a text that takes at most `most` columns."""
    taken = 0
    for place, character in enumerate(text):
        taken += _columns(character)
        if taken > most:
            return text[:place]
    return text


def _columns(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _acts(character: str) -> bool:
    """Whether a terminal does something else with a character than to show it."""
    return character in _DIRECTION or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
