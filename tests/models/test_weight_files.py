"""Weights of anyone's: loaded where it is plain what they are, else named in one sentence."""

import argparse
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from uda.core.errors import UserError
from uda.models.backbones import create_backbone
from uda.models.network import create_network
from uda.models.settings import ModelSettings
from uda.models.weight_files import best_fit, read_weights
from uda.models.weights import load_network, save_network


@pytest.fixture(scope="module")
def source():
    """A backbone of 6 tensors and a counter a layer, 4 layers."""
    return create_backbone("digits_cnn", "none", 3)[0].state_dict()


def loaded(path):
    return create_backbone("digits_cnn", str(path), 3)[0].state_dict()


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def others(state):
    """The same shapes with other values."""
    return {name: value + 1 for name, value in state.items()}


HEAD = {"fc.weight": torch.zeros(7, 5), "fc.bias": torch.zeros(7)}

LAYOUTS = {
    "plain": lambda s: {**s, **HEAD},
    "lightning": lambda s: {
        "epoch": 3,
        "state_dict": prefixed("model.", {**s, **HEAD}),
        "optimizer_states": [{"state": {0: {"momentum": torch.ones(2)}}}],
        "hyper_parameters": {"lr": 0.1},
    },
    "lightning net": lambda s: {"state_dict": prefixed("net.backbone.", s) | prefixed("net.head.", HEAD)},
    "torch.compile": lambda s: prefixed("_orig_mod.", s),
    "compiled within DDP": lambda s: {"model_state_dict": prefixed("module._orig_mod.", s), "loss": 0.5},
    "encoder": lambda s: {"model": prefixed("encoder.", s) | prefixed("decoder.", HEAD)},
    "timm, averaged": lambda s: {"state_dict": others(s), "state_dict_ema": s, "arch": "digits_cnn"},
    "DINO": lambda s: {"student": prefixed("module.backbone.", others(s)), "teacher": prefixed("backbone.", s)},
    "MoCo": lambda s: {"state_dict": prefixed("module.encoder_k.", others(s)) | prefixed("module.encoder_q.", s)},
    "nested": lambda s: {"checkpoint": {"net": {"module": s}}},
    "before 0.4.1": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "before 0.4.1, wrapped": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items() if "num_b" not in k}},
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("kind", ["zip", "of old"])
def test_weights_load_whatever_wraps_them(layout, kind, source, tmp_path):
    torch.save(LAYOUTS[layout](source), tmp_path / "w.pth", _use_new_zipfile_serialization=kind == "zip")
    found = loaded(tmp_path / "w.pth")
    for name, value in source.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(dtype, source, tmp_path):
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in source.items()}
    save_file(prefixed("vision.", half), tmp_path / "weights.bin")  # safetensors by another name
    for name, value in loaded(tmp_path / "weights.bin").items():
        assert value.dtype == source[name].dtype and torch.equal(value, half[name].to(value.dtype)), name


def torchscript(path, state):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))


def archive(path, state):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("resnet/readme.txt", "see inside")


def cut(share, old=False):
    def write(path, state):
        torch.save(dict(state), path, _use_new_zipfile_serialization=not old)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def cut_safetensors(path, state):
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:1000])


def holding(**extra):
    return lambda path, state: torch.save({"state_dict": dict(state), **extra}, path)


def content(data):
    return lambda path, state: path.write_bytes(data)


FOREIGN = {
    "a Namespace": (
        holding(args=argparse.Namespace(lr=1)),
        "plain tensors: it also holds argparse.Namespace, which may",
    ),
    "a NumPy scalar": (holding(best=np.float64(0.5)), "multiarray.scalar, which may run code and is never loaded"),
    "a whole module": (
        lambda path, state: torch.save(torch.nn.ReLU(), path),
        "or, for a whole module, its .state_dict()",
    ),
    "a web page": (
        content(b"\n<!DOCTYPE html><html>Sign in"),
        "is a web page and not the file itself; download the file",
    ),
    "a pointer": (
        content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "fetch the file with `git lfs pull`",
    ),
    "nothing": (content(b""), "is empty; get it again"),
    "JSON": (content(b'{"weight_map": {"conv1.weight": "part1.safetensors"}}'), "is a text file without weights"),
    "noise": (content(bytes(range(255, 0, -1))), "it is truncated, damaged, or of another program; get it again"),
    "HDF5": (content(b"\x89HDF\r\n\x1a\n" + bytes(64)), "is an HDF5 file, as Keras writes them"),
    "gzip": (content(b"\x1f\x8b\x08" + bytes(64)), "is a compressed archive; unpack it"),
    "TorchScript": (torchscript, "is a TorchScript archive, which holds code; if you trust the file"),
    "an archive": (archive, "is an archive without PyTorch weights; unpack it"),
    "half of a zip": (cut(0.5), "is truncated or damaged; get it again"),
    "half of an old file": (cut(0.9, old=True), "it is truncated, damaged, or of another program; get it again"),
    "half of safetensors": (cut_safetensors, "is not a complete safetensors file: "),
    "a list": (
        lambda path, state: torch.save([torch.ones(2)], path),
        "holds a list, not a mapping of names to tensors",
    ),
    "no tensors": (
        lambda path, state: torch.save({"epoch": 3}, path),
        "does not fit the backbone: 0 of 20 tensors fit",
    ),
    "what a resume needs": (
        holding(version=3, progress={}, network={}),
        "is a checkpoint for resuming its run; name final",
    ),
    "a folder": (lambda path, state: path.mkdir(), "is a folder without checkpoints/final.safetensors"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_files_that_are_no_weights_get_a_sentence_of_ours(name, source, tmp_path):
    write, message = FOREIGN[name]
    write(tmp_path / "w.pth", source)
    with pytest.raises(UserError, match=rf"^model\.weights: [^\n]*w\.pth [^\n]*{re.escape(message)}[^\n]*$"):
        loaded(tmp_path / "w.pth")


def spoilt(data, path):
    """A weights file of either kind, cut somewhere, with some bytes changed, or with something before it."""
    content = bytearray(
        data.draw(st.sampled_from(["w.pth", "old.pth", "w.safetensors"]).map(lambda n: (path / n).read_bytes()))
    )
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(400, len(content) - 1)))] = data.draw(st.integers(0, 255))
    start = data.draw(st.sampled_from([b"", b"", b"PK", b" ", b"\xef\xbb\xbf<html>"]))
    return start + content[: data.draw(st.integers(0, len(content)))]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_spoilt_file_never_ends_in_another_error(data, tmp_path_factory):
    """It may load: a byte of a number was changed. Else one line of ours."""
    folder = tmp_path_factory.getbasetemp() / "spoilt"
    if not folder.is_dir():
        folder.mkdir()
        state = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.ones(2)}
        torch.save({"state_dict": state}, folder / "w.pth")
        torch.save({"state_dict": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
        save_file(state, folder / "w.safetensors")
    (folder / "x").write_bytes(spoilt(data, folder))
    said = "key: it loads"
    try:
        content = read_weights(folder / "x", "key")
        best_fit(content, {"layer.weight": torch.ones(2, 3), "layer.bias": torch.ones(2)}, "key").require("key")
    except UserError as error:
        said = str(error)
    assert re.fullmatch(r"key: [^\n]+", said)


def test_onnx_is_known_by_its_name(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(64))
    with pytest.raises(UserError, match=r"w\.onnx is an ONNX graph; PyTorch weights are needed"):
        loaded(tmp_path / "w.onnx")


def test_weights_of_another_network_are_counted(source, tmp_path):
    """One tensor of 20 is missing, one has another shape, one holds whole numbers: 17 fit."""
    state = dict(source)
    names = [name for name in state if "num_batches" not in name]
    del state[names[0]]
    state[names[1]] = torch.zeros(3, 3)
    state[names[2]] = state[names[2]].to(torch.int8)
    torch.save({"state_dict": prefixed("model.", state)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not fit the backbone: 17 of 20 tensors fit; ") as caught:
        loaded(tmp_path / "w.pth")
    for part in (
        f"{names[0]} is missing",
        f"{names[1]} is (3, 3), not ",
        f"{names[2]} is of torch.int8, not torch.float32",
    ):
        assert part in str(caught.value)


def test_two_parts_that_fit_are_not_plain(source):
    both = prefixed("student.", source) | prefixed("tutor.", source)
    with pytest.raises(UserError, match=r"^what: 2 parts of the file fit, student\., tutor\.: keep one of them$"):
        best_fit({"state_dict": both}, source, "what")


@pytest.fixture
def network():
    return create_network(ModelSettings(backbone="digits_cnn", weights="none", head=16), 5, 3)


WHAT = {"backbone": "digits_cnn", "head": 16, "classes": list("abcde")}


def test_a_run_s_folder_means_its_final_weights(network, tmp_path):
    """For a source model and, without its classifier, for a backbone."""
    save_network(network, tmp_path / "run" / "seed0" / "checkpoints" / "final.safetensors", WHAT)
    for place in ("run/seed0", "run/seed0/checkpoints"):
        other = create_network(ModelSettings(backbone="digits_cnn", weights="none", head=16), 5, 3)
        load_network(other, tmp_path / place, WHAT)
        assert torch.equal(other.weight, network.weight)
        assert torch.equal(
            loaded(tmp_path / place)["layers.0.weight"], network.backbone.state_dict()["layers.0.weight"]
        )
    with pytest.raises(UserError, match=r"source\.checkpoint: .*run is a folder without .*; name one of seed0 in it"):
        load_network(network, tmp_path / "run", WHAT)


def test_a_source_model_of_another_program(network, tmp_path):
    """All tensors of the network in any wrapping will do; a backbone alone is told where it belongs."""
    other = create_network(ModelSettings(backbone="digits_cnn", weights="none", head=16), 5, 3)
    torch.save({"state_dict": prefixed("module.", network.state_dict())}, tmp_path / "whole.pth")
    load_network(other, tmp_path / "whole.pth", WHAT)
    assert torch.equal(other.weight, network.weight)
    save_file(dict(network.state_dict()), tmp_path / "ours.safetensors", metadata={"uda": "[]"})
    load_network(other, tmp_path / "ours.safetensors", WHAT)
    torch.save(network.backbone.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(
        UserError, match=r"backbone\.pth holds a backbone without a classifier: set model\.weights to it"
    ):
        load_network(other, tmp_path / "backbone.pth", WHAT)
    torch.save(dict(network.state_dict(), extra=torch.ones(1)), tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"another network: extra is not in this network, which lacks 1 tensors of"):
        load_network(other, tmp_path / "more.pth", WHAT)
