"""Features in place of images: what a batch gets of them."""

import numpy as np
import pytest
import torch

from uda.data.features import AugmentedFeatures, FeatureArray, PlainFeatures, features_of, without_views
from uda.data.images import ImageArray, JoinedImages
from uda.data.loaders import Part, predict_batches, training_batches

PLAIN = torch.arange(12.0).reshape(6, 2)
#: View v of image i is the plain feature + 100 * (1 + v).
VIEWS = torch.stack([PLAIN + 100, PLAIN + 200, PLAIN + 300], 1)


def array(**changes):
    return FeatureArray(PLAIN, [f"i{i}" for i in range(6)], **{"views": VIEWS, **changes})


def test_rows_are_the_plain_features_and_then_those_of_the_views():
    found = array().together(np.array([4, 1]))
    assert found.shape == (2, 4, 2)
    assert found[0].tolist() == [[8, 9], [108, 109], [208, 209], [308, 309]]
    assert torch.equal(array().read(1), found[1])


def test_taking_twice_counts_from_the_first_taking():
    taken = array().take(np.array([5, 3, 1])).take(np.array([2, 0]))
    assert taken.ids == ["i1", "i5"] and len(taken) == 2
    assert taken.together(np.arange(2))[:, 0].tolist() == [[2, 3], [10, 11]]


def test_without_views_only_the_plain_features_are_read():
    joined = JoinedImages([array(), array(views=None)], ["a", "b"])
    plain = without_views(joined)
    assert [part.num_views for part in features_of(joined)] == [3, 0]
    assert [part.num_views for part in features_of(plain)] == [0, 0]
    assert plain.ids == joined.ids and plain.together(np.array([0, 7])).shape == (2, 1, 2)


def test_images_are_no_features():
    images = ImageArray(np.zeros((2, 3, 4, 4), np.uint8), ["a", "b"])
    assert features_of(images) == [] and without_views(images) is images and images.visible
    assert not array().visible


def test_a_prediction_gets_each_plain_feature_once_and_in_order():
    batches = predict_batches(array(), PlainFeatures(2), batch_size=4, workers=0)
    assert torch.equal(torch.cat(list(batches)), PLAIN[..., None, None])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_strong_view_of_a_training_batch_is_a_drawn_one_of_the_same_image(workers):
    part = Part(array(), np.arange(6), None, PlainFeatures(2), 1, True, strong=AugmentedFeatures(2))
    seen = set()
    for batch in training_batches([part], num_classes=2, batch_size=[6], steps=8, seed=(0, 1), workers=workers):
        features = batch.images[..., 0, 0]
        plain, strong = features[:6], features[6:]
        assert torch.equal(batch.view, torch.tensor([0] * 6 + [1] * 6))
        added = strong - plain
        assert torch.equal(added[:, 0], added[:, 1])
        seen |= set(added[:, 0].tolist())
    assert seen == {100.0, 200.0, 300.0}


def test_batches_are_the_same_with_any_number_of_workers():
    part = Part(array(), np.arange(6), None, PlainFeatures(2), 1, True, strong=AugmentedFeatures(2))
    settings = {"num_classes": 2, "batch_size": [4], "steps": 5, "seed": (3,)}
    alone, two = (training_batches([part], workers=workers, **settings) for workers in (0, 2))
    for batch, other in zip(alone, two, strict=True):
        assert torch.equal(batch.images, other.images)
