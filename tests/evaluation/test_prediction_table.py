"""The table of predictions: its values by hand, its two formats, and what it holds in memory."""

import csv
import gc
import io
import math
import re
import tracemalloc

import numpy as np
import pyarrow.parquet
import pytest

from tests.random_prediction import random_prediction
from uda.core.errors import UserError
from uda.core.files import OutputError
from uda.evaluation import prediction_table
from uda.evaluation.prediction_table import (
    check_table_name,
    prediction_columns,
    prediction_rows,
    prediction_writer,
    write_predictions,
)
from uda.models.network import Prediction

#: Two class weights at a right angle. The first image lies on that of b, the second between both.
WEIGHT = np.array([[0, 2], [1, 0]], np.float32)
BY_HAND = Prediction(np.array([[3, 0], [1, 1]], np.float32), np.array([[0, math.log(3)], [0, 0]], np.float32), WEIGHT)
ODD = ["a,b.jpg", 'say "hi".jpg', "two\nlines.jpg", "蝴蝶/ä.jpg", "carriage\rreturn.jpg", " spaces .jpg"]


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_rows_by_hand():
    """Image 1: angles 90 and 0 degrees, so AVC of b is pi / (3/2 pi) and AVH 0; odds 1 to 3.

    Image 2: both angles are 45 degrees and the logits are equal, so the first class is taken.
    """
    first, second = prediction_rows(["x", "y"], BY_HAND, ["a", "b"])
    names = prediction_columns(2)
    assert names == (
        *("path", "prediction", "probability", "avc", "avh"),
        *("class_1", "class_2", "probability_1", "probability_2", "error"),
    )
    first, second = (dict(zip(names, row, strict=True)) for row in (first, second))
    texts = ("path", "prediction", "class_1", "class_2", "error")
    assert [first[name] for name in texts] == ["x", "b", "b", "a", None]
    assert [second[name] for name in texts] == ["y", "a", "a", "b", None]
    numbers = ("probability", "avc", "avh", "probability_1", "probability_2")
    np.testing.assert_allclose([first[name] for name in numbers], [3 / 4, 2 / 3, 0, 3 / 4, 1 / 4], atol=1e-6)
    np.testing.assert_allclose([second[name] for name in numbers], [1 / 2] * 5, atol=1e-6)


def test_the_five_best_of_six_classes_fall_and_agree_with_the_logits():
    prediction, classes = random_prediction(seed=3), list("uvwxyz")
    rows = prediction_rows([str(i) for i in range(300)], prediction, classes)
    names = prediction_columns(6)
    assert "class_5" in names and "class_6" not in names and len(rows[0]) == len(names)
    odds = np.exp(prediction.logits.astype(float))
    softmax = odds / odds.sum(1, keepdims=True)
    for row, own in zip(rows, softmax, strict=True):
        best = [classes[k] for k in np.argsort(-own)[:5]]
        assert [row[1], *row[5:10]] == [best[0], *best]
        np.testing.assert_allclose(row[10:15], np.sort(own)[::-1][:5], rtol=1e-6)


def test_a_row_depends_on_its_image_alone():
    prediction, classes = random_prediction(seed=4), list("uvwxyz")
    ids = [str(i) for i in range(300)]
    whole = prediction_rows(ids, prediction, classes)
    part = Prediction(prediction.features[70:90], prediction.logits[70:90], prediction.weight)
    assert prediction_rows(ids[70:90], part, classes) == whole[70:90]
    with pytest.raises(ValueError, match="20 predictions for 300 images"):
        prediction_rows(ids, part, classes)


def test_an_image_that_cannot_be_read_has_its_error_alone():
    first, second = prediction_rows(["x", "y"], BY_HAND, ["a", "b"], {0: "x: cannot be read"})
    assert first == ("x", *[None] * 8, "x: cannot be read") and second[1] == "a"


@pytest.mark.parametrize("ending", [".csv", ".CSV", ".parquet"])
def test_a_file_holds_the_rows_whatever_their_names_are(ending, tmp_path):
    path, rows = tmp_path / f"out{ending}", []
    with prediction_writer(path, 6) as write:
        for start in range(2):
            part = random_prediction(seed=start, count=len(ODD))
            rows += prediction_rows(ODD, part, ["x,y", *"vwxyz"], {2: "cannot, be\nread"} if start else None)
            write(rows[-len(ODD) :])
        assert not path.exists(), "a file gets its name when it is complete"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if ending == ".parquet":
        found = [tuple(row.values()) for row in pyarrow.parquet.read_table(path).to_pylist()]
        assert found == rows
        return
    found = read_csv(path.read_bytes().decode())
    assert [row["path"] for row in found] == ODD * 2
    assert list(found[0]) == list(prediction_columns(6))
    assert found[8]["error"] == "cannot, be\nread" and found[8]["prediction"] == found[8]["avc"] == ""
    assert [float(row["probability"]) for row in found[:6]] == pytest.approx([row[2] for row in rows[:6]], rel=1e-8)
    assert np.float32([row["avc"] for row in found[:6]]).tolist() == [row[3] for row in rows[:6]]


def test_csv_goes_to_an_open_file():
    file = io.StringIO()
    with prediction_writer(file, 2) as write:
        write(prediction_rows(["x", "y"], BY_HAND, ["a", "b"]))
    head, first, second = file.getvalue().splitlines()
    assert head == "path,prediction,probability,avc,avh,class_1,class_2,probability_1,probability_2,error"
    assert re.fullmatch(r"x,b,0\.7500000\d+,0\.66666\d+,8\.999\d+e-08,b,a,0\.750000\d+,0\.24999\d+,", first)
    assert second == "y,a,0.5,0.5,0.5,a,b,0.5,0.5,"


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_all_predictions_at_once_are_written_in_parts(ending, tmp_path, monkeypatch):
    """The parts are smaller than the number of images, and so are the row groups."""
    monkeypatch.setattr(prediction_table, "_ROWS", 128)
    monkeypatch.setattr(prediction_table, "_GROUP_ROWS", 100)
    prediction, ids, classes = random_prediction(seed=5), [str(i) for i in range(300)], list("uvwxyz")
    write_predictions(tmp_path / f"all{ending}", ids, prediction, classes)
    if ending == ".csv":
        found = read_csv((tmp_path / "all.csv").read_text())
        assert [row["prediction"] for row in found] == [classes[k] for k in prediction.logits.argmax(1)]
        assert [row["path"] for row in found] == ids
    else:
        file = pyarrow.parquet.ParquetFile(tmp_path / "all.parquet")
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [100, 100, 100]
        found = [tuple(row.values()) for row in file.read().to_pylist()]
        assert found == prediction_rows(ids, prediction, classes)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_memory_does_not_grow_with_the_number_of_rows(ending, tmp_path, monkeypatch):
    """Python's peak for 20 times the rows is that for few; the rows alone would take megabytes."""
    monkeypatch.setattr(prediction_table, "_GROUP_ROWS", 512)
    rows = prediction_rows([str(i) for i in range(300)], random_prediction(seed=6), list("uvwxyz"))

    def peak(batches):
        gc.collect()
        tracemalloc.start()
        with prediction_writer(tmp_path / f"out{ending}", 6) as write:
            for batch in range(batches):
                write([(f"{batch}/{row[0]}", *row[1:]) for row in rows])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)  # what is imported and cached once
    few, many = peak(5), peak(100)
    assert many < few + 300_000, (few, many)


@pytest.mark.parametrize("name", ["out.txt", "out", "out.csv.gz", ""])
def test_another_ending_is_refused(name, tmp_path):
    for call in (check_table_name, lambda path: prediction_writer(path, 2).__enter__()):
        with pytest.raises(UserError, match=r"^`out`: .*: name a file that ends in \.csv or \.parquet$"):
            call(tmp_path / name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_place_that_cannot_be_written_is_named(ending, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(OutputError, match=rf"file/out\{ending} cannot be written: "),
        prediction_writer(tmp_path / "file" / f"out{ending}", 2),
    ):
        raise AssertionError("it is told before anything is predicted")


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_that_is_not_finished_leaves_the_old_one(ending, tmp_path):
    path = tmp_path / f"out{ending}"
    write_predictions(path, ["x", "y"], BY_HAND, ["a", "b"])
    before = path.read_bytes()
    stopped = pytest.raises(KeyboardInterrupt)
    with stopped, prediction_writer(path, 2) as write:
        write(prediction_rows(["z", "z"], BY_HAND, ["a", "b"]))
        raise KeyboardInterrupt
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]
