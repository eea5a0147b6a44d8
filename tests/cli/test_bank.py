"""The command `uda bank`: its words, its mistakes and what it says; and `uda check-data` of a bank."""

import json

import numpy as np
import pytest

import uda
from tests.data.banks import blob_bank, blobs, write_npz
from tests.in_process import adapt
from uda import feature_bank
from uda.cli.main import main
from uda.data.banks import find_domain


def said(capsys):
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


def test_a_bank_is_made_and_a_run_is_trained_on_it(tiny, in_folder, capsys):
    """The words that the command's last line gives train on the bank."""
    assert main(["bank", "--cfg", str(tiny), "--views", "1"]) == 0
    out, _ = said(capsys)
    assert out[-3:] == [
        "banks/tiny_digits_cnn/drawn.safetensors: 32 images, features of width 128",
        "banks/tiny_digits_cnn/photos.safetensors: 32 images, features of width 128",
        "2 domains in banks/tiny_digits_cnn; train on them with data.features=banks/tiny_digits_cnn",
    ]
    assert adapt(["--cfg", str(tiny), out[-1].split()[-1], "output=run", "adaptation.steps=4", "method=mcc"]) == 0
    assert json.loads((in_folder / "run/results.json").read_text())["method"] == "mcc"
    assert main(["bank", "--cfg", str(tiny), "--views", "1"]) == 0
    assert said(capsys)[0][-2] == "banks/tiny_digits_cnn/photos.safetensors is there already"


def test_another_backbone_and_the_network_of_a_run(tiny, in_folder, capsys):
    assert main(["bank", "--cfg", str(tiny), "--backbone", "digits_cnn_wide", "data.classes=[dog,cat,bee,ant]"]) == 0
    found = find_domain("banks/tiny_digits_cnn_wide", "photos")
    assert found.width == 256 and found.classes == ("dog", "cat", "bee", "ant")
    assert adapt(["--cfg", str(tiny), "method=source_only", "output=run"]) == 0
    capsys.readouterr()
    assert main(["bank", "--cfg", str(tiny), "--run", "run", "--output", "x"]) == 0
    assert find_domain("x", "photos").width == 16
    *_, features, head = said(capsys)[0][-1].split()
    assert (features, head) == ("data.features=x", "model.head=null")
    assert adapt(["--cfg", str(tiny), "method=source_only", "output=on_x", features, head]) == 0


def test_names_are_listed_without_a_config(capsys):
    assert main(["bank", "--list", "configs"]) == 0
    assert "digits_avh.yaml" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["bank"])
    assert "--cfg FILE is needed" in said(capsys)[1][-1]


def test_the_same_from_python(tiny, in_folder):
    files = uda.make_bank(tiny, "bank", overrides={"model.backbone": "digits_cnn_wide"}, log=None)
    assert [file.name for file in files] == ["drawn.safetensors", "photos.safetensors"]
    assert find_domain("bank", "drawn").width == 256
    with pytest.raises(
        uda.UserError,
        match=r"made with backbone digits_cnn_wide \(now digits_cnn\), other weights; choose another `folder`",
    ):
        uda.make_bank(tiny, "bank", overrides=["model.backbone=digits_cnn"], log=None)


@pytest.mark.parametrize("overrides", [{"seed": 1}, ["seed=1"], "seed=1"])
def test_a_config_may_name_the_bank_that_is_to_be_made(tiny, in_folder, overrides):
    path = in_folder / "on_bank.yaml"
    path.write_text(f"_base_: {tiny}\ndata: {{features: bank}}\n")
    files = uda.make_bank(path, "bank", overrides=overrides, log=None)
    assert uda.make_bank(path, "bank", overrides=overrides, log=None) == files
    assert find_domain("bank", "photos").made_by["seed"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cfg", "nowhere.yaml"], "nowhere.yaml: no such config"),
        (["--cfg", "cifar10_resnet"], "cifar10_resnet: not a config of `uda adapt` or `uda generalize`"),
        (["--cfg", "{tiny}", "--backbone", "resnte50"], "unknown backbone 'resnte50', did you mean 'resnet50'?"),
        (["--cfg", "{tiny}", "--views", "-1"], "--views: must be 0 or more; got -1"),
        (["--cfg", "{tiny}", "--run", "nowhere"], "nowhere is not a run folder"),
        (["--cfg", "{tiny}", "data.source=nowhere"], "data.source: no such folder: nowhere"),
        (["--cfg", "{tiny}", "model.weights=nowhere.pth"], "model.weights: no such file: nowhere.pth"),
        (["--cfg", "{tiny}", "--output", "file/x"], "file/x"),
        (["--cfg", "{tiny}", "data.features=x"], "data.features: a bank is made of images; remove it"),
    ],
)
def test_a_mistake_is_one_line(tiny, in_folder, capsys, words, message):
    (in_folder / "file").write_text("")
    assert main(["bank", *(word.format(tiny=tiny) for word in words)]) == 2
    errors = said(capsys)[1]
    assert errors[-1].startswith("error: ") and message in errors[-1]
    assert not (in_folder / "banks").exists()


def test_a_bank_that_another_process_makes(tiny, in_folder, capsys, held):
    (in_folder / "bank").mkdir()
    with held(in_folder / "bank"):
        assert main(["bank", "--cfg", str(tiny), "--output", "bank"]) == 2
    told = "error: --output: another process works in bank; wait until it ends, or choose another one"
    assert said(capsys)[1][-1] == told


def test_an_interrupted_command_says_that_it_goes_on(tiny, in_folder, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_bank, "make_bank", interrupted)
    assert main(["bank", "--cfg", str(tiny)]) == 130
    assert said(capsys)[1][-1] == "interrupted by SIGINT: the same command goes on from what is written"


def test_a_bank_of_ones_own_is_checked(in_folder, capsys):
    assert main(["check-data", "--features", str(blob_bank(in_folder / "bank"))]) == 0
    out, _ = said(capsys)
    assert out[0].endswith("bank: features of width 12, no augmented views") and out[-1] == "2 domains can be used"
    assert any(line.split() == ["photos", "-", "32", "ok"] for line in out)
    bad = blobs()
    bad["features"][3, 0] = np.nan
    write_npz(in_folder / "bank", photos=bad)
    assert main(["check-data", "--features", "bank"]) == 2
    assert "the features of 'ant/3.jpg' are not finite" in said(capsys)[1][-1]
    assert main(["check-data", "--features", "nowhere"]) == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (blobs(width=5), "bank/photos.npz: features of different widths, 12 and 5"),
        (blobs(classes=("ant", "bee", "cat", "Dog")), "('Dog' and 'dog' differ only by case, spaces or punctuation)"),
        (blobs(classes=("ant", "bee", "cat", "eel")), "data.label_sets=universal if they really differ"),
        (blobs() | {"labels": np.repeat(np.arange(4), 8)}, "photos.npz: its labels are numbers, but "),
    ],
)
def test_domains_that_do_not_fit_together_are_told(in_folder, capsys, other, message):
    """As a run on them would: other widths, other classes, names in one and numbers in the other."""
    write_npz(in_folder / "bank", drawn=blobs(), photos=other)
    assert main(["check-data", "--features", "bank"]) == 1
    (line,) = [line for line in said(capsys)[0] if line.startswith("does not fit: ")]
    assert message in line


def test_files_that_are_passed_over_are_listed(in_folder, capsys):
    write_npz(in_folder / "bank", drawn=blobs(), photos={**blobs(), "labels": np.full(32, "")})
    for name in ("other.csv", "x.pt", "art.txt"):
        (in_folder / "bank" / name).write_text("".join(f"{row}\n" for row in range(32)))
    np.save(in_folder / "bank/art.npy", blobs()["features"])
    assert main(["check-data", "--features", "bank"]) == 0
    out, _ = said(capsys)
    assert out[-2].startswith("passed over: other.csv, x.pt; files of a bank end in .safetensors, .npz")
    assert out[-1] == "3 domains can be used"


def test_a_bank_is_compared_with_a_card(in_folder, capsys):
    classes = [str(number) for number in range(10)]
    mnist = blobs(per_class=500, width=2, classes=classes)
    write_npz(in_folder / "bank", mnist=mnist)
    assert main(["check-data", "digits", "--features", "bank"]) == 0
    assert said(capsys)[0][-1] == "all counts match"
    write_npz(in_folder / "bank", mnist={name: values[:-3] for name, values in mnist.items()})
    assert main(["check-data", "digits", "--features", "bank"]) == 1
    assert said(capsys)[0][-1] == "2 of 11 counts differ from the card; make the bank again"
    write_npz(in_folder / "bank", other=blobs())
    assert main(["check-data", "digits", "--features", "bank"]) == 2
    assert "the card 'digits' has no domain 'other' (it has rendered, mnist)" in said(capsys)[1][-1]
    with pytest.raises(SystemExit):
        main(["check-data", "--all", "--features", "bank"])
