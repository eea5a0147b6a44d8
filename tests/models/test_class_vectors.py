"""Class vectors from files: the classifier begins with them, in the run's class order, and every flaw is one error."""

import io
import json
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from uda.core.errors import UserError
from uda.models.class_vectors import identity, start_from_class_vectors
from uda.models.losses import LOSSES
from uda.models.network import create_network
from uda.models.settings import ModelSettings
from uda.selection.angular import angles

CLASSES = ("ant", "bee", "cat")
K, D = len(CLASSES), 128  # the width of digits_cnn
VECTORS = np.random.default_rng(0).normal(size=(K, D)).astype(np.float32)
#: The same with other rows first: cat, ant, bee.
TURNED = VECTORS[[2, 0, 1]]


def network(**settings):
    torch.manual_seed(0)
    settings = {"backbone": "digits_cnn", "weights": "none", "head": None} | settings
    return create_network(ModelSettings(**settings), K, 1).eval()


def npy(file, vectors=VECTORS):
    np.save(file, vectors)


def npz(file, **arrays):
    np.savez(file, **arrays)


def tensors(file, metadata=None, **arrays):
    save_file({name: torch.as_tensor(array) for name, array in arrays.items()}, file, metadata)


def names(*words):
    return {"classes": json.dumps(list(words))}


FILES = {
    "plain.npy": npy,
    "doubles.npy": lambda file: npy(file, VECTORS.astype(np.float64)),
    "fortran.npy": lambda file: npy(file, np.asfortranarray(VECTORS)),
    "weight.npz": lambda file: npz(file, weight=VECTORS),
    "vectors.npz": lambda file: npz(file, vectors=VECTORS, model=np.array("CLIP")),
    "names.npz": lambda file: npz(file, weight=TURNED, classes=["cat", "ant", "bee"]),
    "bytes.npz": lambda file: npz(file, weight=TURNED, classes=np.array([b"cat", b"ant", b"bee"])),
    "plain.safetensors": lambda file: tensors(file, weight=VECTORS),
    "names.safetensors": lambda file: tensors(file, names("cat", "ant", "bee"), weight=TURNED),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("weight_norm", [False, True])
def test_every_format_gives_the_same_rows_and_no_bias(tmp_path, name, weight_norm):
    """Rows are in the run's order, biases are 0, and nothing but the classifier is changed."""
    FILES[name](tmp_path / name)
    before, begun = network(weight_norm=weight_norm), network(weight_norm=weight_norm)
    start_from_class_vectors(begun, tmp_path / name, CLASSES)
    np.testing.assert_allclose(begun.weight.detach().numpy(), VECTORS, rtol=1e-6)
    assert not begun.classifier.bias.any()
    was, now = before.state_dict(), begun.state_dict()
    assert was.keys() == now.keys()
    assert {key for key in was if not torch.equal(was[key], now[key])} == {
        key for key in was if key.startswith("classifier.")
    }


def test_small_floats_and_whole_numbers_are_numbers_too(tmp_path):
    for name, values in (("half", VECTORS.astype(np.float16)), ("whole", (9 * VECTORS).astype(np.int8))):
        npy(tmp_path / f"{name}.npy", values)
        begun = network()
        start_from_class_vectors(begun, tmp_path / f"{name}.npy", CLASSES)
        assert np.array_equal(begun.weight.detach().numpy(), values.astype(np.float32))
    file = tmp_path / "brain.safetensors"
    save_file({"weight": torch.from_numpy(VECTORS).bfloat16()}, file)
    start_from_class_vectors(begun, file, CLASSES)
    assert torch.equal(begun.weight, torch.from_numpy(VECTORS).bfloat16().float())


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_biases_of_the_file_follow_their_rows(tmp_path, ending):
    file, bias = tmp_path / f"v.{ending}", np.array([3, 1, 2], np.float32)
    if ending == "npz":
        npz(file, weight=TURNED, bias=bias, classes=["cat", "ant", "bee"])
    else:
        tensors(file, names("cat", "ant", "bee"), weight=TURNED, bias=bias)
    begun = network()
    start_from_class_vectors(begun, file, CLASSES)
    assert begun.classifier.bias.tolist() == [1, 2, 3]


def test_names_are_compared_in_one_form(tmp_path):
    """macOS writes e and an accent, other systems one letter."""
    npz(tmp_path / "v.npz", weight=VECTORS[[1, 0]], classes=["zoo", "cafe\u0301"])
    begun = create_network(ModelSettings(backbone="digits_cnn", weights="none", head=None), 2, 1)
    start_from_class_vectors(begun, tmp_path / "v.npz", ("caf\u00e9", "zoo"))
    assert np.array_equal(begun.weight.detach().numpy(), VECTORS[:2])


def test_training_does_not_reach_the_callers_numbers(tmp_path):
    """With weight normalisation, torch would share the memory of the tensor that it is given."""
    for weight_norm in (False, True):
        begun, given = network(weight_norm=weight_norm), torch.from_numpy(VECTORS.copy())
        begun.classifier.start_from(given)
        with torch.no_grad():
            for parameter in begun.classifier.parameters():
                parameter.add_(1)
        assert np.array_equal(given.numpy(), VECTORS)


# Predictions


def begun_with(tmp_path, **settings):
    npy(tmp_path / "v.npy")
    begun = network(**settings)
    start_from_class_vectors(begun, tmp_path / "v.npy", CLASSES)
    return begun


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_cosine_with_the_scale_of_clip_gives_its_zero_shot_probabilities(tmp_path, scale, weight_norm):
    """In CLIP's README: unit features times unit texts times the exponential of the logit scale, then a softmax."""
    features = np.random.default_rng(1).normal(size=(7, D)).astype(np.float32)
    begun = begun_with(tmp_path, loss="cosine", loss_options={"scale": scale}, weight_norm=weight_norm)
    found = begun.logits(torch.from_numpy(features)).softmax(1).detach().numpy()

    images = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    texts = VECTORS.astype(np.float64) / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    logits = scale * images @ texts.T
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4 * max(1, scale / 10), atol=1e-7)
    assert len(set(found.argmax(1))) > 1


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_loss_predicts_by_the_vectors(tmp_path, loss, weight_norm):
    x = torch.randn(5, D)
    begun = begun_with(tmp_path, loss=loss, weight_norm=weight_norm)
    vectors = torch.from_numpy(VECTORS)
    expected = x @ vectors.T if loss == "cross_entropy" else -angles(x, vectors)
    assert torch.equal(begun.logits(x).argsort(1), expected.argsort(1))


def test_the_width_is_that_of_the_heads_last_layer(tmp_path):
    npy(tmp_path / "v.npy", VECTORS[:, :16])
    begun = network(head=[32, 16], head_batch_norm=True)
    start_from_class_vectors(begun, tmp_path / "v.npy", CLASSES)
    assert np.array_equal(begun.weight.detach().numpy(), VECTORS[:, :16])
    assert F.linear(torch.ones(1, 16), begun.weight).shape == (1, K)


# Bad files


def bad(change):
    vectors = VECTORS.copy()
    change(vectors)
    return vectors


def spoilt(index, value):
    return lambda file: npy(file, bad(lambda vectors: vectors.__setitem__(index, value)))


def objects(file):
    np.save(file, np.array([[1, None], [2, 3], [4, 5]], dtype=object), allow_pickle=True)


def cut_off(file):
    npz(file, weight=VECTORS)
    file.write_bytes(file.read_bytes()[:-100])


def swapped(file):
    """The array of a .npz is written as .npy."""
    with open(file, "wb") as opened:
        np.save(opened, VECTORS)


def archive(file):
    buffer = io.BytesIO()
    np.savez(buffer, weight=VECTORS)
    file.write_bytes(buffer.getvalue())


def text_in_archive(file):
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("weight.npy", "no array")


BAD = [
    (
        "v.npy",
        lambda file: npy(file, VECTORS[:2]),
        "2 class vectors, but the run has 3 classes; save one row for each of",
    ),
    (
        "v.npy",
        lambda file: npy(file, VECTORS.T),
        "128 class vectors, but the run has 3 classes; it may be (D, K): save",
    ),
    (
        "v.npy",
        lambda file: npy(file, VECTORS[:, :64]),
        "width 64, but without a head (model.head=null) x has the wi",
    ),
    ("v.npy", lambda file: npy(file, VECTORS[0]), "an array of shape (128,); class vectors are (K, D), a row for each"),
    ("v.npy", lambda file: npy(file, VECTORS + 1j), "its vectors are complex64, not numbers; save them as float32"),
    ("v.npy", lambda file: npy(file, VECTORS > 0), "its vectors are bool, not numbers"),
    ("v.npy", lambda file: npy(file, VECTORS.astype(str)), "not numbers; save them as float32"),
    ("v.npy", spoilt((1, 5), np.nan), "NaN, infinite or too large numbers in the vector of bee; compute it again"),
    ("v.npy", spoilt((2, 5), -np.inf), "NaN, infinite or too large numbers in the vector of cat; compute it again"),
    (
        "v.npy",
        lambda file: npy(file, VECTORS.astype(float) * 1e300),
        "too large numbers in the vector of ant, bee, cat",
    ),
    ("v.npy", spoilt(0, 0), "only zeros, and so no direction, in the vector of ant; compute it again"),
    ("v.npy", spoilt(0, 1e-30), "only zeros, and so no direction, in the vector of ant"),
    ("v.npy", objects, "holds Python objects, which may run code and are never loaded; save numbers"),
    ("v.npy", lambda file: file.write_bytes(pickle.dumps({"weight": 1})), "holds Python objects, which may run code"),
    ("v.npy", lambda file: file.write_bytes(b""), "is not a complete .npy file ("),
    (
        "v.npy",
        lambda file: file.write_text("1,2,3"),
        "is not a complete .npy file (it does not begin as one); write it",
    ),
    ("v.npy", archive, "is a .npz file under another name; rename it to v.npz"),
    ("v.npz", swapped, "is a .npy file under another name; rename it to v.npy"),
    ("v.npz", cut_off, "is not a complete .npz file (File is not a zip file); write it again"),
    ("v.npz", text_in_archive, "is not a complete .npz file (weight is no array)"),
    (
        "v.npz",
        lambda file: npz(file, texts=VECTORS),
        "no array `weight` (it has texts); save numpy.savez(FILE, weight=",
    ),
    ("v.npz", lambda file: npz(file, weight=VECTORS, vectors=VECTORS), "has both `weight` and `vectors`; keep one"),
    (
        "v.npz",
        lambda file: npz(file, weight=VECTORS, bias=VECTORS),
        "`bias` has shape (3, 128); 3 class vectors need (3",
    ),
    ("v.npz", lambda file: npz(file, weight=VECTORS, bias=[1, np.nan, 0]), "no finite bias of bee; compute it again"),
    ("v.npz", lambda file: npz(file, weight=VECTORS, bias=["a", "b", "c"]), "its `bias` are <U1, not numbers"),
    ("v.npz", lambda file: npz(file, weight=VECTORS, classes=[0, 1, 2]), "`classes` is not a list of names, but int64"),
    (
        "v.npz",
        lambda file: npz(file, weight=VECTORS, classes=np.array(CLASSES, dtype=object)),
        "holds Python objects, which may run code and are never loaded",
    ),
    (
        "v.npz",
        lambda file: npz(file, weight=VECTORS, classes=["ant", "bee"]),
        "2 names in `classes` for 3 class vectors",
    ),
    ("v.npz", lambda file: npz(file, weight=VECTORS, classes=["ant", "ant", "bee"]), "names the class 'ant' twice"),
    (
        "v.npz",
        lambda file: npz(file, weight=VECTORS, classes=["ant", "Bee", "cow"]),
        "lacks bee, cat, did you mean 'Bee'? and has Bee, cow, which the run does not have; its `classes` must be the",
    ),
    (
        "v.npz",
        lambda file: npz(file, weight=VECTORS[[0, 0, 1, 2]] + 1, classes=["ant", "bee", "cat", "dog"]),
        "has dog, which the run does not have; its `classes` must be the 3 classes of the run",
    ),
    ("v.safetensors", lambda file: tensors(file, text=VECTORS), "has no array `weight` (it has text)"),
    ("v.safetensors", lambda file: file.write_bytes(b"no tensors"), "is not a complete .safetensors file ("),
    (
        "v.safetensors",
        lambda file: tensors(file, {"classes": "ant, bee"}, weight=VECTORS),
        "is not a JSON list of names",
    ),
    (
        "v.safetensors",
        lambda file: tensors(file, {"classes": "[1, 2, 3]"}, weight=VECTORS),
        "is not a JSON list of names",
    ),
    ("v.pt", lambda file: torch.save(torch.from_numpy(VECTORS), file), "is none of .npy, .npz, .safetensors; save"),
    ("v.npy", lambda file: None, "no such file: "),
    ("v.npy", lambda file: file.mkdir(), "is a folder; name a .npy, .npz or .safetensors file in it"),
]


@pytest.mark.parametrize(("name", "write", "words"), BAD)
def test_a_bad_file_is_one_line_with_the_file_and_the_cure(tmp_path, name, write, words):
    write(tmp_path / name)
    begun, before = network(), network().state_dict()
    with pytest.raises(UserError) as error:
        start_from_class_vectors(begun, tmp_path / name, CLASSES)
    text = str(error.value)
    assert words in text and text.startswith("model.classifier: ") and str(tmp_path / name) in text
    assert "\n" not in text
    assert all(torch.equal(value, before[key]) for key, value in begun.state_dict().items()), "nothing was changed"


@pytest.mark.parametrize(
    ("head", "cure"),
    [
        (16, "that of the head (model.head); set model.head=null, because the features before the head have width 128"),
        ([128, 16], "that of the head (model.head); set model.head=null, because the features before the head have"),
    ],
)
def test_vectors_of_the_backbones_width_need_no_head(tmp_path, head, cure):
    npy(tmp_path / "v.npy")
    with pytest.raises(UserError) as error:
        start_from_class_vectors(network(head=head), tmp_path / "v.npy", CLASSES)
    assert f"has vectors of width 128, but x has width 16, {cure}" in str(error.value)


def test_vectors_of_another_width_than_head_and_backbone(tmp_path):
    npy(tmp_path / "v.npy", VECTORS[:, :64])
    with pytest.raises(
        UserError, match="use vectors of width 128, that of the features before the head, or end the head with 64"
    ):
        start_from_class_vectors(network(head=16), tmp_path / "v.npy", CLASSES)


def test_biases_need_a_classifier_with_biases(tmp_path):
    npz(tmp_path / "v.npz", weight=VECTORS, bias=np.zeros(3))
    with pytest.raises(UserError, match=r"v.npz has biases, but model.bias is false; set model.bias=true"):
        start_from_class_vectors(network(bias=False), tmp_path / "v.npz", CLASSES)


def test_the_identity_is_name_and_content_and_not_the_place(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("a.npy", "b.npy", "there/a.npy"):
        npy(tmp_path / name)
    first = identity(tmp_path / "a.npy")
    assert re.fullmatch(r"a\.npy [0-9a-f]{12}", first)
    assert identity(tmp_path / "there/a.npy") == first != identity(tmp_path / "b.npy")
    npy(tmp_path / "a.npy", TURNED)
    assert identity(tmp_path / "a.npy") != first
