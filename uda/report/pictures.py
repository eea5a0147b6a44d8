"""The images that a page shows, chosen without looking at more than its reader could, and their thumbnails."""

import base64
import io
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from uda.core.errors import UserError
from uda.core.files import atomic_path
from uda.data.images import Images
from uda.report.image_table import ImageTable

THUMBNAIL_SIDE = 96
#: All thumbnails of a page together. Base64 makes them a third larger.
MOST_BYTES = 2_000_000
PICTURES = "pictures.parquet"


def notable_rows(states: Sequence[ImageTable], most: int) -> list[int]:
    """Rows of at most `most` images that answer a reader's first questions.

    The kinds of image take turns: mistakes by cell of the confusion matrix, images that only the selector or only
    softmax selected, the surest, the hardest, the most doubtful, those whose class changed, and a random sample. In
    each kind the classes take turns.

    Args:
        states: tables of the same images, in the order of the run.
        most: the number of rows.
    """
    if not states or not most:
        return []
    last, kinds = states[-1], []
    prediction, probability, avh = (last.get(name) for name in ("prediction", "probability", "avh"))
    truth = last.get("label")
    if truth is not None:
        cells = np.where(
            (truth >= 0) & (truth != prediction), truth.astype(np.int64) * len(last.classes) + prediction, -1
        )
        kinds.append(in_turns(-probability, cells))
    choosing = [state for state in states if state.get("selected") is not None]
    for state in dict.fromkeys(map(id, (*choosing[-1:], *choosing[:1]))):
        table = next(one for one in choosing if id(one) == state)
        selected, softmax = table.get("selected"), table.get("softmax_selected")
        for label, only in (("pseudo_label", selected & ~softmax), ("softmax_label", softmax & ~selected)):
            kinds.append(in_turns(-table.get("ratio"), np.where(only, table.get(label), -1)))
        kinds.append(in_turns(-table.get("ratio"), np.where(selected, table.get("pseudo_label"), -1)))
    kinds += [in_turns(-probability, prediction), in_turns(-avh, prediction), in_turns(probability, prediction)]
    if len(states) > 1:
        changed = states[-2].get("prediction") != prediction
        kinds.append(in_turns(-probability, np.where(changed, prediction, -1)))
    kinds.append(np.random.default_rng(0).permutation(len(last)).tolist())
    found: dict[int, None] = {}
    for row in _interleaved(kinds):
        if len(found) == most:
            break
        found[row] = None
    return list(found)


def in_turns(order: np.ndarray, groups: np.ndarray) -> list[int]:
    """Rows with a group of at least 0: first the first row of each group, then the second of each, and so on.

    Args:
        order: (N,) numbers to sort the rows of a group by, ascending.
        groups: (N,) group numbers. Rows with a negative one are left out.
    """
    rows = np.flatnonzero(groups >= 0)
    rows = rows[np.lexsort((order[rows], groups[rows]))]
    starts = np.flatnonzero(np.r_[True, np.diff(groups[rows]) != 0]) if len(rows) else np.zeros(0, int)
    places = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    return rows[np.argsort(places, kind="stable")].tolist()


def _interleaved(lists: Iterable[Sequence[int]]) -> Iterable[int]:
    return (row for row in chain.from_iterable(zip_longest(*lists)) if row is not None)


class Pictures:
    """Thumbnails of target images by row. They are kept, so that each image is read once.

    Args:
        images: the images; None if only kept thumbnails are available.
        kept: thumbnails that are known already.
    """

    def __init__(self, images: Images | None, kept: dict[int, bytes] | None = None):
        self.images = images
        self.jpegs: dict[int, bytes] = dict(kept or {})

    def of(self, rows: Sequence[int]) -> dict[int, bytes]:
        """The thumbnails of rows, as many as fit into MOST_BYTES, in the given order. Rows without one are left out."""
        found, size = {}, 0
        for row in rows:
            if row not in self.jpegs:
                if self.images is None:
                    continue
                self.jpegs[row] = thumbnail(self.images, row)
            size += len(self.jpegs[row])
            if size > MOST_BYTES:
                break
            found[row] = self.jpegs[row]
        return found


def write_pictures(path: Path, jpegs: dict[int, bytes], paths: Sequence[str]) -> None:
    """Write thumbnails as Parquet: `row` in the target, `path`, and `jpeg`."""
    import pyarrow
    import pyarrow.parquet

    columns = {
        "row": pyarrow.array(list(jpegs), pyarrow.int64()),
        "path": pyarrow.array([paths[row] for row in jpegs], pyarrow.string()),
        "jpeg": pyarrow.array(list(jpegs.values()), pyarrow.binary()),
    }
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)


def read_pictures(path: Path, paths: Sequence[str] | None = None) -> dict[int, bytes]:
    """Thumbnails by row.

    Args:
        path: the file.
        paths: names of all target images, to compare with.

    Raises:
        UserError: the file is missing or broken, or of other images.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        table = pyarrow.parquet.read_table(path, columns=["row", "path", "jpeg"])
        rows, names, jpegs = (table[name].to_pylist() for name in ("row", "path", "jpeg"))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException):
        raise UserError(f"{path} is broken") from None
    if paths is not None and any(
        not 0 <= row < len(paths) or paths[row] != name for row, name in zip(rows, names, strict=True)
    ):
        raise UserError(f"{path} is of other images")
    return dict(zip(rows, jpegs, strict=True))


def thumbnail(images: Images, index: int, side: int = THUMBNAIL_SIDE) -> bytes:
    """Image `index` as a JPEG whose longer side has at most `side` pixels."""
    from PIL import Image

    pixels = images.read(index).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as an address for `<img>`."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
