"""images.parquet: what is written is what is read, and flaws are told."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from uda.core.errors import UserError
from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS
from uda.report.image_table import CLASS_COLUMNS, NUMBER_COLUMNS, VECTOR_COLUMNS, ImageTable

CLASSES = ("ant", 'a "b", c', "ünï")


@pytest.fixture
def table():
    """Four images of two domains, one without a label and one of a class that the source lacks."""
    return ImageTable(
        CLASSES,
        ["a/1.png", "ä 2.png", "b/3.png", "b/4.png"],
        np.array([0, 1, 1, 0]),
        ("photos", "art"),
        {
            "label": np.array([2, NO_LABEL, UNKNOWN_CLASS, 0]),
            "prediction": np.array([2, 1, 0, 0]),
            "score": np.array([0.5, 0.25, 0.125, 1.0], np.float32),
            "ratio": np.array([1.5, 1 / 3, 0.0, 1e-300]),
            "selected": np.array([True, False, False, True]),
            "row": np.array([-1, 0, 7, 1 << 40]),
            "features": np.arange(8, dtype=np.float32).reshape(4, 2),
        },
        {"selector": "avc"},
    )


def test_a_table_goes_through_a_file(table, tmp_path):
    table.write(tmp_path / "images.parquet")
    found = ImageTable.read(tmp_path / "images.parquet")
    assert (found.classes, found.paths, found.domains) == (CLASSES, table.paths, ("photos", "art"))
    assert found.about == {"selector": "avc"} and found.domain.tolist() == [0, 1, 1, 0]
    assert set(found.columns) == set(table.columns)
    for name, values in table.columns.items():
        assert found.get(name).dtype == values.dtype, name
        assert np.array_equal(found.get(name), values), name


def test_other_readers_get_names_and_plain_types(table, tmp_path):
    """A class that the source lacks is named so; an unknown label is null."""
    table.write(tmp_path / "images.parquet")
    found = pyarrow.parquet.read_table(tmp_path / "images.parquet")
    assert found.column_names[:3] == ["path", "domain", "label"]
    columns = found.to_pydict()
    assert columns["label"] == ["ünï", None, "(another class)", "ant"]
    assert columns["domain"] == ["photos", "art", "art", "photos"]
    assert columns["features"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    kinds = {name: str(found.schema.field(name).type) for name in ("selected", "score", "ratio", "features")}
    vector = kinds.pop("features")
    assert kinds == {"selected": "bool", "score": "float", "ratio": "double"}
    assert vector.startswith("fixed_size_list<") and vector.endswith("float>[2]")
    facts = json.loads(found.schema.metadata[b"uda"])
    assert facts["classes"] == list(CLASSES) and facts["version"] == 1


def test_only_some_columns_are_read(table, tmp_path):
    table.write(tmp_path / "images.parquet")
    found = ImageTable.read(tmp_path / "images.parquet", ("prediction", "avc"))
    assert set(found.columns) == {"prediction"} and found.paths == table.paths and len(found) == 4


def test_a_table_of_no_images_goes_through_a_file(tmp_path):
    empty = ImageTable(("a",), [], np.zeros(0, int), ("d",), {"prediction": np.zeros(0, int)})
    empty.write(tmp_path / "images.parquet")
    assert len(ImageTable.read(tmp_path / "images.parquet")) == 0


def test_a_class_called_like_the_word_for_another_class_stays_itself(tmp_path):
    one = ImageTable(("(another class)", "b"), ["1"], np.zeros(1, int), ("d",), {"label": np.array([0])})
    one.write(tmp_path / "images.parquet")
    assert ImageTable.read(tmp_path / "images.parquet").get("label").tolist() == [0]


def damaged(path, how):
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "no bytes":
        path.write_bytes(b"")
    elif how == "garbage inside":
        path.write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    elif how == "of another program":
        pyarrow.parquet.write_table(pyarrow.table({"path": ["x"]}), path)
    elif how == "without domains":
        facts = json.dumps({"version": 1, "classes": ["a"]}).encode()
        pyarrow.parquet.write_table(pyarrow.table({"path": ["x"]}).replace_schema_metadata({b"uda": facts}), path)
    elif how == "other metadata":
        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.replace_schema_metadata({b"uda": b"[1]"}), path)
    elif how == "from the future":
        table = pyarrow.parquet.read_table(path)
        facts = json.loads(table.schema.metadata[b"uda"])
        facts = {b"uda": json.dumps({**facts, "version": 2}).encode()}
        pyarrow.parquet.write_table(table.replace_schema_metadata(facts), path)


BROKEN = ["cut off", "no bytes", "garbage inside", "of another program", "without domains", "other metadata"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", r"images\.parquet is missing"),
        *((how, r"images\.parquet is broken") for how in BROKEN),
        ("from the future", r"images\.parquet was written by a newer version of uda"),
    ],
)
def test_flaws_are_told(table, tmp_path, how, words):
    path = tmp_path / "images.parquet"
    table.write(path)
    damaged(path, how)
    with pytest.raises(UserError, match=words):
        ImageTable.read(path)


def test_every_column_is_explained_once():
    columns = [*CLASS_COLUMNS, *NUMBER_COLUMNS, *VECTOR_COLUMNS]
    assert len(columns) == len(set(columns)) and not {"path", "domain"} & set(columns)
    assert all({**CLASS_COLUMNS, **NUMBER_COLUMNS, **VECTOR_COLUMNS}.values())
