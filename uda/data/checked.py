"""Remembers which files could be read, so that a later start does not decode unchanged files again."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import PIL

from uda.core.files import OutputError, write_bytes
from uda.data.decoding import ImageFacts
from uda.data.settings import ReadingSettings
from uda.data.store import default_folder

#: Increase it with every change of what can be read, or of `ImageFacts`.
VERSION = 1

#: Fewer images are quick to check again, so no file is written for them.
LEAST = 1000

Stamp = tuple[int, int]


class Kept:
    """What is known about files below a folder, by name, with the size and time of change of each file.

    Args:
        root: the folder.
        rules: what the facts depend on besides the files.
    """

    def __init__(self, root: Path, rules: Mapping[str, object]):
        rules = [VERSION, PIL.__version__, rules, str(root.resolve())]
        digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
        self.file = default_folder() / "checked" / f"{root.resolve().name or 'images'}-{digest[:16]}.json.z"
        try:
            known = json.loads(zlib.decompress(self.file.read_bytes()))
        except (OSError, ValueError, zlib.error):  # no file yet, or a damaged one, which is written again
            known = {}
        self._known: dict[str, list] = known if isinstance(known, dict) else {}

    def row(self, name: str, stamp: Stamp) -> list | None:
        """The facts about a file. None if it is new or has changed."""
        size, changed, *facts = self._known.get(name, (None, None))
        return facts if (size, changed) == stamp else None

    def keep_rows(self, rows: Mapping[str, tuple[Stamp, Sequence]]) -> None:
        """Add new facts and write the file, unless they are fewer than LEAST.

        An error in writing is ignored: the next start then takes longer.
        """
        if len(rows) < LEAST:
            return
        for name, (stamp, facts) in rows.items():
            self._known[name] = [*stamp, *facts]
        try:
            write_bytes(self.file, zlib.compress(json.dumps(self._known).encode()))
        except (OSError, OutputError):
            return


class Checked(Kept):
    """Facts about the readable images below a folder.

    Args:
        root: the folder.
        reading: the rules by which the images are read.
    """

    def __init__(self, root: Path, reading: ReadingSettings):
        super().__init__(root, reading.model_dump(mode="json"))

    def facts(self, name: str, stamp: Stamp) -> ImageFacts | None:
        """The facts about an image. None if its file is new or has changed."""
        row = self.row(name, stamp)
        if row is None:
            return None
        transparent, orientation, white = row
        return ImageFacts(None, transparent, orientation, None if white is None else (white[0], white[1]))

    def keep(self, looks: Mapping[str, tuple[Stamp, ImageFacts]]) -> None:
        """Add new facts, as `keep_rows` does."""
        self.keep_rows({name: (stamp, dataclasses.astuple(facts)[1:]) for name, (stamp, facts) in looks.items()})
