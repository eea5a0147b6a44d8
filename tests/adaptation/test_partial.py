"""Partial and open targets: which classes count, by hand."""

import numpy as np
import pytest

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.partial import MISSING_BELOW, named_classes, occurring_classes
from uda.adaptation.pseudo_labels import label_target
from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS
from uda.data.domains import TargetLabels
from uda.evaluation.accuracy import accuracy, selection_metrics
from uda.models.network import Prediction
from uda.selection.thresholds import PseudoLabels

CLASSES = ("ant", "bee", "cat", "dog")


def prediction_of(shares, rows=40):
    """Every row predicts these probabilities; features are the logits, the class weights the unit vectors."""
    logits = np.log(np.tile(np.asarray(shares, dtype=np.float32), (rows, 1)))
    return Prediction(np.abs(logits) + 1, logits, np.eye(len(shares), dtype=np.float32))


class TestOccurring:
    def test_by_hand(self):
        """H(.5, .45, .04, .01) = .3466 + .3593 + .1288 + .0461 = .8808 nats: 2.413 classes; .04 * 2.413 = .097 < .2."""
        assert MISSING_BELOW == 0.2
        found = occurring_classes(prediction_of([0.5, 0.45, 0.04, 0.01]).logits)
        assert found.tolist() == [True, True, False, False]

    def test_all_of_a_closed_set_occur(self):
        assert occurring_classes(prediction_of([0.25] * 4).logits).all()
        assert occurring_classes(prediction_of([0.4, 0.3, 0.2, 0.1]).logits).all()

    def test_two_classes_at_least(self):
        """H(.997, .001, .002) = .0223 nats: 1.02 classes; .002 * 1.02 < .2, but it is the second."""
        assert occurring_classes(prediction_of([0.997, 0.001, 0.002]).logits).tolist() == [True, False, True]

    def test_classes_of_labelled_images_are_certain(self):
        logits = prediction_of([0.5, 0.45, 0.04, 0.01]).logits
        assert occurring_classes(logits, certain=[3]).tolist() == [True, True, False, True]

    def test_names(self):
        config = AdaptationConfig.load("digits_avh", ["data.label_sets=partial", "data.target_classes=[dog, bee]"])
        assert named_classes(config, CLASSES).tolist() == [False, True, False, True]
        assert named_classes(AdaptationConfig.load("digits_avh", ["data.label_sets=partial"]), CLASSES) is None
        config = AdaptationConfig.load("digits_avh", ["data.label_sets=partial", "data.target_classes=[dog, bea]"])
        with pytest.raises(UserError, match=r"data.target_classes: 'bea' is not a class .*did you mean 'bee'"):
            named_classes(config, CLASSES)

    def test_names_that_look_equal_are(self):
        composed, parted = "caf\u00e9", "cafe\u0301"
        config = AdaptationConfig.load(
            "digits_avh", ["data.label_sets=partial", f"data.target_classes=[dog, {parted}]"]
        )
        assert named_classes(config, (composed, "dog", "emu")).tolist() == [True, True, False]

    def test_names_need_a_partial_target(self):
        with pytest.raises(UserError, match=r"target_classes: needs label_sets=partial"):
            AdaptationConfig.load("digits_avh", ["data.target_classes=[dog, bee]"])


class TestSelection:
    """Random scores over four classes, of which the target has two."""

    @pytest.fixture
    def prediction(self):
        rng = np.random.default_rng(0)
        features = rng.normal(size=(60, 5)).astype(np.float32)
        weight = rng.normal(size=(4, 5)).astype(np.float32)
        return Prediction(features, features @ weight.T, weight)

    @pytest.mark.parametrize("selector", ["avc", "softmax"])
    def test_labels_no_image_with_a_class_that_the_target_lacks(self, prediction, selector):
        overrides = ["data.label_sets=partial", f"self_training.selector={selector}"]
        has = np.array([False, True, False, True])
        choice = label_target(prediction, AdaptationConfig.load("digits_avh", overrides), 3, 60, Ranks(), has)
        assert set(choice.pseudo.labels.tolist()) == {1, 3} and choice.pseudo.selected.any()
        assert np.isinf(choice.pseudo.thresholds[[0, 2]]).all()
        closed = label_target(prediction, AdaptationConfig.load("digits_avh", overrides[1:]), 3, 60, Ranks())
        assert set(closed.pseudo.labels.tolist()) == {0, 1, 2, 3}

    @pytest.mark.parametrize("selector", ["softmax", "margin", "avc"])
    def test_what_was_sure_of_a_missing_class_lowers_no_threshold(self, selector):
        """Ten sure ants, and ten bees that the model takes for cats, which the target lacks, with near certainty.

        Among ant and bee the latter are bees by exp(2). A threshold of bee by the probability among all three,
        exp(-40), would call every ant a bee.
        """
        logits = np.repeat(np.array([[10, -4, -4], [-2, 0, 40]], dtype=np.float32), 10, axis=0)
        words = [f"self_training.selector={selector}", "data.label_sets=partial"]
        has = np.array([True, True, False])
        prediction = Prediction(logits, logits, np.eye(3, dtype=np.float32))
        choice = label_target(prediction, AdaptationConfig.load("digits_avh", words), 0, 20, Ranks(), has)
        assert choice.pseudo.labels.tolist() == [0] * 10 + [1] * 10

    def test_soft_labels_are_zero_at_missing_classes(self, prediction):
        words = ["data.label_sets=partial", "self_training.selector=softmax", "self_training.regularizer=lrent"]
        has = np.array([False, True, False, True])
        labels = label_target(prediction, AdaptationConfig.load("digits_avh", words), 3, 60, Ranks(), has).labels
        assert labels.shape == (60, 4) and labels.sum(1) == pytest.approx(1)
        assert not labels[:, ~has].any() and (labels[:, has] > 0).all()

    def test_estimates_the_classes_where_none_are_named(self):
        shares = np.full((40, 4), 0.005, dtype=np.float32)
        shares[:20, 0], shares[20:, 1] = 0.9, 0.9
        shares[19, 2] = 4.0  # one image that looks like a class that the rest lacks
        logits = np.log(shares)
        prediction = Prediction(logits - logits.min() + 1, logits, np.eye(4, dtype=np.float32))
        overrides = ["self_training.selector=softmax", "self_training.portion={start: 1.0, max: 1.0}"]
        config = AdaptationConfig.load("digits_avh", overrides)
        partial = label_target(prediction, config, 0, 40, Ranks(), occurring_classes(logits))
        closed = label_target(prediction, config, 0, 40, Ranks())
        assert closed.pseudo.labels[19] == 2 and partial.pseudo.labels[19] == 0


class TestUnknownClasses:
    """Two known images, right and wrong; two of unknown classes; one without a label."""

    truth = np.array([0, 1, UNKNOWN_CLASS, UNKNOWN_CLASS, NO_LABEL])

    @pytest.fixture
    def prediction(self):
        logits = np.array([[4, 0], [3, 0], [1, 0], [0, 3.5], [0, 0]], dtype=np.float32)
        return Prediction(logits.copy(), logits, np.eye(2, dtype=np.float32))

    def test_accuracy_counts_known_classes_alone_and_tells_the_others_apart(self, prediction):
        found = accuracy(prediction, TargetLabels(self.truth), ("ant", "bee"))
        assert (found.class_mean, found.overall, found.confusion.sum()) == (0.5, 0.5, 2)
        # Confidence 4 and 3 against 1 and 3.5: three of the four pairs are in order.
        assert found.unknown["images"] == 2 and found.unknown["auroc_confidence"] == pytest.approx(0.75)

    def test_nothing_is_told_where_there_are_none(self, prediction):
        assert accuracy(prediction, TargetLabels(np.maximum(self.truth, 0)), ("ant", "bee")).unknown is None

    def test_no_pseudo_label_is_right_for_an_unknown_class(self, prediction):
        selected = np.array([True, False, True, True, True])
        labels = np.array([0, 0, 0, 1, 0])
        chosen = PseudoLabels(labels, np.ones(5), np.ones(5), selected, np.zeros(5, bool), np.ones(2))
        metrics = selection_metrics(chosen, prediction, chosen, TargetLabels(self.truth), ("ant", "bee"))
        assert metrics["tp_rate"] == pytest.approx(1 / 3)


def test_accuracy_by_domain_by_hand():
    """Domain far: ant right, bee wrong; domain near: two ants, one right; domain dark: no label."""
    labels = TargetLabels(np.array([0, 1, 0, 0, NO_LABEL]), np.array([0, 0, 1, 1, 2]), ("far", "near", "dark"))
    logits = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    found = accuracy(Prediction(logits + 1, logits, np.eye(2, dtype=np.float32)), labels, ("ant", "bee"))
    assert found.domains == {
        "far": {"class_mean": 0.5, "overall": 0.5},
        "near": {"class_mean": 0.5, "overall": 0.5},
        "dark": {"class_mean": None, "overall": None},
    }
    assert found.class_mean == pytest.approx((2 / 3 + 0) / 2)
