import csv
import json
import os

import numpy as np
import pytest

from uda.adaptation.terminal import summary_lines
from uda.core.files import OutputError
from uda.core.plain_text import WIDTH


def strict(path):
    """The JSON in a file; NaN and infinities, which are no JSON, fail."""

    def refuse(word):
        raise AssertionError(f"{path}: {word} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_results_hold_the_contract(played_run):
    run, results = played_run, played_run.results
    assert results == strict(run.folder / "results.json")
    assert set(results) >= {
        "config", "method", "selector", "seed", "source_only", "final", "label_free_choice", "oracle_best", "rounds",
        "seconds",
    }  # fmt: skip
    assert (results["config"], results["method"], results["selector"], results["seed"]) == (
        "toy", "self_training", "avc", 0,
    )  # fmt: skip
    assert set(results["rounds"][0]) >= {
        "round", "portion", "selected", "selected_per_class", "lambda", "tp_rate", "avh", "avc", "confidence",
        "feature_norm", "class_mean", "overall", "seconds",
    }  # fmt: skip
    assert not {"gallery", "accuracy"} & set(results["rounds"][0])
    assert [entry["round"] for entry in results["rounds"]] == [0, 1, 2]
    assert set(results["final"]["per_class"]) == set(run.classes)
    assert results["seconds"] == 123.4


def test_final_is_the_last_round_and_source_only_the_source_model(played_run):
    run, results = played_run, played_run.results
    for name, step in (("source_only", 0), ("final", 3)):
        expected = run.accuracy(step)
        assert results[name]["class_mean"] == expected.class_mean
        assert results[name]["overall"] == expected.overall
        assert results[name]["per_class"] == expected.per_class


def test_choices_stand_under_their_own_names(make_run):
    """Four rounds whose validator likes round 2 and whose oracle best is round 1, by hand; final is round 3."""
    run = make_run(page=False)
    report = run.report()
    run.source(report)
    for index, (class_mean, score) in enumerate([(0.5, 0.1), (0.9, 0.2), (0.7, 0.8), (0.6, float("nan"))]):
        record = run.record(index)
        object.__setattr__(record.accuracy, "class_mean", class_mean)
        record.validators["im"] = score
        report.round(record)
    results = report.finish(1.0)
    assert (results["label_free_choice"]["round"], results["label_free_choice"]["class_mean"]) == (2, 0.7)
    assert (results["oracle_best"]["round"], results["oracle_best"]["class_mean"]) == (1, 0.9)
    assert results["final"]["class_mean"] == 0.6
    assert results["rounds"][3]["validators"]["im"] is None


def test_pseudo_labels_of_every_image_to_the_last_digit(played_run):
    run, record = played_run, played_run.record(0)
    with (run.folder / "rounds/00/pseudo_labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "label", "class", "score", "ratio", "selected"]
    assert [row["image"] for row in rows] == list(run.images.ids)
    assert [int(row["label"]) for row in rows] == record.labels.pseudo.labels.tolist()
    assert [row["class"] for row in rows] == [run.classes[label] for label in record.labels.pseudo.labels]
    assert [row["selected"] == "1" for row in rows] == record.labels.pseudo.selected.tolist()
    assert {row["selected"] for row in rows} == {"0", "1"}
    scores = np.array([float(row["score"]) for row in rows])
    assert np.array_equal(scores.astype(np.float32), record.labels.pseudo.scores.astype(np.float32))


def test_round_report_holds_what_the_run_measured(played_run):
    report = strict(played_run.folder / "rounds/00/report.json")
    record = played_run.record(0)
    assert report["tp_rate"] == record.labels.metrics["tp_rate"]
    assert report["overlap"] == record.labels.metrics["overlap"]
    assert report["accuracy"]["confusion"] == record.accuracy.confusion.tolist()
    assert report["validators"] == record.validators
    assert (report["portion"], report["loss"], report["seconds"]) == (0.2, 1.5, 12.5)


def test_a_portion_that_chooses_nothing_gives_null_not_nan(make_run):
    run = make_run(page=True)
    report = run.report()
    run.source(report)
    report.round(run.record(0, portion=0.001))
    results = report.finish(1.0)
    entry = strict(run.folder / "results.json")["rounds"][0]
    assert entry["selected"] == 0
    assert entry["lambda"] == dict.fromkeys(run.classes)
    assert [entry[name] for name in ("tp_rate", "avh", "avc", "confidence", "feature_norm")] == [None] * 5
    assert "No image was selected in round 0" in (run.folder / "report.html").read_text(encoding="utf-8")
    assert results["final"]["class_mean"] == run.accuracy(1).class_mean


def test_source_only_has_no_rounds_and_final_is_the_source(make_run):
    run = make_run(method="source_only", page=False)
    results = run.play(0)
    assert results["rounds"] == []
    assert results["selector"] is None
    assert results["final"] == results["source_only"]
    assert results["final"]["class_mean"] == run.accuracy(0).class_mean
    assert results["label_free_choice"]["round"] is None
    assert results["oracle_best"] == {"round": None, "class_mean": None}


def test_without_target_labels_oracle_figures_are_null(make_run):
    run = make_run(labelled=False, page=False)
    results = run.play(2)
    assert results["source_only"]["class_mean"] is results["final"]["class_mean"] is None
    assert results["final"]["per_class"] == {}
    assert results["oracle_best"] == {"round": None, "class_mean": None}
    assert results["label_free_choice"]["round"] in (0, 1)
    assert results["label_free_choice"]["class_mean"] is None
    for entry in results["rounds"]:
        assert entry["tp_rate"] is entry["class_mean"] is entry["overall"] is None
        assert entry["avc"] > 0
    assert "no labels" in summary_lines(results)[0]


def test_a_resumed_report_equals_an_uninterrupted_one(make_run):
    run = make_run(page=True)
    whole = run.play(3)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for name in ("results.json", "report.html"):
        (run.folder / name).unlink()
    run.cut(1)
    resumed = run.report()
    for index in (1, 2):
        resumed.round(run.record(index))
    assert resumed.finish(123.4) == whole
    assert (run.folder / "report.html").read_text(encoding="utf-8") == page


def test_an_interrupted_write_leaves_the_old_round(make_run, monkeypatch):
    """The power fails between writing and renaming: the former report is still there, whole, and no scrap is left."""
    run = make_run()
    report = run.report()
    run.source(report)
    report.round(run.record(0))
    before = (run.folder / "rounds/00/report.json").read_bytes()

    def fail(*_):
        raise OSError("no power")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fail)
        with pytest.raises(OutputError, match="no power"):
            report.round(run.record(0, portion=0.9))
    assert (run.folder / "rounds/00/report.json").read_bytes() == before
    names = ["images.parquet", "pseudo_labels.csv", "report.json"]
    assert sorted(path.name for path in (run.folder / "rounds/00").iterdir()) == names


def test_the_round_is_whole_only_after_its_pseudo_labels(make_run, monkeypatch):
    """report.json says that a round is done, so it must be the last file: without the CSV there is none."""
    run = make_run()
    report = run.report()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("uda.adaptation.report.write_pseudo_labels", fail)
    with pytest.raises(OSError, match="disk full"):
        report.round(run.record(0))
    assert report.records.reports() == [] and not (run.folder / "rounds/00/report.json").exists()


def test_terminal_table_is_aligned_and_says_oracle(played_run):
    run, results = played_run, played_run.results
    oracle, titles, rule, source, *_ = run.lines
    assert rule == "-" * len(titles)
    assert len(source) <= len(titles)
    for title, labelled in (("TP rate", True), ("class mean", True), ("overall", True), ("AVC", False)):
        end = titles.index(title) + len(title)
        assert (oracle[end - 6 : end] == "oracle") == labelled
    row = next(line for line in run.lines if line.split()[:1] == ["2"])
    final = f"{100 * results['final']['class_mean']:.2f}"
    assert row[: titles.index("class mean") + len("class mean")].endswith(f" {final}")
    change = 100 * (results["final"]["class_mean"] - results["source_only"]["class_mean"])
    assert f"{change:+.2f}" in row
    assert any(line.strip().startswith("% by class (oracle) ape: ") for line in run.lines)


@pytest.mark.parametrize("count", [2, 12, 60])
def test_terminal_lines_fit_into_80_columns(make_run, count):
    run = make_run(classes=[f"class with a long name {index}" for index in range(count)], images=600)
    run.begin(4)
    assert len(run.lines) > 12
    assert max(len(line) for line in run.lines) <= WIDTH


def test_the_header_comes_again_after_some_rows(make_run):
    run = make_run()
    report = run.report()
    for index in range(12):
        report.round(run.record(index))
    assert sum("class mean" in line and "portion" in line for line in run.lines) == 2


def test_images_of_a_round_have_what_it_chose_and_what_its_model_predicts(played_run):
    """images.parquet, as its readers get it: the choice before the round, the prediction and its angles after it."""
    import pyarrow.parquet

    run, record = played_run, played_run.record(1)
    table = pyarrow.parquet.read_table(run.folder / "rounds/01/images.parquet").to_pydict()
    names = np.array(run.classes)
    assert table["path"] == run.images.ids and set(table["domain"]) == {"written"}
    assert table["label"] == names[run.labels].tolist()
    pseudo, reference, after = record.labels.pseudo, record.labels.reference, run.prediction(2)
    assert table["pseudo_label"] == names[pseudo.labels].tolist()
    assert table["softmax_label"] == names[reference.labels].tolist()
    assert table["selected"] == pseudo.selected.tolist() and table["softmax_selected"] == reference.selected.tolist()
    assert table["score"] == pytest.approx(pseudo.scores) and table["ratio"] == pytest.approx(pseudo.ratios)
    assert table["prediction"] == names[after.logits.argmax(1)].tolist()
    share = np.exp(after.logits) / np.exp(after.logits).sum(1, keepdims=True)
    assert table["probability"] == pytest.approx(share.max(1), rel=1e-4)
    assert table["norm"] == pytest.approx(np.linalg.norm(after.features, axis=1), rel=1e-4)
    assert "features" not in table
    source = pyarrow.parquet.read_table(run.folder / "rounds/source/images.parquet").to_pydict()
    assert source["prediction"] == names[run.prediction(0).logits.argmax(1)].tolist() and "selected" not in source


def test_without_labels_images_have_no_column_of_them(make_run):
    import pyarrow.parquet

    run = make_run(labelled=False)
    run.begin(1)
    for name in ("source", "00"):
        assert "label" not in pyarrow.parquet.read_schema(run.folder / f"rounds/{name}/images.parquet").names


def test_tensorboard_holds_scalars_confusion_and_images_once_a_round(make_run, starts_apart):
    """A round that is repeated after an interruption replaces what the first try wrote."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(loggers=["tensorboard"])
    report = run.report()
    run.source(report)
    report.round(run.record(0))
    report.round(run.record(1))
    run.cut(1)
    resumed = run.report()
    resumed.round(run.record(1))
    events = EventAccumulator(str(run.folder / "tb"))
    events.Reload()
    class_mean = events.Scalars("z_oracle/class_mean")
    assert [event.step for event in class_mean] == [-1, 0, 1], "the source model, then rounds as on the page"
    assert class_mean[2].value == pytest.approx(run.accuracy(2).class_mean)
    assert [event.step for event in events.Scalars("selection/avc")] == [0, 1]
    assert {"z_oracle/confusion", "selection/surest_of_each_class"} <= set(events.Tags()["images"])


def test_no_event_files_when_switched_off(make_run):
    run = make_run(loggers=[])
    run.report().round(run.record(0))
    assert not (run.folder / "tb").exists()


def test_the_closing_lines_fit_too(played_run):
    lines = summary_lines(played_run.results)
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].endswith("(oracle):")
    assert f"{100 * played_run.results['final']['class_mean']:.2f}  the last round" in lines[2]
