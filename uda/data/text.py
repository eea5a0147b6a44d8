"""Reads lines of text files, compares names by Unicode form, and prepares names for messages."""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from uda.core.errors import UserError


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The non-empty lines of a text file, as pairs of the number, from 1, and the text without spaces around it.

    The file is UTF-8, or UTF-16 with its byte order mark. Raises UserError for anything else.
    """
    try:
        content = file.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}: line {line}: the text is not in UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{file}: the file holds zero bytes, so it is not text in UTF-8; save it as UTF-8")
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if line.strip():
            yield number, line.strip()


def same_form(name: str) -> str:
    """A name in Unicode's composed form (NFC), so that names that look equal are equal. macOS uses the other form."""
    return unicodedata.normalize("NFC", name)


def printable(text: str, longest: int = 120) -> str:
    """A text for a message, on one line and shortened to `longest` characters."""
    text = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
