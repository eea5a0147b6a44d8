"""VisDA-2017's configs against the published record, value by value. Each config's comment names its source."""

import pytest
import torch
from torch import nn

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.data.transforms import make_predict, make_train
from uda.models.network import create_network
from uda.training.optimization import Optimization

CLASSES = 12
ADAPTING = sorted(name for name, method in ADAPTATION_METHODS.items() if method.adapts)
BY_METHOD = {name: AdaptationConfig.load(f"visda_{name}", ["model.weights=none"]) for name in ADAPTING}
#: New layers' rate, the backbone's, the rate's fall a step and its power (tllib's lr_gamma and lr_decay), weight decay,
#: steps, source and target images of a batch, widths of the head, BatchNorm in it, dropout.
TLLIB = {
    "dann": (1e-2, 1e-3, 0.001, 0.75, 1e-3, 30_000, 32, 32, [256], True, 0.0),
    "cdan": (1e-2, 1e-3, 0.001, 0.75, 1e-3, 30_000, 32, 32, [256], True, 0.0),
    "mcc": (2e-3, 2e-4, 0.001, 0.75, 1e-3, 30_000, 36, 36, [256], True, 0.0),
    "mmd": (3e-3, 3e-4, 0.0003, 0.75, 5e-4, 10_000, 32, 32, [256], False, 0.5),
    "mcd": (1e-3, 1e-3, 0.0, 0.75, 5e-4, 10_000, 32, 32, [1024, 1024], True, 0.5),
    "fixmatch": (3e-3, 3e-4, 0.0004, 0.75, 1e-3, 20_000, 32, 64, [2048], True, 0.0),
}


def optimization(settings, steps):
    groups = {role: [nn.Parameter(torch.zeros(1))] for role in ("backbone", "new")}
    return Optimization(groups, settings, steps)


@pytest.mark.parametrize("method", TLLIB)
def test_tllibs_recipes(method):
    """Rates at the first, the 1,001st and the last step by tllib's own formula, lr (1 + lr_gamma step)^-lr_decay."""
    new, backbone, fall, power, decay, steps, source, target, head, batch_norm, dropout = TLLIB[method]
    config = BY_METHOD[method]
    stage, model = config.adaptation, config.model
    assert (stage.steps, stage.batch.source, stage.batch.target) == (steps, source, target)
    assert stage.optim.weight_decay == decay and stage.optim.momentum == 0.9 and stage.optim.name == "sgd"
    assert ([model.head] if isinstance(model.head, int) else model.head) == head
    assert (model.head_batch_norm, model.dropout) == (batch_norm, dropout)
    for step in (0, 1000, steps - 1):
        found = optimization(stage.optim, steps)
        found.steps_done = step
        found.begin_step()
        rates = {group["role"]: group["lr"] for group in found.optimizer.param_groups}
        factor = (1 + fall * step) ** -power
        assert rates == pytest.approx({"backbone": backbone * factor, "new": new * factor}, rel=1e-9)
    crops = (config.transforms.source, config.transforms.target)
    assert config.transforms.squash and {(crop.crop, crop.flip) for crop in crops} == {("centre", True)}
    assert config.source.epochs == 0, "from ImageNet's weights"


def test_what_else_tllib_says_of_a_method():
    options = {method: ADAPTATION_METHODS[method].Options(**BY_METHOD[method].method_options) for method in TLLIB}
    # The reversal is 2 / (1 + exp(-step / 1000)) - 1; ours grows by the share of all 30,000 steps.
    assert options["dann"].steepness == options["cdan"].steepness == 30_000 / 1000
    assert (options["cdan"].joint, options["cdan"].entropy, options["cdan"].weight) == ("outer", False, 1.0)
    assert (options["mcc"].temperature, options["mcc"].weight, options["fixmatch"].threshold) == (3.0, 1.0, 0.8)
    assert (options["mcd"].generator_steps, options["mcd"].balance) == (4, 0.01)
    assert BY_METHOD["fixmatch"].adaptation.strong.rand_augment == "rand-m10-n2-mstd2"
    passes = {method: BY_METHOD[method].adaptation.forward for method in TLLIB}
    assert {method for method, way in passes.items() if way == "separate"} == {"mmd", "fixmatch"}
    momenta = {
        group["role"]: (group["momentum"], group["nesterov"])
        for group in optimization(BY_METHOD["mcd"].adaptation.optim, 1).optimizer.param_groups
    }
    assert momenta == {"backbone": (0.0, False), "new": (0.9, False)}, "the generator's optimiser has no momentum"


def test_shots_recipe():
    """image_source.py and image_target.py: both stages at 1e-3 and 1e-4, (1 + 10 p)^-0.75, weight decay 1e-3."""
    config = BY_METHOD["shot"]
    source, stage, model = config.source, config.adaptation, config.model
    assert (source.epochs, source.batch_size, source.label_smoothing) == (10, 64, 0.1)
    assert stage.interval == -(-55_388 // 64) and stage.steps == 15 * stage.interval and stage.batch.target == 64
    for optim in (source.optim, stage.optim):
        assert (optim.lr, optim.backbone_lr_scale, optim.weight_decay) == (1e-3, 0.1, 1e-3)
        assert (optim.momentum, optim.nesterov) == (0.9, True)
        for step in (0, 500, 999):
            assert optimization(optim, 1000).schedule(step) == pytest.approx((1 + 10 * step / 1000) ** -0.75, rel=1e-12)
    assert (model.head, model.head_batch_norm, model.head_activation, model.weight_norm) == (256, True, "none", True)
    assert config.transforms.squash and config.transforms.source.crop == config.transforms.target.crop == "random"
    assert ADAPTATION_METHODS["shot"].Options(**config.method_options).labels_from == 2


def test_what_is_ours():
    for method in ("adr", "ent"):
        optim = BY_METHOD[method].adaptation.optim
        assert (optim.schedule, optim.lr, optim.weight_decay) == ("constant", 1e-3, 1e-3)
    rounds = AdaptationConfig.load("visda_avh")
    assert not rounds.transforms.squash and rounds.transforms.source.scale == (0.7, 1.0)
    assert {AdaptationConfig.load(f"visda_{name}").model.backbone for name in [*BY_METHOD, "avh", "source"]} == {
        "resnet101.tv_in1k"
    }


@pytest.mark.parametrize("method", sorted(BY_METHOD))
def test_each_config_makes_its_network_its_method_and_its_images(method):
    """On another backbone, for speed; ResNet-101 without values, for its shape."""
    config = BY_METHOD[method]
    small = config.model.model_copy(update={"backbone": "digits_cnn"})
    network = create_network(small, CLASSES, 3)
    made = ADAPTATION_METHODS[method](network, config.method_settings())
    assert made.note is None, "nothing falls back to something else"
    image = torch.randint(0, 256, (3, 216, 384), dtype=torch.uint8)
    augments = [config.transforms.source, config.transforms.target, config.adaptation.strong]
    for transform in [make_train(config.transforms, augment) for augment in augments if augment is not None]:
        assert transform.pixels([image], [0]).shape == (1, 3, 224, 224)
    pixels = make_predict(config.transforms)([image], [0])
    network.eval()
    output = network(pixels)
    assert output.logits.shape == (1, CLASSES) and output.features.shape[1] == network.weight.shape[1]


def test_the_network_of_the_record_has_resnet_101s_shape():
    with torch.device("meta"):
        network = create_network(BY_METHOD["mcd"].model, CLASSES, 3)
    # torchvision's ResNet-101 has 44,549,160 parameters, 2,049,000 of them in its classifier of 1,000.
    assert sum(p.numel() for p in network.backbone.parameters()) == 44_549_160 - 2_049_000
    assert [tuple(layer.weight.shape) for layer in network.head if isinstance(layer, nn.Linear)] == [
        (1024, 2048),
        (1024, 1024),
    ]
