"""images.parquet in other tools: the snippets of docs/reports.md run word for word on tables that a report wrote."""

import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from tests.adaptation.conftest import run_maker
from tests.docs.documents import TEXTS, marked
from uda.report.image_table import ImageTable

CLASSES = ("zebra", "ape", "never", "bee")
DIGITS = "runs/digits_avh/seed0/rounds/09/images.parquet"


def snippet(marker):
    """The code after a marker in the documentation."""
    (text,) = marked(TEXTS["docs/reports.md"], marker, "python")
    return text


def carry_out(marker):
    """The names that a snippet leaves."""
    path = Path(f"{marker}.py")
    path.write_text(snippet(marker), encoding="utf-8")
    return runpy.run_path(str(path))


def clusters(wrong=()):
    """90 images in three groups that lie apart, so a wrong pseudo-label is an image among those of another class.

    The third of four classes has no image. Rows in `wrong` have the pseudo-label of the next group.
    """
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 3], 30)
    centres = np.eye(5)[[0, 1, 2, 3]] * 8
    features = (centres[groups] + rng.normal(size=(90, 5))).astype(np.float32)
    logits = features @ centres.T / 8
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = groups.copy()
    following = {0: 1, 1: 3, 3: 0}
    labels[list(wrong)] = [following[group] for group in groups[list(wrong)]]
    selected = rng.random(90) < 0.7
    selected[89] = True  # of an unknown class, so it is not wrong
    return ImageTable(
        CLASSES,
        [f"{CLASSES[group]}/{row:02d}.png" for row, group in enumerate(groups)],
        (groups == 3).astype(int),
        ("photos", "art"),
        {
            "label": np.where(np.arange(90) == 89, -1, groups),
            "pseudo_label": labels,
            "softmax_label": groups,
            "prediction": groups,
            "score": probabilities.max(1).astype(np.float32),
            "ratio": probabilities.max(1) / 0.5,
            "selected": selected,
            "softmax_selected": selected,
            "probability": probabilities.max(1).astype(np.float32),
            "avc": rng.random(90, np.float32),
            "avh": rng.random(90, np.float32),
            "norm": np.linalg.norm(features, axis=1),
            "x": features[:, 0],
            "y": features[:, 1],
            "features": features,
            "probabilities": probabilities.astype(np.float32),
        },
        {"selector": "softmax"},
    )


@pytest.fixture
def table(in_folder):
    """That table, where the snippets look for the one of the last round."""
    found = clusters(wrong=(3, 17, 40, 41, 77))
    found.write(in_folder / DIGITS)
    return found


def test_a_run_writes_the_vectors_that_tools_need(tmp_path):
    """With report.features=true the input of the last layer and the softmax of all classes; without it neither."""
    for wanted in (True, False):
        run = run_maker(tmp_path / str(wanted))(features=wanted)
        run.begin(1)
        found = pd.read_parquet(run.folder / "rounds/00/images.parquet")
        assert ("features" in found) == ("probabilities" in found) == wanted
        if wanted:
            assert np.array_equal(np.stack(found.features), run.prediction(1).features)
            probabilities = np.stack(found.probabilities)
            assert probabilities.sum(1) == pytest.approx(np.ones(240), abs=1e-5)
            assert [run.classes[place] for place in probabilities.argmax(1)] == found.prediction.tolist()
            assert probabilities.max(1) == pytest.approx(found.probability, rel=1e-5)


def test_pandas_reads_names_numbers_and_missing_labels(table):
    images = pd.read_parquet(DIGITS)
    assert images.shape == (90, 18) and images.label.isna().sum() == 1
    assert images.pseudo_label.iloc[3] == "ape" and images.label.iloc[3] == "zebra"
    assert images.selected.dtype == bool and images.avh.dtype == np.float32 and images.ratio.dtype == np.float64
    assert set(images.domain) == {"photos", "art"}
    wrong = carry_out("pandas-snippet")["wrong"]
    assert wrong.index.tolist() == [row for row in (3, 17, 40, 41, 77) if table.get("selected")[row]] != []


def test_pyarrow_reads_single_columns_and_the_order_of_the_classes(table):
    found = pyarrow.parquet.read_table(DIGITS, columns=["path", "features"])
    assert found.column_names == ["path", "features"] and found["path"].to_pylist() == table.paths
    assert found["features"].to_pylist()[7] == table.get("features")[7].tolist()
    facts = json.loads(pyarrow.parquet.read_schema(DIGITS).metadata[b"uda"])
    assert facts["classes"] == list(CLASSES) and facts["selector"] == "softmax"


def test_hugging_face_datasets_have_the_types_and_values(table, in_folder, monkeypatch):
    pytest.importorskip("datasets", reason="needs the extra test")
    for name, value in {"HF_HOME": str(in_folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", in_folder / "hf")
    names = carry_out("hugging-face")
    images = names["images"]
    assert len(images) == 90
    kinds = {name: images.features[name] for name in images.column_names}
    assert kinds["selected"].dtype == "bool" and kinds["pseudo_label"].dtype == "string"
    assert (kinds["score"].dtype, kinds["ratio"].dtype) == ("float32", "float64")
    assert kinds["features"].length == 5 and kinds["probabilities"].length == 4
    assert images[3]["pseudo_label"] == "ape" and images[89]["label"] is None
    assert images[7]["features"] == table.get("features")[7].tolist()
    assert names["hard"]["avh"] == sorted(table.get("avh").tolist(), reverse=True)[:10]
    encoded = images.class_encode_column("prediction")
    assert encoded.features["prediction"].names == ["ape", "bee", "zebra"]


def test_cleanlab_finds_the_wrong_pseudo_labels(table):
    pytest.importorskip("cleanlab", reason="needs the extra test")
    names = carry_out("cleanlab")
    assert names["suspects"].index.tolist() == [3, 17, 40, 41, 77]
    assert names["probabilities"].shape == (90, 3), "the class that never occurs is left out"


def test_cleanlab_finds_them_by_features_alone(table):
    pytest.importorskip("cleanlab", reason="needs the extra test")
    from cleanlab import Datalab

    images = pd.read_parquet(DIGITS)
    lab = Datalab({"label": images.pseudo_label.tolist()}, label_name="label", verbosity=0)
    lab.find_issues(features=np.stack(images.features), issue_types={"label": {}})
    assert np.flatnonzero(lab.get_issues("label").is_label_issue).tolist() == [3, 17, 40, 41, 77]


class FakeSample(dict):
    """What a snippet does with a sample of FiftyOne."""

    def __init__(self, filepath, tags):
        super().__init__()
        self.filepath, self.tags = filepath, tags


def test_the_loop_for_fiftyone_gives_it_every_image(table, in_folder, monkeypatch):
    """FiftyOne is a large package, so a stand-in records what it gets."""
    samples, shown = [], []
    fake = types.ModuleType("fiftyone")
    fake.Sample = FakeSample
    fake.Classification = lambda label: ("classification", label)
    fake.Dataset = lambda name: types.SimpleNamespace(name=name, add_sample=samples.append)
    fake.launch_app = shown.append
    monkeypatch.setitem(sys.modules, "fiftyone", fake)
    table.write(in_folder / "runs/own/seed0/rounds/09/images.parquet")
    assert len(snippet("fiftyone").splitlines()) <= 15
    names = carry_out("fiftyone")
    assert shown == [names["dataset"]] and len(samples) == 90
    assert samples[3].filepath == "photos/zebra/03.png"
    assert samples[3]["pseudo_label"] == ("classification", "ape") and samples[3]["label"] == (
        "classification",
        "zebra",
    )
    assert "label" not in samples[89] and samples[89]["prediction"] == ("classification", "bee")
    assert [sample.tags for sample in samples] == [["selected"] if one else [] for one in table.get("selected")]
    assert samples[5]["avh"] == table.get("avh")[5] and samples[5]["ratio"] == table.get("ratio")[5]
