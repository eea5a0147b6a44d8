"""The choice of pixels image by image equals the definitions on all rows at once."""

import numpy as np
import pytest
import torch

from uda.segmentation.pixel_choice import PixelChoice, ScoredImage
from uda.selection.selectors import SELECTORS
from uda.selection.thresholds import class_balanced_thresholds, select

K = 5


def scored(selector="softmax", seed=0, sizes=((3, 4), (6, 5), (2, 2), (7, 9))):
    """Images of several sizes, with skewed classes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(K, 8, generator=generator)
    images = []
    for number, (height, width) in enumerate(sizes):
        features = torch.randn(height * width, 8, generator=generator) + 0.5 * weight[0]
        logits = features @ weight.T
        images.append(ScoredImage(number, height, SELECTORS[selector](features, logits, weight), logits))
    return images


def all_rows(images):
    return torch.cat([image.scores for image in images])


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("rule", ["ratio", "own"])
@pytest.mark.parametrize("selector", ["softmax", "avc"])
@pytest.mark.parametrize("portion", [0.0, 0.2, 0.55, 1.0])
def test_it_is_the_choice_among_all_rows(tmp_path, selector, rule, portion, again):
    images = scored(selector)
    rows = all_rows(images)
    thresholds = class_balanced_thresholds(rows, portion)
    whole = select(rows, thresholds, rule)
    choice = PixelChoice(K, portion, rule, tmp_path)
    chosen = list(choice.images(lambda: images, again))
    assert choice.counts.thresholds.tobytes() == thresholds.tobytes()
    for name in ("labels", "scores", "ratios", "selected", "flipped"):
        joined = np.concatenate([getattr(image.pixels, name) for image in chosen])
        assert np.array_equal(joined, getattr(whole, name)), name
    assert [image.number for image in chosen] == [0, 1, 2, 3]
    assert [image.height for image in chosen] == [3, 6, 2, 7]
    assert choice.counts.selected.tolist() == whole.counts_per_class().tolist()
    assert choice.counts.best.tolist() == np.bincount(rows.argmax(1), minlength=K).tolist()
    assert choice.counts.flipped == int((whole.flipped & whole.selected).sum())
    assert choice.counts.share == whole.count / len(rows)
    assert not list(tmp_path.iterdir()), "the temporary file has no name"


def test_own_needs_one_pass_and_ratio_two(tmp_path):
    images, passes = scored(), []

    def predict():
        passes.append(1)
        return images

    for rule, again, expected in (("own", False, 1), ("own", True, 2), ("ratio", False, 2)):
        passes.clear()
        chosen = list(PixelChoice(K, 0.3, rule, tmp_path).images(predict, again))
        assert len(passes) == expected
        assert all((image.logits is None) == (expected == 1) for image in chosen)


def crst(probabilities, portion):
    """CRST's rule in NumPy, from the paper: sorted confidences of each predicted class, and the largest p / lambda."""
    labels, best = probabilities.argmax(1), probabilities.max(1)
    thresholds = np.full(probabilities.shape[1], np.inf)
    for k in range(probabilities.shape[1]):
        ranked = np.sort(best[labels == k])[::-1]
        place = int(np.floor(portion * len(ranked) + 1e-9))
        if place:
            thresholds[k] = ranked[place - 1]
    weighted = probabilities / thresholds
    return np.where(weighted.max(1) >= 1, weighted.argmax(1), 255)


@pytest.mark.parametrize("portion", [0.2, 0.5])
def test_the_kept_pixels_are_those_of_crst(tmp_path, portion):
    images = scored(seed=3)
    expected = crst(all_rows(images).numpy(), portion)
    chosen = list(PixelChoice(K, portion, "ratio", tmp_path).images(lambda: images))
    kept = np.concatenate([np.where(image.pixels.selected, image.pixels.labels, 255) for image in chosen])
    assert np.array_equal(kept, expected)
    assert 0 < (kept < 255).sum() < len(kept)


def test_scores_of_float32_take_less_room_and_stay_exact(tmp_path):
    """Softmax is double, AVC single; the bytes of either come back unchanged."""
    sizes = ((40, 50),) * 3
    spooled = {}
    for selector in ("softmax", "avc"):
        images = scored(selector, sizes=sizes)
        choice = PixelChoice(K, 0.5, "own", tmp_path)
        chosen = list(choice.images(lambda images=images: images))
        assert all(
            np.array_equal(image.pixels.scores, given.scores.max(1).values.numpy())
            for image, given in zip(chosen, images, strict=True)
        )
        spooled[selector] = choice.spooled / (3 * 40 * 50)
    assert spooled["avc"] < 4.5 and spooled["softmax"] < 8, spooled


def test_a_process_without_images_takes_part(tmp_path):
    choice = PixelChoice(K, 0.5, "ratio", tmp_path)
    assert list(choice.images(list)) == []
    assert choice.counts.pixels == 0 and choice.counts.share == 0 and np.isinf(choice.counts.thresholds).all()


def test_wrong_scores_and_passes_are_refused(tmp_path):
    images = scored()
    spoilt = ScoredImage(0, 3, torch.full((12, K), float("nan")), images[0].logits)
    with pytest.raises(ValueError, match="contain NaN"):
        list(PixelChoice(K, 0.5, "own", tmp_path).images(lambda: [spoilt]))
    passes = iter([images, images[:-1]])
    with pytest.raises(ValueError, match="the second pass gave 3 images after 4"):
        list(PixelChoice(K, 0.5, "ratio", tmp_path).images(lambda: next(passes)))
