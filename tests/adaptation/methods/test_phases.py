"""Methods of several phases against one update written out with plain autograd, parameter by parameter."""

import copy
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.data.batch import Batch
from uda.models.network import create_network
from uda.selection.selectors import SELECTORS
from uda.training.engine import Engine
from uda.training.method import Method

LR = 0.1
K = 3


def build(name, *overrides):
    """Plain SGD without momentum, so that an update is lr times a gradient; no dropout unless asked for."""
    optim = (
        f"adaptation.optim={{name: sgd, lr: {LR}, momentum: 0, nesterov: false, weight_decay: 0, schedule: constant}}"
    )
    common = [f"method={name}", "model.head=8", "runtime.device=cpu", "runtime.channels_last=false", optim]
    config = AdaptationConfig.load("digits_avh", [*common, *overrides])
    torch.manual_seed(0)
    network = create_network(config.model, K, 1)
    method = ADAPTATION_METHODS[name](network, config.method_settings())
    method.config = config  # what tests ask it for: runtime, optimisers
    engine = Engine(network, config.runtime, log=lambda line: None)
    engine.attach(method)
    return network, method, engine


def images_of_both_domains(each):
    """As many of either; source classes in turn."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2 * each, 1, 28, 28, generator=generator)
    is_target = torch.arange(2 * each) >= each
    labels = one_hot(torch.arange(2 * each) % K, K).float() * ~is_target[:, None]
    return Batch(images, labels, is_target.long(), is_target, torch.zeros(2 * each, dtype=torch.int64))


@pytest.fixture
def batch():
    return images_of_both_domains(3)


def step(method, engine, batch):
    optimization = engine.optimization(method, method.config.adaptation.optim, 1)
    method.network.train()
    method.modules.train()
    optimization.begin_step()
    return method.step(batch, optimization, 0.0)


def moved(parameters, loss):
    """Plain gradient descent by hand."""
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= LR * gradient


def p(logits):
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def assert_equal(network, expected):
    for (name, value), other in zip(network.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def changes_from_phase_to_phase(name, precision):
    """How far the generator's features move between its passes of one step at a large learning rate, relatively."""
    dropout = ["model.dropout=0.5"] if name == "adr" else []
    _, method, engine = build(name, f"runtime.precision={precision}", *dropout)
    passes, generate = [], method.generate
    method.generate = lambda batch: (passes.append(generate(batch)), passes[-1])[1]
    settings = method.config.adaptation.optim.model_copy(update={"lr": 1.0})
    optimization = engine.optimization(method, settings, 1)
    engine.fit(method, [images_of_both_domains(16)], optimization, label="test", steps=1)
    features = [found.detach().float() for found in passes]
    return [float((after - before).norm() / before.norm()) for before, after in pairwise(features)]


OF_PHASES = sorted(name for name, method in ADAPTATION_METHODS.items() if method.step is not Method.step)


@pytest.mark.parametrize("name", OF_PHASES)
def test_half_precision_follows_the_phases(name):
    """Features change from phase to phase as they do in fp32, except for rounding."""
    exact, half = (changes_from_phase_to_phase(name, precision) for precision in ("fp32", "bf16"))
    assert len(exact) > 3 and min(exact) > 0.1
    assert half == pytest.approx(exact, rel=0.1)


PASSES = pytest.mark.parametrize("forward", ["shared", "separate"])


def passes(forward, network, x):
    """A network of all rows at once, or of the source's and the target's each by themselves."""
    return network(x) if forward == "shared" else torch.cat([network(x[:3]), network(x[3:])])


@PASSES
def test_mcd_one_update_long_hand(batch, forward):
    """Phase A moves G, F1 and F2 by the source; B moves F1 and F2 by source - |p1 - p2|; C moves G, twice here.

    The heads have BatchNorm: both domains share its statistics in every phase, or neither does.
    """
    options = "method_options={generator_steps: 2, balance: 0.25, weight: 0.7}"
    network, method, engine = build("mcd", options, "model.head_batch_norm=true", f"adaptation.forward={forward}")
    net, second = copy.deepcopy(network), copy.deepcopy(method.modules["second"])
    net.train(), second.train()
    heads_of = (torch.nn.Sequential(net.head, net.classifier), second)
    g, heads = list(net.backbone.parameters()), [p for head in heads_of for p in head.parameters()]
    truth = torch.tensor([0, 1, 2])

    def source(z):
        total = 0.0
        for head in heads_of:
            logits = passes(forward, head, z)
            target = p(logits)[3:]
            total = total + cross_entropy(logits[:3], truth) - 0.25 * torch.log(target.mean(0) + 1e-6).mean()
        return total

    def apart(z):
        first, second = (p(passes(forward, head, z)[3:]) for head in heads_of)
        return (first - second).abs().mean()

    def features():
        return passes(forward, net.backbone, batch.images)

    moved(g + heads, source(features()))
    z = features()
    moved(heads, source(z.detach()) - 0.7 * apart(z.detach()))
    moved(g, 0.7 * apart(z))
    moved(g, 0.7 * apart(features()))

    scalars = step(method, engine, batch)
    assert set(scalars) == {"loss", "loss/discrepancy"}
    assert_equal(network, net)
    assert_equal(method.modules["second"], second)


@PASSES
@pytest.mark.parametrize("name", ["ent", "adr"])
def test_minimax_one_update_long_hand(name, batch, forward):
    """A: everything by the source; B: the head by source - figure; C: the generator by the figure.

    The head has BatchNorm: both domains share its statistics in every phase, or neither does.
    """
    options = ["method_options={generator_steps: 2, weight: 0.6}", "model.head_batch_norm=true"]
    options.append(f"adaptation.forward={forward}")
    network, method, engine = build(name, *options, *(["model.dropout=0.5"] if name == "adr" else []))
    net = copy.deepcopy(network)
    net.train()
    g, head = list(net.backbone.parameters()), [*net.head.parameters(), *net.classifier.parameters()]
    truth = torch.tensor([0, 1, 2])

    def features():
        return passes(forward, net.backbone, batch.images)

    def logits(z):
        return passes(forward, lambda rows: net.classifier(net.dropout(net.head(rows))), z)

    def figure(x):
        if name == "ent":
            q = p(logits(x)[3:])
            return -(q * q.log()).sum(1).mean()
        a, b = p(logits(x)[3:]), p(logits(x)[3:])
        return 0.5 * ((a * (a / b).log()).sum(1) + (b * (b / a).log()).sum(1)).mean()

    def long_hand():
        x = features()
        moved(g + head, cross_entropy(logits(x)[:3], truth))
        x = features()
        moved(head, cross_entropy(logits(x.detach())[:3], truth) - 0.6 * figure(x.detach()))
        moved(g, 0.6 * figure(x))
        x = features()
        moved(g, 0.6 * figure(x))

    torch.manual_seed(5)
    long_hand()
    torch.manual_seed(5)
    step(method, engine, batch)
    assert_equal(network, net)


def test_dann_moves_the_features_against_the_domain_loss_and_the_domain_classifier_along_it(batch):
    """Features: grad CE - lambda * grad BCE; domain classifier: grad BCE; classifier: grad CE."""
    network, method, engine = build("dann", "method_options={hidden: 5}")
    net, domain = copy.deepcopy(network), copy.deepcopy(method.modules["domain"])
    net.train(), domain.train()
    shared, classifier = [*net.backbone.parameters(), *net.head.parameters()], list(net.classifier.parameters())
    strength = 2 / (1 + torch.tensor(-10 * 0.3).exp().item()) - 1
    x = net.head(net.backbone(batch.images))
    label_loss = cross_entropy(net.classifier(x[:3]), torch.tensor([0, 1, 2]))
    q = torch.sigmoid(domain(x).squeeze(1))
    domain_loss = 0.5 * (-(1 - q[:3]).log().mean() - q[3:].log().mean())
    gradients = {
        "label": torch.autograd.grad(label_loss, shared + classifier, retain_graph=True),
        "domain": torch.autograd.grad(domain_loss, shared + list(domain.parameters())),
    }
    n = len(shared)
    with torch.no_grad():
        for i, parameter in enumerate(shared):
            parameter -= LR * (gradients["label"][i] - strength * gradients["domain"][i])
        for parameter, gradient in zip(classifier, gradients["label"][n:], strict=True):
            parameter -= LR * gradient
        for parameter, gradient in zip(domain.parameters(), gradients["domain"][n:], strict=True):
            parameter -= LR * gradient
    method.progress = 0.3
    step(method, engine, batch)
    assert_equal(network, net)
    assert_equal(method.modules["domain"], domain)


def loss_of(name, batch, *overrides):
    """A method's loss in eval mode, its network and itself."""
    network, method, _ = build(name, *overrides)
    network.eval(), method.modules.eval()
    return method.loss(batch)[0].item(), network, method


def entropies(q):
    return -(q * q.log()).sum(1)


@torch.no_grad()
def test_losses_of_one_phase_by_hand(batch):
    """Cross-entropy of the source plus, not minus, weight times what is to become small on the target."""
    labels = torch.tensor([0, 1, 2])
    found, network, _ = loss_of("entmin", batch, "method_options={weight: 0.3}")
    logits = network(batch.images).logits
    source, q = cross_entropy(logits[:3], labels), p(logits[3:])
    assert found == pytest.approx(float(source + 0.3 * entropies(q).mean()), rel=1e-5)

    found, _, _ = loss_of("mcc", batch, "method_options={weight: 0.3, temperature: 1.0}")
    w = 1 + torch.exp(-entropies(q))
    confusion = (w[:, None] / w.mean() * q).T @ q
    beside = 1 - (confusion / confusion.sum(1, keepdim=True)).diagonal().mean()
    assert found == pytest.approx(float(source + 0.3 * beside), rel=1e-5)

    found, network, _ = loss_of("mmd", batch, "method_options={weight: 0.3, exponents: [0]}")
    x = network(batch.images).features
    d = ((x[:, None] - x) ** 2).sum(2)
    kernel = torch.exp(-d / (2 * d.sum() / 30))
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    within = sum(kernel[i, j] + kernel[i + 3, j + 3] for i, j in pairs) / 6
    assert found == pytest.approx(float(source + 0.3 * (within - 2 * kernel[:3, 3:].mean())), rel=1e-4)


@torch.no_grad()
def test_shot_by_hand(batch):
    """Mean entropy less entropy of the mean, plus beta times the cross-entropy with the centroids' labels."""
    batch.images, batch.is_target = batch.images[3:], torch.ones(3, dtype=torch.bool)
    batch.annotated = ~batch.is_target
    batch.labels = one_hot(torch.tensor([1, 2, 0]), K).float()
    found, network, _ = loss_of("shot", batch, "method_options={weight: 0.4}")
    q = p(network(batch.images).logits)
    diversity = float(-(q.mean(0) * q.mean(0).log()).sum())
    labels = float(-(batch.labels * q.log()).sum(1).mean())
    assert found == pytest.approx(float(entropies(q).mean()) - diversity + 0.4 * labels, rel=1e-4)


def with_strong_views(batch):
    """Three source images, three target images as they are, and their strong views."""
    view = torch.tensor([0] * 6 + [1] * 3)
    images, labels = torch.cat([batch.images, 1 - batch.images[3:]]), torch.cat([batch.labels, torch.zeros(3, K)])
    return Batch(images, labels, view + 1, torch.arange(9) >= 3, view)


@PASSES
def test_fixmatch_one_update_long_hand(batch, forward):
    """Plain and strong views share BatchNorm's statistics with the source, or with each other alone."""
    both = with_strong_views(batch)
    options = ["method_options={threshold: null, portion: 0.34, weight: 0.5}", f"adaptation.forward={forward}"]
    network, method, engine = build("fixmatch", "adaptation.strong={jitter: 0.3}", *options)
    net = copy.deepcopy(network)
    net.train()
    q = p(passes(forward, lambda x: net(x).logits, both.images))
    sure, chosen = q[3:6].detach().max(1)
    surest = int(sure.argmax())
    consistency = -q[6 + surest, chosen[surest]].log() / 3
    moved(list(net.parameters()), cross_entropy(q[:3].log(), torch.tensor([0, 1, 2])) + 0.5 * consistency)
    step(method, engine, both)
    assert_equal(network, net)


@torch.no_grad()
def test_fixmatch_by_hand(batch):
    """Threshold at the middle one of three: two plain views are kept, and their strong views learn their labels."""
    both = with_strong_views(batch)
    strong = both.images[6:]
    network, _, _ = build("fixmatch", "adaptation.strong={jitter: 0.3}")
    network.eval()
    q, strong_q = p(network(batch.images).logits), p(network(strong).logits)
    sure, chosen = q[3:].max(1)
    threshold = float(sure.sort().values[1])
    options = f"method_options={{threshold: {threshold - 1e-6}, weight: 0.5}}"
    found, _, method = loss_of("fixmatch", both, "adaptation.strong={jitter: 0.3}", options)
    each = [-float(strong_q[i, chosen[i]].log()) for i in range(3) if sure[i] >= threshold]
    source = float(cross_entropy(q[:3].log(), torch.tensor([0, 1, 2])))
    assert len(each) == 2 and found == pytest.approx(source + 0.5 * sum(each) / 3, rel=1e-4)
    _, _, method = loss_of("fixmatch", both, "adaptation.strong={jitter: 0.3}", "method_options={portion: 0.34}")
    kept = method.pseudo_labels(network(both.images), both.plain_rows)[1]
    assert kept.tolist() == [float(i == int(sure.argmax())) for i in range(3)]
    # Angles order the images otherwise, but keep as many as the softmax threshold does.
    avc = f"method_options={{threshold: {threshold - 1e-6}, selector: avc}}"
    _, _, method = loss_of("fixmatch", both, "adaptation.strong={jitter: 0.3}", avc)
    output = network(both.images)
    surest = SELECTORS["avc"](output.features[3:6], output.logits[3:6], network.weight).amax(1)
    kept = method.pseudo_labels(output, both.plain_rows)[1]
    assert kept.tolist() == [float(i != int(surest.argmin())) for i in range(3)]
    none = f"method_options={{threshold: {float(sure.max()) + 1e-6}}}"
    _, _, method = loss_of("fixmatch", both, "adaptation.strong={jitter: 0.3}", none)
    assert method.pseudo_labels(output, both.plain_rows)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("joint", "products", "product"),
    [("auto", 8 * K, True), ("auto", 8 * K - 1, False), ("outer", 2, True), ("random", 4096, False)],
)
@pytest.mark.parametrize("entropy", [True, False])
def test_cdan_one_update_long_hand(batch, monkeypatch, joint, products, product, entropy):
    """Features times predictions, or their random map, as chosen; with entropy surer images count more; the gradient
    comes back reversed. The log is told where `auto` leaves the product."""
    monkeypatch.setattr("uda.adaptation.methods.cdan.MOST_PRODUCTS", products)
    options = f"{{hidden: 5, random_width: 7, joint: {joint}, entropy: {str(entropy).lower()}}}"
    network, method, engine = build("cdan", f"method_options={options}")
    told = method.note is not None and "8 features x 3 classes are more than 23" in method.note
    assert told == (joint == "auto" and not product) and (told or method.note is None)
    net, own = copy.deepcopy(network), copy.deepcopy(method.modules)
    net.train(), own.train()
    shared = [*net.backbone.parameters(), *net.head.parameters()]
    strength = 2 / (1 + torch.tensor(-10 * 0.3).exp().item()) - 1
    x = net.head(net.backbone(batch.images))
    logits = net.classifier(x)
    q = p(logits).detach()
    if not product:
        joint = (x @ own["joint"].features) * (q @ own["joint"].classes) / 7**0.5
    else:
        joint = torch.stack([torch.outer(a, b).flatten() for a, b in zip(q, x, strict=True)])
    weight = 1 + torch.exp(-entropies(q)) if entropy else torch.ones(len(q))
    domain = torch.sigmoid(own["domain"](joint).squeeze(1))
    each = -torch.cat([(1 - domain[:3]).log(), domain[3:].log()]) * weight
    domain_loss = (each[:3].sum() / weight[:3].sum() + each[3:].sum() / weight[3:].sum()) / 2
    label_loss = cross_entropy(logits[:3], torch.tensor([0, 1, 2]))
    classifier, telling = list(net.classifier.parameters()), list(own["domain"].parameters())
    towards = torch.autograd.grad(label_loss, [*shared, *classifier], retain_graph=True)
    against = torch.autograd.grad(domain_loss, [*shared, *telling])
    n = len(shared)
    with torch.no_grad():
        for parameter, a, b in zip(shared, towards[:n], against[:n], strict=True):
            parameter -= LR * (a - strength * b)
        for parameter, gradient in zip([*classifier, *telling], [*towards[n:], *against[n:]], strict=True):
            parameter -= LR * gradient
    method.progress = 0.3
    step(method, engine, batch)
    assert_equal(network, net)
    assert_equal(method.modules["domain"], own["domain"])


def test_shot_leaves_the_classifier_where_it_is(batch):
    network, method, engine = build("shot")
    before = copy.deepcopy(network)
    batch.labels = one_hot(torch.tensor([1, 2, 0, 1, 2, 0]), K).float()
    step(method, engine, batch)
    assert torch.equal(network.classifier.weight, before.classifier.weight)
    assert torch.equal(network.classifier.bias, before.classifier.bias)
    changed = [not torch.equal(a, b) for a, b in zip(network.head.parameters(), before.head.parameters(), strict=True)]
    assert all(changed)
