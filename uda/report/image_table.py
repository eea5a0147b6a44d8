"""`images.parquet`: what a report knows of each image, for the page and for other tools."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uda.core.errors import UserError
from uda.core.files import atomic_path
from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS

VERSION = 1
#: Stands for the label of an image whose class the source lacks.
ANOTHER_CLASS = "(another class)"

#: Columns with a class, and what they mean.
CLASS_COLUMNS = {
    "label": "the true class, if it is known; only for measuring (oracle)",
    "pseudo_label": "the class with the largest ratio of score to lambda",
    "softmax_label": "the pseudo-label that softmax would have given",
    "prediction": "the class that the model predicts after the round",
}
#: Columns with a number for each image.
NUMBER_COLUMNS = {
    "score": "the selector's score of the pseudo-label",
    "ratio": "score / lambda",
    "selected": "whether the round trains on the image",
    "softmax_selected": "whether softmax would have selected the image",
    "probability": "softmax probability of the predicted class",
    "avc": "angular visual confidence of the predicted class",
    "avh": "angular visual hardness of the predicted class",
    "norm": "length of the feature",
    "x": "place on a map of the features (PCA), first axis",
    "y": "second axis",
    "row": "row in the tables of the target; -1 for a source image (in map.parquet only)",
}
#: Columns with a vector for each image.
VECTOR_COLUMNS = {"features": "input of the last layer", "probabilities": "softmax of all classes"}


@dataclass(frozen=True)
class ImageTable:
    """One row per image.

    Args:
        classes: K class names.
        paths: N names of images, usually paths of files below the data's folder.
        domain: (N,) place of each image's domain in `domains`.
        domains: names of domains.
        columns: arrays by the names of `CLASS_COLUMNS` (class numbers), `NUMBER_COLUMNS` and `VECTOR_COLUMNS`. A label
            may also be NO_LABEL or UNKNOWN_CLASS.
        about: further facts for the file's metadata, such as the selector.
    """

    classes: tuple[str, ...]
    paths: Sequence[str]
    domain: np.ndarray
    domains: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    about: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, name: str) -> np.ndarray | None:
        """A column; None if the table does not have it."""
        return self.columns.get(name)

    def write(self, path: Path) -> None:
        """Write the table as Parquet. Classes and domains are written as names, unknown labels as null."""
        import pyarrow
        import pyarrow.parquet

        names = np.array([*self.classes, ANOTHER_CLASS, ""], dtype=object)

        def class_names(numbers: np.ndarray) -> pyarrow.Array:
            places = np.select([numbers == UNKNOWN_CLASS, numbers == NO_LABEL], [-2, -1], numbers)
            return pyarrow.array(names[places], pyarrow.string(), mask=numbers == NO_LABEL)

        arrays = {
            "path": pyarrow.array(list(self.paths), pyarrow.string()),
            "domain": pyarrow.array(np.array(self.domains, dtype=object)[self.domain], pyarrow.string()),
        }
        for name in (*CLASS_COLUMNS, *NUMBER_COLUMNS, *VECTOR_COLUMNS):
            values = self.columns.get(name)
            if values is None:
                continue
            if name in CLASS_COLUMNS:
                arrays[name] = class_names(np.asarray(values))
            elif name in VECTOR_COLUMNS:
                flat = pyarrow.array(np.ascontiguousarray(values, np.float32).reshape(-1))
                arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
            else:
                arrays[name] = pyarrow.array(np.asarray(values))
        order = ("path", "domain", "label")
        arrays = {name: arrays[name] for name in sorted(arrays, key=lambda name: name not in order)}
        facts = {"version": VERSION, "classes": self.classes, "domains": self.domains, **self.about}
        table = pyarrow.table(arrays).replace_schema_metadata({b"uda": json.dumps(facts).encode()})
        with atomic_path(path) as temporary:
            pyarrow.parquet.write_table(table, temporary, compression="zstd")

    @classmethod
    def read(cls, path: Path, columns: Sequence[str] | None = None) -> "ImageTable":
        """Read a table, or only some of its columns besides paths and domains.

        Raises:
            UserError: the file is missing, broken or from a newer version.
        """
        import pyarrow.compute
        import pyarrow.parquet

        if not path.is_file():
            raise UserError(f"{path} is missing")
        try:
            file = pyarrow.parquet.ParquetFile(path)
            facts = json.loads(file.schema_arrow.metadata[b"uda"])
            wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            table = file.read(None if wanted is None else ["path", "domain", *wanted])
            version, classes, domains = facts.pop("version"), facts.pop("classes"), facts.pop("domains")
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
            raise UserError(f"{path} is broken") from None
        if version > VERSION:
            raise UserError(f"{path} was written by a newer version of uda")
        places = pyarrow.array([*classes, ANOTHER_CLASS])

        def numbers(name: str, values: pyarrow.Array) -> np.ndarray:
            found = pyarrow.compute.index_in(table[name], values).combine_chunks()
            return found.fill_null(NO_LABEL).to_numpy(zero_copy_only=False).astype(np.int64)

        found = {}
        for name in table.column_names:
            if name in CLASS_COLUMNS:
                of_class = numbers(name, places)
                found[name] = np.where(of_class == len(classes), UNKNOWN_CLASS, of_class)
            elif name in VECTOR_COLUMNS:
                column = table[name].combine_chunks()
                found[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
            elif name in NUMBER_COLUMNS:
                found[name] = table[name].combine_chunks().to_numpy(zero_copy_only=False)
        return cls(
            tuple(classes),
            table["path"].to_pylist(),
            numbers("domain", pyarrow.array(domains, pyarrow.string())),
            tuple(domains),
            found,
            facts,
        )
