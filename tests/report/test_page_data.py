"""The data of the page's script, by hand."""

import base64
import json

import numpy as np
import pytest

from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS
from uda.report import page_data
from uda.report.image_table import ImageTable
from uda.report.page_data import (
    State,
    as_script,
    cube,
    evenly,
    histograms,
    map_data,
    pictures_data,
    states_of,
    truths_of,
)

ABC = ("a", "b", "c")


def table(**columns):
    arrays = {name: np.array(values) for name, values in columns.items()}
    count = len(next(iter(arrays.values())))
    return ImageTable(ABC, [f"{row}.png" for row in range(count)], np.zeros(count, int), ("photos",), arrays)


def predictions(*labels):
    """A table of a model that predicts these classes: image n has the probability 0.9 - n / 10 and the AVH n / 10."""
    steps = np.arange(len(labels)) / 10
    return table(prediction=labels, probability=0.9 - steps, avh=steps)


def choice(labels, selected, softmax, after):
    """A table of a round that labels images so and predicts `after`; image n has the ratio 2 - n."""
    count = len(labels)
    columns = predictions(*after).columns
    return table(
        pseudo_label=labels,
        softmax_label=labels,
        selected=np.array(selected, bool),
        softmax_selected=np.array(softmax, bool),
        ratio=2.0 - np.arange(count),
        score=1.0 - np.arange(count) / count,
        **columns,
    )


def state(label, **columns):
    count = len(label)
    zeros = {name: np.zeros(count) for name in ("sureness", "hardness")}
    return State("s", "S", np.array(label), **{**zeros, **columns})


# States


def test_a_run_of_two_rounds_has_two_choices_and_the_last_model():
    """What changed: nothing in the first round, the images 1 and 2 in the second one, image 0 in the last model."""
    first = choice([0, 1, 2], [1, 0, 0], [0, 1, 0], after=[0, 2, 2])
    second = choice([0, 2, 1], [1, 1, 0], [1, 1, 0], after=[1, 2, 1])
    found = states_of(predictions(0, 1, 2), {0: first, 1: second}, "round")
    assert [one.name for one in found] == ["round 0", "round 1", "final"]
    assert found[0].title == "Pseudo-labels of round 0, by the source model"
    assert found[1].title == "Pseudo-labels of round 1, by the model of round 0"
    assert [one.label.tolist() for one in found] == [[0, 1, 2], [0, 2, 1], [1, 2, 1]]
    assert [None if one.chosen is None else one.chosen.tolist() for one in found] == [[2, 1, 0], [3, 3, 0], None]
    assert found[0].flipped is None
    assert found[1].flipped.tolist() == [False, True, True] and found[2].flipped.tolist() == [True, False, False]
    assert found[0].sureness.tolist() == [2, 1, 0] and found[2].sureness == pytest.approx([0.9, 0.8, 0.7])


def test_a_pseudo_label_is_as_hard_as_for_the_model_that_gave_it():
    """That is the model before the round. The table of a round has the angles after it."""
    source, first, second = (
        predictions(0, 1),
        choice([0, 1], [1, 0], [1, 0], [0, 1]),
        choice([0, 1], [1, 0], [1, 0], [0, 1]),
    )
    for number, one in enumerate((source, first, second)):
        one.columns["avh"] = np.full(2, float(number))
    assert [one.hardness[0] for one in states_of(source, {0: first, 1: second}, "round")] == [0, 1, 2]


def test_a_run_without_rounds_has_the_predictions_of_its_reports():
    reports = {number: predictions(number, 0) for number in range(3)}
    found = states_of(predictions(2, 0), reports, "report")
    assert [one.name for one in found] == ["source", "report 0", "report 1", "final"]
    assert [one.label[0] for one in found] == [2, 0, 1, 2] and {one.chosen for one in found} == {None}


def test_a_source_model_alone_and_nothing_at_all():
    assert [one.name for one in states_of(predictions(0), {}, "round")] == ["source"]
    assert states_of(None, {}, "round") == []


def test_a_missing_round_is_left_out():
    rounds = {number: choice([number], [1], [1], after=[2]) for number in (0, 2)}
    assert [one.name for one in states_of(None, rounds, "round")] == ["round 0", "round 2", "final"]


def test_of_many_rounds_some_are_shown_with_the_first_and_the_last():
    rounds = {number: choice([number % 3], [1], [1], after=[0]) for number in range(100)}
    found = states_of(None, rounds, "round")
    assert len(found) == page_data.MOST_STATES
    assert (found[0].name, found[-1].name) == ("round 0", "final")
    for one in found[1:-1]:
        assert one.flipped.tolist() == [True], "against the round before it, whether or not that is shown"


@pytest.mark.parametrize(
    ("count", "most", "places"),
    [(0, 3, []), (3, 3, [0, 1, 2]), (5, 3, [0, 2, 4]), (10, 2, [0, 9]), (7, 4, [0, 2, 4, 6])],
)
def test_places_are_even_with_both_ends(count, most, places):
    assert evenly(count, most) == places


# Counts


def test_each_image_is_counted_under_its_key():
    """Three classes, so 5 truths. Image 0: label 2, truth 1, chosen by both, flipped: ((2 * 5 + 1) * 4 + 3) * 2 + 1."""
    truth = np.array([1, UNKNOWN_CLASS, NO_LABEL, 1])
    one = state([2, 0, 1, 2], chosen=np.array([3, 0, 2, 3]), flipped=np.array([True, False, False, True]))
    keys = [((2 * 5 + 1) * 4 + 3) * 2 + 1, ((0 * 5 + 3) * 4 + 0) * 2, ((1 * 5 + 4) * 4 + 2) * 2]
    assert keys == [95, 24, 76]
    assert cube(one, ABC, truth) == [24, 1, 76, 1, 95, 2]


def test_without_labels_there_is_one_truth():
    assert truths_of(ABC, None) == (["not labelled"], None)
    assert cube(state([2, 0, 2]), ABC, None) == [0, 1, 16, 2]


def test_with_many_classes_the_truth_says_right_or_wrong_alone():
    """Label 1 of 41 classes and 3 truths: right 1 * 3 + 0, wrong 1 * 3 + 1, not labelled 1 * 3 + 2."""
    classes = [f"class {number}" for number in range(41)]
    truth = np.array([1, 0, NO_LABEL, UNKNOWN_CLASS])
    assert truths_of(classes, truth) == (["right", "wrong", "not labelled"], None)
    assert cube(state([1, 1, 1, 1]), classes, truth) == [24, 1, 32, 2, 40, 1]


# Histograms


def test_histograms_count_the_scores_of_each_pseudo_label(monkeypatch):
    """Scores from 0 to 4 in 4 bins of width 1. Class a has the scores 0 (right), 1 (wrong), 4 (no label)."""
    monkeypatch.setattr(page_data, "BINS", 4)
    one = choice([0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0], after=[0, 0, 0, 0])
    columns = {**one.columns, "score": np.array([0.0, 1.0, 4.0, 3.5]), "label": np.array([0, 2, NO_LABEL, 1])}
    record = {"lambda": {"a": 2.123456789, "b": None}, "tp_rate_per_class": {"a": 0.5}, "avc_per_class": {"b": 0.25}}
    found = histograms({3: table(**columns)}, {3: record}, ABC)
    assert found["bins"] == 4
    (only,) = found["rounds"]
    assert (only["round"], only["range"]) == (3, [0, 4])
    first, second, third = only["classes"]
    assert (first["right"], first["wrong"], first["unknown"]) == ([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1])
    assert (first["images"], first["selected"], first["lambda"], first["tp_rate"]) == (3, 1, 2.1235, 0.5)
    assert (second["right"], second["lambda"], second["avc"]) == ([0, 0, 0, 1], None, 0.25)
    assert (third["images"], third["selected"], third["right"]) == (0, 0, [0, 0, 0, 0])


def test_without_labels_nothing_is_right_or_wrong():
    found = histograms({0: choice([0, 1], [1, 1], [1, 1], after=[0, 1])}, {}, ABC)
    for one in found["rounds"][0]["classes"]:
        assert one["right"] is one["wrong"] is one["tp_rate"] is None
    assert sum(sum(one["unknown"]) for one in found["rounds"][0]["classes"]) == 2


def test_runs_that_choose_nothing_have_no_histograms():
    assert histograms({0: predictions(0, 1)}, {}, ABC) is None


@pytest.mark.parametrize("scores", [[0.5, 0.5], [0.9999996, 0.9999998]])
def test_scores_that_are_equal_in_five_digits_still_have_a_range(scores):
    one = choice([0, 0], [1, 1], [1, 1], after=[0, 0])
    one.columns["score"] = np.array(scores)
    (only,) = histograms({0: one}, {}, ABC)["rounds"]
    assert sum(only["classes"][0]["unknown"]) == 2 and only["range"][0] < only["range"][1]


def test_histograms_of_many_classes_and_rounds_are_bounded(monkeypatch):
    monkeypatch.setattr(page_data, "MOST_NUMBERS", 12 * 3 * 2 * 4)  # four rounds of three classes with 12 bins
    rounds = {number: choice([0, 1], [1, 1], [1, 1], after=[0, 1]) for number in range(9)}
    found = histograms(rounds, {}, ABC)
    assert found["bins"] == 12 and [one["round"] for one in found["rounds"]] == [0, 3, 5, 8]


# Pictures, map, script


def test_pictures_have_their_place_in_every_state():
    first = choice([0, 1, 2], [1, 0, 0], [0, 1, 0], after=[0, 2, 2])
    states = states_of(predictions(0, 1, 2), {0: first}, "round")
    truth = np.array([NO_LABEL, UNKNOWN_CLASS, 2])
    found = pictures_data({2: b"two", 0: b"zero"}, states, first.paths, ABC, truth)
    assert [base64.b64decode(jpeg) for jpeg in found["jpegs"]] == [b"two", b"zero"]
    assert (found["rows"], found["paths"], found["truth"]) == ([2, 0], ["2.png", "0.png"], [2, 4])
    chosen, final = found["states"]
    assert (chosen["label"], chosen["chosen"], chosen["threshold_ratio"]) == ([2, 0], [0, 2], [0, 2])
    assert (final["label"], final["threshold_ratio"], final["score"]) == ([2, 0], None, [0.7, 0.9])
    assert final["flipped"] == [0, 0] and final["avh"] == [0.2, 0]


def test_pictures_of_many_classes_have_the_number_of_their_class():
    classes = tuple(f"class {number}" for number in range(41))
    states = states_of(predictions(0, 1, 2), {}, "round")
    truth = np.array([40, NO_LABEL, UNKNOWN_CLASS])
    assert pictures_data(dict.fromkeys(range(3), b""), states, "abc", classes, truth)["truth"] == [40, -1, -2]
    assert pictures_data(dict.fromkeys(range(3), b""), states, "abc", classes, None)["truth"] == [0, 0, 0]


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind).tolist()


def test_a_map_has_points_of_both_domains():
    """Two source images of class 1 and 0, then target images of the rows 5 and 6, of which one has an unknown label."""
    columns = {
        "label": np.array([1, 0, 2, NO_LABEL]),
        "prediction": np.array([0, 0, 1, 2]),
        "row": np.array([-1, -1, 5, 6]),
        "selected": np.array([False, False, True, False]),
        "x": np.array([0.0, 1.0, 0.5, 1.0]),
        "y": np.array([-1.0, 1.0, 0.0, 1.0]),
    }
    domain = np.array([0, 0, 1, 1])
    points = ImageTable(ABC, list("pqrs"), domain, ("drawn", "photos"), columns, {"projection": "pca"})
    found = map_data(points)
    assert (found["method"], found["count"]) == ("PCA", 4)
    assert unpacked(found["x"], "<u2") == [0, 65535, 32768, 65535]
    assert unpacked(found["y"], "<u2") == [0, 65535, 32768, 65535]
    assert unpacked(found["label"], "<u2") == [1, 0, 1, 2], "labels of the source, predictions of the target"
    assert unpacked(found["truth"], "<u2") == [1, 0, 2, 65535]
    assert unpacked(found["row"], "<i4") == [-1, -1, 5, 6]
    assert unpacked(found["chosen"], "u1") == [2, 2, 1, 0]
    assert unpacked(found["domain"], "u1") == [0, 0, 1, 1]
    assert found["domains"] == [{"name": "drawn", "target": False}, {"name": "photos", "target": True}]
    points.columns["label"][2:] = NO_LABEL
    assert map_data(points)["truth"] is None, "no label of the target is known"


def test_no_text_can_end_the_script():
    text = as_script({"name": "</script><!-- \u2028 é"})
    assert "<" not in text and "\u2028" not in text and "é" in text
    assert json.loads(text) == {"name": "</script><!-- \u2028 é"}


def test_numbers_that_json_lacks_become_nothing():
    assert page_data.rounded(1.23456789) == 1.2346 and page_data.rounded(None) is None
    assert page_data.rounded(float("nan")) is page_data.rounded(float("inf")) is None
