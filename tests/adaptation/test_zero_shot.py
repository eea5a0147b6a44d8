"""Runs whose classifier begins with class vectors: the untouched network has its row in every report of the run."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import uda
from tests.adaptation.test_page import data_of, table_of, text_of
from tests.adaptation.test_run import cut, cut_after_every_save, read_results, same_end
from tests.adaptation.test_run_without_rounds import SMALL
from tests.forked import forked_job
from tests.generalization.conftest import TINY as THREE_DOMAINS
from tests.in_process import adapt
from tests.report.test_loggers import series
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.report import AdaptationReport
from uda.adaptation.run import AdaptationRun
from uda.adaptation.table import source_recipe
from uda.adaptation.work import work_of
from uda.cli.main import main
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT
from uda.data.domains import TargetLabels
from uda.generalization.config import GeneralizationConfig
from uda.generalization.run import GeneralizationRun
from uda.hardness.dynamics.config import SupervisedConfig
from uda.hardness.dynamics.run import SupervisedRun
from uda.report import figures
from uda.report.run_record import read_run_record
from uda.tables.recipe import digest

CLASSES = ("ant", "bee", "cat", "dog")
VECTORS = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32)
WORDS = ["model.head=null", "model.loss=cosine", "source.optim.lr=0.01"]
#: Adaptation without a source stage.
INTERVALS = ["method=mmd", *SMALL]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A file with the rows in another order than the run's classes."""
    file = tmp_path_factory.mktemp("vectors") / "clip.npz"
    np.savez(file, weight=VECTORS[::-1], classes=CLASSES[::-1])
    return file


@pytest.fixture(scope="module")
def prepared(tiny, vectors):
    """A run that has not begun, by its overrides."""
    return lambda *words: AdaptationRun(AdaptationConfig.load(tiny, [f"model.classifier={vectors}", *WORDS, *words]))


@pytest.fixture(scope="module")
def start(tiny, vectors):
    """Run by the command line: the exit code."""
    return lambda folder, *words: adapt(
        ["--cfg", str(tiny), f"output={folder}", f"model.classifier={vectors}", *WORDS, *words]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, start):
    """A finished run of self-training with its page and event files."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert start(folder, "report.page=true", "report.loggers=[tensorboard]") == 0
    return folder


@pytest.fixture(scope="module")
def by_hand(prepared, tmp_path_factory):
    """Class mean of the network that no training has touched, predicted without a run."""
    run = prepared(f"output={tmp_path_factory.mktemp('never') / 'run'}")
    assert np.array_equal(run.engine.network.weight.detach().numpy(), VECTORS), "in the run's class order"
    assert not run.engine.network.classifier.bias.any()
    predicted = run.predict().whole.logits.argmax(1)
    truth = run.domains.target_labels.reveal()
    return float(np.mean([(predicted[truth == k] == k).mean() for k in range(4)]))


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without figures, because drawing takes most of the time of a page."""
    monkeypatch.setattr(figures, "to_svg", lambda *_: "<svg></svg>")
    for name in ("curves_figure", "compared_figure", "estimates_figure"):
        monkeypatch.setattr(figures, name, lambda *_: None)


# The row


def test_the_untouched_network_stands_beside_the_adapted_one(finished, by_hand):
    results = json.loads((finished / "results.json").read_text())
    assert results["zero_shot"]["class_mean"] == pytest.approx(by_hand)
    assert results["zero_shot"].keys() == results["source_only"].keys() == results["final"].keys()
    assert results["zero_shot"]["per_class"].keys() == set(CLASSES)
    assert results["zero_shot"]["validators"]["im"] > 0
    record = json.loads((finished / "rounds/zero_shot.json").read_text())
    assert record["validators"] == results["zero_shot"]["validators"]
    assert sum(record["predicted_per_class"].values()) == 32


def test_the_terminal_has_the_row_first_and_the_result_too(finished, by_hand):
    log = [line[21:] for line in (finished / "log.txt").read_text().splitlines()]
    rows = [line.split() for line in log if re.match(r" +(zero-shot|source|[01]) ", line)]
    shown = f"{100 * by_hand:.2f}"
    assert rows[0][:2] == ["zero-shot", shown] and [row[0] for row in rows[1:4]] == ["source", "0", "1"]
    assert any(line.startswith("  zero-shot") and f" {shown}  the network before any" in line for line in log)
    assert any(line.startswith("vectors  ") and "clip.npz, the classifier's first weights" in line for line in log)
    head = next(line for line in log if line.lstrip().startswith("round"))
    assert max(map(len, [head, *(line for line in log if line.startswith(" zero"))])) <= 80


def test_the_page_has_row_card_class_column_and_line(finished, by_hand):
    page = (finished / "report.html").read_text(encoding="utf-8")
    shown, text = f"{100 * by_hand:.2f}", text_of(page)
    rounds = table_of(page, "Table of the rounds")
    assert [row[0] for row in rounds] == ["round", "zero-shot", "source", "0", "1"]
    assert rounds[1][1] == shown and rounds[1][2] == "", "a gain is that of a report"
    assert f"Zero-shot oracle {shown} %" in text
    assert "the network before any training, with the class vectors of model.classifier" in text
    classes = table_of(page, "Table of the classes")
    assert [title.split(",")[0] for title in classes[0][1:5]] == ["zero-shot", "source", "now", "change oracle"]
    curve = next(curve for curve in data_of(page)["curves"] if curve["id"] == "accuracy")
    assert [line["name"] for line in curve["baselines"]] == ["zero-shot", "source"]
    assert curve["baselines"][0]["value"] == pytest.approx(100 * by_hand, abs=0.01)
    assert f"zero-shot {100 * by_hand:.1f}" in page, "the drawing for readers without a script"


def test_loggers_get_it_before_the_source_model(finished, by_hand):
    points = series(finished / "tb")
    assert points["z_oracle/class_mean"][0] == pytest.approx((-2, by_hand))
    assert [step for step, _ in points["z_oracle/class_mean"]] == [-2, -1, 0, 1]
    assert points["z_oracle/zero_shot"][-1][1] == pytest.approx(by_hand)


def test_a_page_built_again_and_a_comparison_have_it_too(finished, tiny, tmp_path, by_hand, undrawn):
    """The other run has no class vectors, so its cells are empty."""
    folder, other = shutil.copytree(finished, tmp_path / "run"), tmp_path / "other"
    before = json.loads((folder / "results.json").read_text())
    assert adapt(["--cfg", str(tiny), f"output={other}"]) == 0
    assert main(["report", str(folder)]) == 0
    assert table_of((folder / "report.html").read_text(), "Table of the rounds")[1][0] == "zero-shot"
    assert json.loads((folder / "results.json").read_text()) == before
    assert main(["report", str(folder), str(other), "--out", str(tmp_path / "both.html")]) == 0
    groups = table_of((tmp_path / "both.html").read_text(), "Table of the groups")
    assert groups[0][2].startswith("zero-shot, %") and groups[0][3].startswith("source only, %")
    assert groups[1][2] == f"{100 * by_hand:.2f}" and groups[2][2] == "–"
    assert json.loads((other / "results.json").read_text())["zero_shot"] is None


def test_without_target_labels_its_scores_are_shown(start, tmp_path, capsys, undrawn):
    folders = [tmp_path / name for name in ("run", "other")]
    for folder in folders:
        assert start(folder, "data.target_labels=none", "report.page=true", f"seed={len(folder.name) - 3}") == 0
    out = capsys.readouterr().out
    results = json.loads((folders[0] / "results.json").read_text())
    assert results["zero_shot"]["class_mean"] is None and results["zero_shot"]["per_class"] == {}
    score = f"{results['zero_shot']['validators']['im']:.3f}"
    assert f"score 'im', higher is better: zero-shot {score}, source model " in " ".join(out.split())
    page = (folders[0] / "report.html").read_text()
    rows = table_of(page, "Table of the rounds")
    assert rows[0][1] == "im" and rows[1][:2] == ["zero-shot", score]
    assert "oracle" not in text_of(page)
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "both.html")]) == 0
    groups = table_of((tmp_path / "both.html").read_text(), "Table of the groups")
    assert groups[0][2] == "validator 'im', zero-shot" and groups[0][3] == "validator 'im', last report"


def test_without_a_source_stage_gains_are_measured_from_it(start, tmp_path, capsys, by_hand, undrawn):
    assert start(tmp_path / "run", *INTERVALS, "report.page=true") == 0
    lines = capsys.readouterr().out.splitlines()
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["zero_shot"]["class_mean"] == pytest.approx(by_hand)
    assert results["source_only"]["class_mean"] is None
    first = next(line.split() for line in lines if line.startswith(" " * 9 + "0"))
    assert f"{100 * (results['rounds'][0]['class_mean'] - by_hand):+.2f}" in first
    text = text_of((tmp_path / "run/report.html").read_text())
    assert f"went from {100 * by_hand:.2f} % zero-shot to" in text


def test_the_row_changes_nothing_in_the_training(start, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(AdaptationRun, "_zero_shot", lambda self: None)
    assert start(tmp_path / "run") == 0
    for name in ("final", "label_free", "source"):
        file = f"checkpoints/{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (finished / file).read_bytes()
    without = json.loads((tmp_path / "run/results.json").read_text())
    assert (
        without["zero_shot"] is None
        and without["final"] == json.loads((finished / "results.json").read_text())["final"]
    )


def test_a_run_without_class_vectors_has_no_such_row(tiny, tmp_path, capsys):
    assert adapt(["--cfg", str(tiny), f"output={tmp_path / 'run'}", "self_training.rounds=1"]) == 0
    assert "zero-shot" not in capsys.readouterr().out
    assert not (tmp_path / "run/rounds/zero_shot.json").exists()


def test_from_a_checkpoint_the_row_is_still_that_of_the_vectors(start, finished, tmp_path, by_hand):
    """The source model of another run replaces the vectors. The untouched network is judged before."""
    begun = finished / "checkpoints/source.safetensors"
    assert start(tmp_path / "run", f"source.checkpoint={begun}") == 0
    results, other = read_results(tmp_path / "run"), read_results(finished)
    for name in ("zero_shot", "source_only", "final"):
        assert results[name] == other[name], name
    assert (tmp_path / "run/checkpoints/source.safetensors").read_bytes() == begun.read_bytes()
    assert results["zero_shot"]["class_mean"] == pytest.approx(by_hand)


def test_the_work_counts_its_predict_pass(tiny, vectors):
    config = AdaptationConfig.load(tiny, [f"model.classifier={vectors}", *WORDS])
    assert work_of(config, 32, 40).predicted == 4 * 40
    plain = config.model_copy(update={"model": config.model.model_copy(update={"classifier": None})})
    assert work_of(plain, 32, 40).predicted == 3 * 40


def test_a_dry_run_reads_the_file_and_writes_nothing(start, tmp_path, capsys):
    assert start(tmp_path / "run", "--dry-run") == 0
    assert "clip.npz, the classifier's first weights" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert start(tmp_path / "run", "--dry-run", "model.head=16") == 2
    error = capsys.readouterr().err
    assert "vectors of width 128, but x has width 16" in error and "set model.head=null" in error
    assert error.count("\n") == 1


# Resuming


@pytest.mark.parametrize("words", [[], INTERVALS], ids=["rounds", "intervals"])
def test_a_run_cut_after_every_save_comes_to_the_same_end(start, tmp_path, monkeypatch, words):
    """The untouched network is judged once, also where the run is cut right after it."""
    assert start(tmp_path / "whole", *words) == 0
    calls, report = [], AdaptationReport.zero_shot
    monkeypatch.setattr(AdaptationReport, "zero_shot", lambda self, *args: [calls.append(1), report(self, *args)])
    starts = cut_after_every_save(monkeypatch, tmp_path / "cut", lambda: start(tmp_path / "cut", *words))
    assert starts > 4 and len(calls) == 1
    assert same_end(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("content", [None, "{", '{"class_mean": 1}'])
def test_a_lost_record_is_written_anew(start, finished, tmp_path, monkeypatch, capsys, content):
    folder = tmp_path / "run"
    cut(monkeypatch, lambda: start(folder), saves=3)
    file = folder / "rounds/zero_shot.json"
    file.unlink() if content is None else file.write_text(content)
    assert start(folder) == 0
    assert f"warning: {file} " in capsys.readouterr().out
    assert read_results(folder) == read_results(finished)


@pytest.mark.parametrize("damage", ["record", "results"])
def test_a_finished_folder_whose_parts_disagree_is_told(finished, tmp_path, damage):
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    file = folder / ("rounds/zero_shot.json" if damage == "record" else "results.json")
    content = json.loads(file.read_text())
    (content if damage == "record" else content["zero_shot"])["overall"] = 0.123
    file.write_text(json.dumps(content))
    record = read_run_record(folder)
    assert not record.trusted and "rounds/zero_shot.json" in " ".join(record.problems)


def test_another_file_is_refused_and_the_old_one_resumes_from_anywhere(
    start, finished, vectors, tmp_path, monkeypatch, capsys
):
    """Another content under the same path, no file, and at last the same file at another place."""
    folder, file = tmp_path / "run", tmp_path / "clip.npz"
    shutil.copy(vectors, file)
    own = f"model.classifier={file}"
    cut(monkeypatch, lambda: start(folder, own), saves=2)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    np.savez(file, weight=VECTORS, classes=CLASSES[::-1])
    assert start(folder, own) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"differs in \(there -> here\) class_vectors: 'clip.npz \w{12}' -> 'clip.npz \w{12}'; choose", error
    )
    file.unlink()
    assert start(folder, own) == 2
    assert f"command line: model.classifier: no such file: {file}; give a .npy" in capsys.readouterr().err
    assert start(folder, "model.classifier=null") == 2
    assert re.search(r"class_vectors: 'clip.npz \w{12}' -> ''", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert start(folder) == 0
    assert read_results(folder) == read_results(finished)


def test_a_finished_run_predicts_without_the_file_and_is_not_another_run(start, vectors, tiny, tmp_path, capsys):
    folder, file = tmp_path / "run", tmp_path / "own.npz"
    shutil.copy(vectors, file)
    words = [f"model.classifier={file}", "self_training.rounds=1"]
    assert start(folder, *words) == start(folder, *words) == 0
    assert "is finished" in capsys.readouterr().out
    file.unlink()
    found = uda.load_run(folder).predict(tiny.parent / "photos")
    assert len(found.ids) == 32
    weight = load_file(folder / "checkpoints/final.safetensors")["classifier.weight"]
    assert weight.shape == (4, 128) and not torch.equal(weight, torch.from_numpy(VECTORS))
    np.savez(file, weight=VECTORS)
    assert start(folder, *words) == 2
    assert "class_vectors: 'own.npz " in capsys.readouterr().err


def test_the_recipe_of_a_table_has_the_vectors(tiny, vectors, tmp_path):
    """Rows with other vectors do not share a source model."""
    shutil.copy(vectors, tmp_path / "clip.npz")
    np.savez(tmp_path / "other.npz", weight=VECTORS)
    same, moved, other = (
        AdaptationConfig.load(tiny, [f"model.classifier={file}", *WORDS])
        for file in (vectors, tmp_path / "clip.npz", tmp_path / "other.npz")
    )
    assert digest(same) == digest(moved) != digest(other)
    assert source_recipe(same) == source_recipe(moved) != source_recipe(other)


def test_names_of_other_classes_end_the_run_before_it_begins(start, tmp_path, capsys):
    np.savez(tmp_path / "v.npz", weight=VECTORS, classes=["ant", "bee", "cats", "dog"])
    assert start(tmp_path / "run", f"model.classifier={tmp_path / 'v.npz'}") == 2
    error = capsys.readouterr().err
    assert "v.npz lacks cat, did you mean 'cats'? and has cats, which the run does not have" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_have_the_row_of_one(tiny, vectors, finished, tmp_path):
    words = [f"output={tmp_path / 'run'}", f"model.classifier={vectors}", *WORDS]
    codes, output = forked_job(2, CHECKOUT / "uda" / "__main__.py", "adapt", "--cfg", tiny, *words)
    assert codes == [0, 0], output
    one, two = (read_results(folder)["zero_shot"] for folder in (finished, tmp_path / "run"))
    assert one["per_class"] == two["per_class"]


# Other kinds of run


@pytest.fixture(scope="module")
def three(tmp_path_factory, tiny):
    """A config of domain generalisation on the same images."""
    root = tmp_path_factory.mktemp("three")
    for name, domain in (("drawn", "drawn"), ("photos", "photos"), ("clay", "drawn")):
        shutil.copytree(tiny.parent / domain, root / name)
    (root / "three.yaml").write_text(THREE_DOMAINS.format(root=root))
    return root / "three.yaml"


def test_domain_generalisation_begins_with_them(three, vectors, tmp_path, capsys, monkeypatch):
    """The untouched network has its row in the terminal, the results, the page and TensorBoard."""
    words = [f"model.classifier={vectors}", "method=erm", "model.head=null", "model.loss=cosine"]

    def run_in(folder):
        out = [f"output={folder}", "report.page=true", "report.loggers=[tensorboard]"]
        return GeneralizationRun(GeneralizationConfig.load(three, [*words, *out]))

    run = run_in(tmp_path / "run")
    assert np.array_equal(run.engine.network.weight.detach().numpy(), VECTORS)
    *held_out, unseen = (
        float(np.mean(run.engine.predict_images(images, run.batches.predict_transform).logits.argmax(1) == truth))
        for _, images, labels in map(run.batches.evaluation_images, range(3))
        for truth in [labels.reveal() if isinstance(labels, TargetLabels) else labels]
    )
    results = run.execute()
    assert results["zero_shot"]["overall"] == pytest.approx(unseen)
    assert results["zero_shot"]["validation"] == pytest.approx(np.mean(held_out))
    printed = capsys.readouterr().out
    assert re.search(rf"^ +zero-shot +{100 * np.mean(held_out):.2f} +{100 * unseen:.2f} ", printed, re.M)
    assert re.search(rf"^ +zero-shot +{100 * unseen:.2f}  the network before any training$", printed, re.M)
    page = (tmp_path / "run" / "report.html").read_text()
    assert table_of(page, "Table of the reports")[1][:4] == ["zero-shot", "", "", f"{100 * np.mean(held_out):.2f}"]
    assert series(tmp_path / "run/tb")["z_oracle/overall"][0] == (-2, pytest.approx(unseen))
    starts = cut_after_every_save(monkeypatch, tmp_path / "cut", lambda: run_in(tmp_path / "cut").execute())
    assert starts > 2
    assert read_results(tmp_path / "cut")["zero_shot"] == results["zero_shot"]


def test_a_method_that_draws_new_classifiers_refuses_them(three, vectors, tmp_path):
    words = [f"model.classifier={vectors}", "model.head=null", "method=metareg", f"output={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="'metareg' draws new classifiers, so class vectors would not matter; set it"):
        GeneralizationRun(GeneralizationConfig.load(three, words))


def test_a_supervised_training_begins_with_them(tiny, vectors, tmp_path):
    words = [f"data.train={tiny.parent / 'drawn'}", f"data.test={tiny.parent / 'photos'}", f"output={tmp_path / 'run'}"]
    (tmp_path / "cnn.yaml").write_text(
        "data: {dataset: null, cache: memory}\ntransforms: {size: 24, resize: 28}\nruntime: {device: cpu}\n"
        "model: {backbone: digits_cnn, weights: none, head: null}\n"
    )
    run = SupervisedRun(SupervisedConfig.load(tmp_path / "cnn.yaml", [f"model.classifier={vectors}", *words]))
    assert np.array_equal(run.engine.network.weight.detach().numpy(), VECTORS)
