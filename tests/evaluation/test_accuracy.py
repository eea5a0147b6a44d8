import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

import uda.evaluation.accuracy as accuracy_module
from uda.data.domains import TargetLabels
from uda.evaluation.accuracy import Prediction, accuracy, selection_metrics
from uda.selection.thresholds import PseudoLabels

CLASSES = ("ape", "bee", "cat")


def predict(logits, features=None, weight=None):
    """A prediction from logits; features and weight where a test looks at them."""
    logits = np.asarray(logits, dtype=np.float32)
    features = np.ones((len(logits), 2)) if features is None else features
    weight = np.ones((logits.shape[1], 2)) if weight is None else weight
    return Prediction(np.asarray(features, dtype=np.float32), logits, np.asarray(weight, dtype=np.float32))


def one_hot_logits(predicted, classes=3):
    return 5.0 * np.eye(classes)[predicted]


def choice(labels, selected, thresholds=(0.5, 0.25, np.inf)):
    labels = np.asarray(labels)
    selected = np.asarray(selected, dtype=bool)
    flipped = np.zeros(len(labels), bool)
    return PseudoLabels(labels, np.ones(len(labels)), selected.astype(float), selected, flipped, np.asarray(thresholds))


def labels_of(*labels):
    return TargetLabels(np.array(labels, dtype=np.int64))


def test_class_mean_weighs_classes_overall_weighs_images():
    """ape 3 of 4, bee 0 of 1: class mean (.75 + 0)/2 = .375, overall 3/5 = .6; cat has no image and no say."""
    result = accuracy(predict(one_hot_logits([0, 0, 0, 1, 2])), labels_of(0, 0, 0, 0, 1), CLASSES)
    assert result.class_mean == pytest.approx(0.375, abs=1e-15)
    assert result.overall == pytest.approx(0.6, abs=1e-15)
    assert result.per_class == {"ape": 0.75, "bee": 0.0, "cat": None}
    assert result.confusion.tolist() == [[3, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_accuracy_agrees_with_scikit_learn():
    rng = np.random.default_rng(5)
    labels, predicted = rng.integers(0, 7, 300), rng.integers(0, 7, 300)
    result = accuracy(predict(one_hot_logits(predicted, 7)), TargetLabels(labels), [f"c{index}" for index in range(7)])
    assert result.confusion.tolist() == confusion_matrix(labels, predicted).tolist()
    assert result.class_mean == pytest.approx(balanced_accuracy_score(labels, predicted), rel=1e-12)


def test_images_without_a_label_are_left_out():
    result = accuracy(predict(one_hot_logits([0, 1, 2, 2])), labels_of(0, -1, 2, -1), CLASSES)
    assert (result.class_mean, result.overall) == (1.0, 1.0)
    assert result.confusion.sum() == 2


def test_no_label_at_all_is_an_error():
    with pytest.raises(ValueError, match="no target image has a label"):
        accuracy(predict(one_hot_logits([0, 1])), labels_of(-1, -1), CLASSES)


def test_labels_of_other_images_are_an_error():
    with pytest.raises(ValueError, match="3 target labels for a prediction of 2 images"):
        accuracy(predict(one_hot_logits([0, 1])), labels_of(0, 1, 2), CLASSES)


def test_calibration_and_likelihood_by_hand(monkeypatch):
    """Logits log(p): p = .9 (right), .9 (wrong), .6 (right).

    Bin of .9: accuracy 1/2, confidence .9, gap .4, weight 2/3. Bin of .6: gap .4, weight 1/3. ECE = .4.
    NLL = -(log .9 + log .05 + log .6) / 3. Chunks of one row give the same.
    """
    monkeypatch.setattr(accuracy_module, "CHUNK_ENTRIES", 1)
    logits = np.log([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.2, 0.6, 0.2]])
    result = accuracy(predict(logits), labels_of(0, 1, 1), CLASSES)
    assert result.ece == pytest.approx(0.4, abs=1e-6)
    assert result.nll == pytest.approx(-(math.log(0.9) + math.log(0.05) + math.log(0.6)) / 3, abs=1e-6)


def test_likelihood_of_a_hopeless_image_stays_finite():
    """exp(-2000) is 0 in floating point; its logarithm by way of log-softmax is not -inf."""
    result = accuracy(predict([[0.0, 2000.0, 0.0]]), labels_of(0), CLASSES)
    assert result.nll == 2000.0


def test_selection_metrics_by_hand():
    """Four images, three chosen as ape, ape, bee; the truth ape, bee, bee: 2 of 3 right.

    Features lie along the axes, weights along x, y and -x: angles of image 0 are 0, pi/2, pi, so AVC of ape is
    pi / (pi + pi/2 + 0) = 2/3 and AVH 0. Image 1 (along y, chosen as ape): angles pi/2, 0, pi/2: AVC of ape
    (pi/2) / (2 pi) = 1/4, AVH of ape (pi/2) / pi = 1/2. Image 2 (along y, chosen as bee): AVC 1/2, AVH 0.
    """
    prediction = predict(
        np.log([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]]),
        features=[[2, 0], [0, 3], [0, 4], [9, 9]],
        weight=[[1, 0], [0, 5], [-2, 0]],
    )
    pseudo = choice([0, 0, 1, 2], [1, 1, 1, 0])
    reference = choice([0, 1, 1, 2], [0, 1, 1, 1])
    metrics = selection_metrics(pseudo, prediction, reference, labels_of(0, 1, 1, 0), CLASSES)
    assert metrics["selected"] == 3
    assert metrics["selected_per_class"] == {"ape": 2, "bee": 1, "cat": 0}
    assert metrics["lambda"] == {"ape": 0.5, "bee": 0.25, "cat": None}
    assert metrics["tp_rate"] == pytest.approx(2 / 3)
    assert metrics["tp_rate_per_class"] == {"ape": 0.5, "bee": 1.0, "cat": None}
    assert metrics["avc"] == pytest.approx((2 / 3 + 1 / 4 + 1 / 2) / 3, abs=1e-6)
    assert metrics["avh"] == pytest.approx((0 + 1 / 2 + 0) / 3, abs=1e-6)
    assert metrics["confidence"] == pytest.approx((0.5 + 0.8 + 0.8) / 3, abs=1e-6)
    assert metrics["feature_norm"] == pytest.approx((2 + 3 + 4) / 3)
    assert metrics["overlap"] == {
        "both": 2,
        "both_other_label": 1,
        "only_selector": 1,
        "only_softmax": 1,
        "jaccard": 0.5,
        "tp_rate_only_selector": 1.0,
        "tp_rate_only_softmax": 0.0,
    }


def test_oracle_figures_need_labels_and_the_others_do_not():
    prediction = predict(one_hot_logits([0, 1]))
    pseudo = choice([0, 1], [1, 1])
    blind = selection_metrics(pseudo, prediction, pseudo, None, CLASSES)
    seeing = selection_metrics(pseudo, prediction, pseudo, labels_of(0, 0), CLASSES)
    assert blind["tp_rate"] is None
    assert blind["overlap"]["tp_rate_only_selector"] is None
    assert seeing["tp_rate"] == 0.5
    for name in ("selected", "selected_per_class", "lambda", "avh", "avc", "confidence", "feature_norm"):
        assert blind[name] == seeing[name]


def test_images_without_label_do_not_count_in_the_tp_rate():
    pseudo = choice([0, 0, 1], [1, 1, 1])
    metrics = selection_metrics(pseudo, predict(one_hot_logits([0, 0, 1])), pseudo, labels_of(0, -1, -1), CLASSES)
    assert metrics["tp_rate"] == 1.0
    assert metrics["tp_rate_per_class"] == {"ape": 1.0, "bee": None, "cat": None}


def test_an_empty_choice_has_no_means():
    nothing = choice([0, 1], [0, 0], [np.inf] * 3)
    metrics = selection_metrics(nothing, predict(one_hot_logits([0, 1])), nothing, labels_of(0, 1), CLASSES)
    assert metrics["selected"] == 0
    assert [metrics[name] for name in ("tp_rate", "avh", "avc", "confidence", "feature_norm")] == [None] * 5
    assert metrics["overlap"]["jaccard"] is None


def test_inner_metrics_do_not_depend_on_the_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    prediction = predict(rng.normal(size=(50, 3)), rng.normal(size=(50, 4)), rng.normal(size=(3, 4)))
    pseudo = choice(rng.integers(0, 3, 50), rng.random(50) < 0.6)
    whole = selection_metrics(pseudo, prediction, pseudo, None, CLASSES)
    monkeypatch.setattr(accuracy_module, "CHUNK_ENTRIES", 30)
    parts = selection_metrics(pseudo, prediction, pseudo, None, CLASSES)
    for name in ("avh", "avc", "confidence", "feature_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-6)
