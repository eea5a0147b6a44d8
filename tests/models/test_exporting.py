"""A network as a file: what goes in, what comes out, and the arccos that ONNX Runtime has."""

import copy
import math
import sys

import pytest
import torch

from uda.core.errors import UserError
from uda.models.backbones import create_backbone
from uda.models.exporting import FORMATS, OUTPUTS, PortableNetwork, _arccos, exported
from uda.models.losses import LOSSES
from uda.models.network import Network
from uda.models.segmentation import create_segmentation_network, upsampled
from uda.models.settings import SegmentationModelSettings

MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.125)


def network(backbone="digits_cnn", loss="cross_entropy", **settings):
    body, width = create_backbone(backbone, "none", 3)
    return Network(body, width, 5, loss=LOSSES[loss](), **settings).eval()


def test_normalisation_by_hand():
    """A pixel at mean + std is 1 for the network: (0.7, 0.65, 0.725)."""
    seen = []

    class Eye(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean((2, 3))

    image = torch.tensor([0.7, 0.65, 0.725]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    found = PortableNetwork(Network(Eye(), 3, 2), MEAN, STD)(image)
    torch.testing.assert_close(seen[0], torch.ones(2, 3, 4, 4))
    assert list(found) == list(OUTPUTS)
    torch.testing.assert_close(found["features"], torch.ones(2, 3))
    torch.testing.assert_close(found["probabilities"].sum(1), torch.ones(2))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        ("digits_cnn", {"loss": "avh", "head": 16}),
        ("digits_cnn", {"loss": "arcface"}),
        ("digits_cnn", {"weight_norm": True, "head": [16, 8], "head_batch_norm": True, "dropout": 0.5}),
        ("test_resnet", {"bias": False}),
        pytest.param("test_vit", {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_file_gives_what_the_network_gives_for_any_batch(kind, backbone, settings):
    own = network(backbone, **settings)
    state = copy.deepcopy(own.state_dict())
    size = 160 if backbone == "test_vit" else 28
    model = FORMATS[kind].open(exported(PortableNetwork(own, MEAN, STD), kind, size))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for count in (1, 2, 7):
        images = torch.rand(count, 3, size, size)
        with torch.no_grad():
            features, logits = own((images - mean) / std)
        found = {name: torch.from_numpy(values) for name, values in model(images).items()}
        torch.testing.assert_close(found["features"], features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["probabilities"], logits.softmax(1), rtol=1e-4, atol=1e-6)
    assert {name: values.dtype for name, values in found.items()} == dict.fromkeys(OUTPUTS, torch.float32)
    assert own.state_dict().keys() == state.keys(), "weight_norm of the given network stays"
    assert all(torch.equal(value, state[name]) for name, value in own.state_dict().items())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_segmentation_network_gives_logits_of_pixels(kind):
    """Of images of 15 x 22 pixels, which are padded to multiples of 4. The features stay on the grid."""
    settings = SegmentationModelSettings(backbone="scenes_cnn", weights="none", width=8, loss="avh")
    own = create_segmentation_network(settings, 5, 3).eval()
    model = FORMATS[kind].open(exported(PortableNetwork(own, MEAN, STD), kind, (15, 22)))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for count in (1, 3):
        images = torch.rand(count, 3, 15, 22)
        with torch.no_grad():
            features, logits = own((images - mean) / std)
        found = {name: torch.from_numpy(values) for name, values in model(images).items()}
        pixels = upsampled(logits, 2, (15, 22))
        torch.testing.assert_close(found["features"], features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["logits"], pixels, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["probabilities"], pixels.softmax(1), rtol=1e-4, atol=1e-5)
        assert found["features"].shape == (count, 8, 8, 11) and found["logits"].shape == (count, 5, 15, 22)


def test_arccos_is_exact_at_both_ends():
    """math.acos in double precision; arccos of a float32 cosine would be off by 3e-4 there."""
    cosines = [-1.0, -1 + 1e-14, -1 + 1e-8, -0.7, -1e-9, 0.0, 1e-9, 0.5, 1 - 1e-8, 1 - 1e-14, 1.0]
    found = _arccos(torch.tensor(cosines, dtype=torch.float64)).tolist()
    assert found == pytest.approx([math.acos(cosine) for cosine in cosines], abs=3e-7)
    assert found[-2] == pytest.approx(math.acos(1 - 1e-14), rel=1e-6)


def test_what_torch_cannot_export_is_told_in_a_line():
    class Stubborn(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))

    for kind in FORMATS:
        with pytest.raises(UserError, match=rf"^torch \S+ cannot export this network as {kind} \(\w+: .*\)$"):
            exported(PortableNetwork(Network(Stubborn(), 3, 2), MEAN, STD), kind, 8)


def test_weights_that_an_onnx_file_cannot_hold_are_refused(monkeypatch):
    monkeypatch.setattr("uda.models.exporting._MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"the weights have 0\.0 GiB, but an ONNX file has at most 2; use torch-export"):
        exported(PortableNetwork(network(), MEAN, STD), "onnx", 28)


def test_missing_packages_are_named_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r'onnx, onnxscript, onnxruntime \(.*\); pip install "uda-toolkit\[export\]"'):
        FORMATS["onnx"].versions()
    assert FORMATS["torch-export"].versions() == {}
