"""`uda predict`: its table, its messages, several processes, and what it does with bad input."""

import csv
import gc
import math
import os
import re
import shutil
import tracemalloc

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import uda
from tests.data.trees import make_folders
from tests.forked import forked_job
from uda.cli.main import main
from uda.core.resources import CHECKOUT
from uda.data.images import Images
from uda.evaluation.prediction_table import prediction_columns
from uda.models.network import Prediction

NAMES = ["a,b.png", 'say "hi".png', "two\nlines.png", "蝴蝶/ä ö.png", "plain.png"]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run of the tiny config."""
    return uda.adapt(tiny, overrides={"output": tmp_path_factory.mktemp("predict") / "run"}, log=None)


@pytest.fixture
def folder(run, in_folder):
    """The current folder, with the run in `run` and images in `photos/<class>/`, and with fixed threads."""
    shutil.copytree(run.folder, in_folder / "run")
    make_folders(in_folder / "photos", ["ant", "bee", "cat", "dog"], per_class=5, seed=7)
    threads = torch.get_num_threads()
    yield in_folder
    torch.set_num_threads(threads)


@pytest.fixture
def odd(folder):
    """A folder of images with odd names."""
    for number, name in enumerate(NAMES):
        (folder / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 40), (50 * number, 20, 200)).save(folder / "odd" / name)
    return folder / "odd"


def read(path="predictions.csv"):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def said(capsys):
    """The lines on stderr; there are none on stdout."""
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


# What it writes


def test_a_folder_has_the_predictions_of_the_python_call(folder, run, capsys):
    """One row per image in sorted order; a path leads from the current folder to its file."""
    assert main(["predict", "run", "photos"]) == 0
    rows, found = read(), run.predict("photos")
    assert list(rows[0]) == list(prediction_columns(4)) and len(rows) == 20
    assert [row["path"] for row in rows] == [f"photos/{name}" for name in found.ids]
    assert all((folder / row["path"]).is_file() for row in rows)
    assert [row["prediction"] for row in rows] == found.class_names
    own = np.arange(20), found.labels
    values = {"probability": found.probabilities[own], "avc": uda.avc(found.features, found.weight)[own]}
    values["avh"] = uda.avh(found.features, found.weight, found.labels)
    for name, expected in values.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], expected, rtol=1e-4, err_msg=name)
    for row, probabilities in zip(rows, found.probabilities, strict=True):
        best = np.argsort(-probabilities)
        assert [row[f"class_{place}"] for place in range(1, 5)] == [run.classes[k] for k in best]
        given = [float(row[f"probability_{place}"]) for place in range(1, 5)]
        np.testing.assert_allclose(given, probabilities[best], rtol=1e-4)
        assert row["error"] == ""
    first, last = said(capsys)
    assert first == "20 images, tiny (weights final), cpu"
    shares = ", ".join(
        f"{name} {100 * found.class_names.count(name) / 20:.1f} %"
        for name in sorted(run.classes, key=lambda name: -found.class_names.count(name))
        if name in found.class_names
    )
    assert re.fullmatch(rf"20 images in predictions\.csv, [\d,.]+ images/s; {re.escape(shares)}", last)


def test_the_python_call_writes_the_same_table(folder, run):
    assert main(["predict", "run", "photos"]) == 0
    for name in ("own.csv", "own.parquet"):
        run.predict("photos").write(name)
    rows, own, parquet = read(), read("own.csv"), pyarrow.parquet.read_table("own.parquet").to_pylist()
    assert [row["path"] for row in own] == [row["path"].removeprefix("photos/") for row in rows]
    for a, b, c in zip(rows, own, parquet, strict=True):
        assert a["prediction"] == b["prediction"] == c["prediction"]
        assert float(a["probability"]) == pytest.approx(float(b["probability"]), rel=1e-4)
        assert float(b["probability"]) == pytest.approx(c["probability"], rel=1e-8)


def test_lists_files_and_folders_in_their_order_each_image_once(folder, odd, capsys):
    """Labels in a list are ignored, also unknown ones; paths are relative to the list's folder."""
    (folder / "lists").mkdir()
    shutil.copytree("photos", "lists/own")
    (folder / "lists" / "some.txt").write_text("own/bee/bee_1.jpg whale\nown/ant/ant_0.jpg 17\nown/ant/ant_2.jpg\n")
    assert main(["predict", "run", "photos/dog/dog_0.jpg", "lists/some.txt", "photos/dog", "odd"]) == 0
    assert [row["path"] for row in read()] == [
        *("photos/dog/dog_0.jpg", "lists/own/bee/bee_1.jpg", "lists/own/ant/ant_0.jpg", "lists/own/ant/ant_2.jpg"),
        *(f"photos/dog/dog_{number}.jpg" for number in range(1, 5)),
        *(f"odd/{name}" for name in sorted(NAMES)),
    ]
    (folder / "here.txt").write_text("photos/ant/ant_0.jpg\n")
    assert main(["predict", "run", "here.txt", "--out", "new/folder/list.csv"]) == 0
    assert [row["path"] for row in read("new/folder/list.csv")] == ["photos/ant/ant_0.jpg"]
    assert said(capsys)[-1].startswith("1 image in new/folder/list.csv, ")
    assert main(["predict", "run", "lists/some.txt", "--root", "lists/"]) == 0
    assert read()[0]["path"] == "lists/own/bee/bee_1.jpg"
    (folder / "lists" / "some.txt").write_text("bee/bee_1.jpg\n")
    assert main(["predict", "run", "lists/some.txt", "--root", "photos"]) == 0
    assert [row["path"] for row in read()] == ["photos/bee/bee_1.jpg"]


def test_parquet_and_stdout_hold_the_same_as_csv(folder, odd, capsys):
    (odd / "broken.png").write_bytes(b"no image")
    for out in ("predictions.csv", "found.parquet"):
        assert main(["predict", "run", "odd", "--out", out]) == 0
    capsys.readouterr()
    assert main(["predict", "run", "odd", "--out", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (folder / "predictions.csv").read_bytes().decode()
    assert re.match(r"6 images, [\d,.]+ images/s; ", printed.err.splitlines()[-1])
    for row, own in zip(read(), pyarrow.parquet.read_table("found.parquet").to_pylist(), strict=True):
        assert {name: value or None for name, value in row.items() if not re.match("prob|av", name)} == {
            name: value for name, value in own.items() if not re.match("prob|av", name)
        }
        assert own["probability"] is None if row["error"] else float(row["avh"]) == pytest.approx(own["avh"], rel=1e-7)


@pytest.mark.parametrize("weights", ["final", "label_free", "source"])
def test_each_model_of_a_run_predicts(folder, weights, capsys):
    """Those of an unfinished run too, but for the final one."""
    assert main(["predict", "run", "photos", "--weights", weights]) == 0
    expected = uda.load_run("run", weights=weights).predict("photos")
    assert [row["prediction"] for row in read()] == expected.class_names
    assert said(capsys)[0] == f"20 images, tiny (weights {weights}), cpu"
    os.remove("run/results.json")
    os.remove("run/checkpoints/final.safetensors")
    assert main(["predict", "run", "photos", "--weights", weights, "--out", "again.csv"]) == 2 * (weights == "final")
    if weights != "final":
        assert read("again.csv") == read()
    else:
        assert said(capsys) == [
            f"error: {folder}/run is not a finished run: there is no results.json; --weights may be label_free or "
            "source"
        ]


def test_source_and_final_model_differ(run):
    final, source = (uda.load_run(run.folder, weights=name).network.state_dict() for name in ("final", "source"))
    assert any(not torch.equal(final[name], source[name]) for name in final)


def test_a_run_of_domain_generalisation_predicts(in_folder, capsys):
    from tests.generalization.conftest import CLASSES, TINY

    for seed, domain in enumerate(("drawn", "photos", "clay")):
        make_folders(in_folder / domain, CLASSES, per_class=8, seed=seed)
    (in_folder / "three.yaml").write_text(TINY.format(root=in_folder))
    uda.generalize("three.yaml", overrides={"output": "run"}, log=None)
    for weights in ("validation", "final"):
        assert main(["predict", "run", "photos", "--weights", weights]) == 0
        expected = uda.load_run("run", weights=weights).predict("photos")
        assert [row["prediction"] for row in read()] == expected.class_names
    assert main(["predict", "run", "photos", "--weights", "source"]) == 2
    assert said(capsys)[-1].endswith("run has no weights 'source' (it has final, validation)")


def test_the_last_line_names_the_most_frequent_classes():
    from collections import Counter

    from uda.cli.commands.predict import _shares

    counts = Counter({"g": 10, "a": 3, "b": 2, "c": 1, "d": 1, "e": 1, "f": 2})
    assert _shares(counts, tuple("abcdefgh")) == (
        "g 50.0 %, a 15.0 %, b 10.0 %, f 10.0 %, c 5.0 % and 2 other classes 10.0 %"
    )
    assert _shares(Counter({"a": 1}), ("a", "b")) == "a 100.0 %"


# Images that cannot be read


def test_an_unreadable_image_has_a_row_and_the_others_their_predictions(folder, capsys):
    """In batches of 3, without and with loader processes: a damaged file, and one that is a folder's broken link."""
    assert main(["predict", "run", "photos", "--batch-size", "3", "--out", "before.csv"]) == 0
    (folder / "photos" / "bee" / "bee_1.jpg").write_bytes((folder / "photos/bee/bee_0.jpg").read_bytes()[:200])
    (folder / "photos" / "cat" / "cat_3.jpg").unlink()
    (folder / "photos" / "cat" / "cat_3.jpg").symlink_to("nowhere.jpg")
    capsys.readouterr()
    config = (folder / "run" / "config.yaml").read_text()
    for workers in (0, 2):
        (folder / "run" / "config.yaml").write_text(config.replace("workers: null", f"workers: {workers}"))
        assert main(["predict", "run", "photos", "--batch-size", "3"]) == 0
        rows = read()
        bad = {row["path"]: row for row in rows if row["error"]}
        assert list(bad) == ["photos/bee/bee_1.jpg", "photos/cat/cat_3.jpg"]
        assert bad["photos/bee/bee_1.jpg"]["error"].startswith("photos/bee/bee_1.jpg: cannot be read as an image: ")
        assert bad["photos/cat/cat_3.jpg"]["error"].startswith("photos/cat/cat_3.jpg: cannot be read: No such file")
        assert all(value == "" for row in bad.values() for name, value in row.items() if name not in ("path", "error"))
        for row, before in zip(rows, read("before.csv"), strict=True):
            assert row["path"] in bad or row == before, "an image does not depend on the others of its batch"
        *_, warning, last = said(capsys)
        assert warning.startswith(
            "warning: 2 of 20 images cannot be predicted; their rows have an error and no prediction; the first one: "
            "photos/bee/bee_1.jpg: cannot be read as an image: "
        )
        assert last.startswith("20 images in predictions.csv")


def test_if_no_image_can_be_predicted_nothing_is_written(folder, capsys):
    for name in ("a.jpg", "b.png"):
        (folder / "broken" / name).parent.mkdir(exist_ok=True)
        (folder / "broken" / name).write_bytes(b"no image")
    assert main(["predict", "run", "broken"]) == 2
    assert said(capsys)[-1] == (
        "error: none of the 2 images can be predicted; the first one: broken/a.jpg: cannot be read as an image: no "
        "known image format; repair or remove the file"
    )
    assert not (folder / "predictions.csv").exists()


# Bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere"], "images: no such file or folder: nowhere"),
        (["run", "empty"], r"empty holds no images; images end in \.avif, "),
        (["run", "empty.txt"], r"empty\.txt: the list has no images; write a line `path label` for each image"),
        (["run", "missing.txt"], r"missing\.txt: 1 of 2 listed images are not in \.: line 2: photos/ant/none\.jpg; "
         "set --root to the folder"),
        (["run", "missing.txt", "--root", "emty"], "--root: no such folder: emty"),
        (["run", "run/config.yaml"], r"images: run/config\.yaml is neither an image nor a list; a list ends in \.txt"),
        (["nowhere", "photos"], r"nowhere is not a run folder: there is no config\.yaml"),
        (["photos", "photos"], r"photos is not a run folder: there is no config\.yaml"),
        (["future", "photos"], r"future/config\.yaml is not the config of a run, or is from another version of uda"),
        (["newer", "photos"], r"config\.yaml: transforms\.sizes: unknown key, did you mean 'size'"),
        (["run", "photos", "--weights", "label-free"], r"--weights: .*run has no weights 'label-free', did you mean "
         r"'label_free'\? \(it has final, label_free, source\)"),
        (["run", "photos", "--weights", "../../run/checkpoints/final"], r"--weights: .* has no weights '\.\./"),
        (["begun", "photos", "--weights", "source"], r"--weights: .*begun has no weights 'source' \(it has none yet\)"),
        (["run", "photos", "--out", "found.xlsx"], r"--out: found\.xlsx: name a file that ends in \.csv or \.parquet"),
        (["run", "photos", "--out", "photos"], r"--out: photos: name a file that ends in \.csv or \.parquet"),
        (["run", "photos", "--out", "empty.txt/a.csv"], r"empty\.txt/a\.csv cannot be written: "),
        (["run", "photos", "--batch-size", "0"], "--batch-size: 0 is below 1"),
        (["run", "photos", "--device", "cuda:77"], "cuda"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_predicted(words, message, folder, capsys):
    for name in ("empty", "begun", "future", "newer"):
        (folder / name).mkdir()
    (folder / "empty.txt").write_text("")
    (folder / "missing.txt").write_text("photos/ant/ant_0.jpg\nphotos/ant/none.jpg\n")
    config = (folder / "run" / "config.yaml").read_text()
    (folder / "begun" / "config.yaml").write_text(config)
    (folder / "future" / "config.yaml").write_text(f"future: 1\n{config}")
    (folder / "newer" / "config.yaml").write_text(re.sub(r"\n  size: ", "\n  sizes: ", config))
    before = sorted(folder.rglob("*"))
    assert main(["predict", *words]) == 2
    assert re.match(f"error: .*{message}", said(capsys)[-1])
    assert sorted(folder.rglob("*")) == before


def test_images_must_be_named(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "run"])
    assert stopped.value.code == 2
    assert "the following arguments are required: IMAGES" in capsys.readouterr().err


# Memory and processes


class Striped(Images):
    """Any number of images, made as they are read."""

    def __init__(self, count):
        self.ids = [f"{number:05d}" for number in range(count)]

    def read(self, i):
        return torch.full((3, 30, 30), i % 256, dtype=torch.uint8)

    def take(self, indices):
        raise AssertionError("one process takes all images")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(run):
    """At any time there are the predictions of a few batches, and Python's peak is that of few images."""
    opened = uda.load_run(run.folder)
    opened.config = opened.config.model_copy(
        update={"runtime": opened.config.runtime.model_copy(update={"workers": 0})}
    )

    def peak(images):
        gc.collect()
        tracemalloc.start()
        batches = alive = 0
        for rows in opened.predict_rows(images, batch_size=8):
            assert len(rows) == 8
            batches += 1
            if batches % 10 == 0:
                alive = max(alive, sum(type(one) is Prediction for one in gc.get_objects()))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert batches == len(images) // 8 and 0 < alive <= 3
        return found

    peak(Striped(80))
    few, many = peak(Striped(80)), peak(Striped(1600))
    assert many < few + 100_000, (few, many)  # the rows alone would take 2 MB


def test_several_processes_write_what_one_writes(folder, capsys):
    """Byte for byte: 23 rows in batches of 3 on 3 processes, two of them unreadable."""
    make_folders(folder / "photos", ["eel"], per_class=3)
    for name in ("ant/ant_0.jpg", "eel/eel_2.jpg"):
        (folder / "photos" / name).write_bytes(b"no image")
    words = ["predict", "run", "photos", "--batch-size", "3"]
    assert main([*words, "--out", "one.csv"]) == 0
    own = said(capsys)
    codes, output = forked_job(3, CHECKOUT / "uda" / "__main__.py", *words, "--out", "three.csv")
    assert codes == [0, 0, 0], output
    assert (folder / "three.csv").read_bytes() == (folder / "one.csv").read_bytes()
    lines = output.splitlines()
    assert lines[0] == "23 images, tiny (weights final), cpu, 3 processes"
    assert lines[1] == own[1] and lines[1].startswith("warning: 2 of 23") and len(lines) == 3
    codes, output = forked_job(3, CHECKOUT / "uda" / "__main__.py", *words[:2], "photos/ant/ant_1.jpg")
    assert codes == [0, 0, 0] and len(read()) == 1, output


def test_a_mistake_in_a_job_is_told_by_its_first_process(folder):
    words = ["predict", "run", "photos", "--out", "run/config.yaml/no.csv"]
    codes, output = forked_job(2, CHECKOUT / "uda" / "__main__.py", *words)
    assert codes[0] == 2 and "error: run/config.yaml/no.csv cannot be written" in output


def test_probabilities_of_a_row_sum_to_at_most_one(folder):
    assert main(["predict", "run", "photos"]) == 0
    for row in read():
        values = [float(row[f"probability_{place}"]) for place in range(1, 5)]
        assert math.isclose(sum(values), 1, rel_tol=1e-6) and values == sorted(values, reverse=True)
