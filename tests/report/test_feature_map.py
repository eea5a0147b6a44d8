"""Places of features on a plane."""

import numpy as np
import pytest

from uda.core.errors import UserError
from uda.report import feature_map
from uda.report.feature_map import places, sample_rows, shares_of


def test_points_of_a_plane_keep_their_distances():
    """Features that lie on a plane in 6 dimensions: PCA only turns it, and puts the longer axis first."""
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 2)) * [5, 1]
    turned, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    features = (flat @ turned[:2] + 3).astype(np.float32)
    found = places(features)
    distance = lambda points: np.linalg.norm(points[:, None] - points[None], axis=2)  # noqa: E731
    assert found.shape == (50, 2) and found.dtype == np.float32
    assert distance(found) == pytest.approx(distance(flat), abs=1e-4)
    assert found[:, 0].var() > found[:, 1].var()
    assert found.mean(0) == pytest.approx([0, 0], abs=1e-4)


def test_it_is_the_projection_of_scikit_learn():
    from sklearn.decomposition import PCA

    features = np.random.default_rng(1).normal(size=(80, 10)).astype(np.float32) * np.arange(1, 11)
    theirs, ours = PCA(2, svd_solver="full").fit_transform(features), places(features)
    for axis in range(2):
        assert min(abs(ours - sign * theirs)[:, axis].max() for sign in (1, -1)) < 1e-3


def test_the_same_features_have_the_same_places_in_any_number(monkeypatch):
    """The plane is fitted to a sample; rows of the rest are placed on it, and the sample is the same each time."""
    features = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    monkeypatch.setattr(feature_map, "MOST_POINTS", 100)
    found = places(features)
    assert np.array_equal(places(features), found)
    monkeypatch.setattr(feature_map, "MOST_POINTS", 300)
    assert not np.allclose(places(features), found)


@pytest.mark.parametrize("shape", [(0, 4), (2, 4), (5, 1)])
def test_too_few_features_lie_in_one_place(shape):
    assert np.array_equal(places(np.ones(shape, np.float32)), np.zeros((shape[0], 2)))


def test_equal_features_and_infinite_ones_have_places():
    features = np.ones((5, 3), np.float32)
    assert np.allclose(places(features), 0)
    features[2, 1] = np.inf
    features[3, 0] = np.nan
    assert np.isfinite(places(features)).all()


def test_umap_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(UserError, match=r"report\.map: 'umap' needs the package umap-learn"):
        places(np.random.default_rng(0).random((9, 3)), "umap")


def test_tsne_takes_few_points():
    found = places(np.random.default_rng(0).random((9, 3)).astype(np.float32), "tsne")
    assert found.shape == (9, 2) and np.isfinite(found).all()


def test_a_sample_is_in_order_and_whole_if_it_may_be():
    assert sample_rows(3, 5).tolist() == [0, 1, 2]
    rows = sample_rows(1000, 10)
    assert len(set(rows)) == 10 and rows.tolist() == sorted(rows) == sample_rows(1000, 10).tolist()


@pytest.mark.parametrize(
    ("counts", "most", "shares"),
    [
        ([10, 10], 8, [4, 4]),
        ([2, 100], 50, [2, 48]),
        ([100, 2, 7], 30, [21, 2, 7]),
        ([5, 5], 100, [5, 5]),
        ([0, 9], 4, [0, 4]),
        ([3, 3, 3], 4, [1, 1, 2]),
    ],
)
def test_small_domains_are_whole(counts, most, shares):
    assert shares_of(counts, most) == shares
