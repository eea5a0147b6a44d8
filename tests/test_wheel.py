"""What `pip install uda-toolkit` gives: everything that a run needs, in a folder that knows nothing of the checkout."""

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from uda.core.resources import CHECKOUT
from uda.tables import read_csv

pytestmark = pytest.mark.slow

#: What a release is made of; what else lies in a checkout, data sets and runs among it, may be large.
PARTS = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "uda", "configs", "tests")
REDUCED = ["data.rendered_per_class=20", "source.epochs=1", "self_training.rounds=1", "self_training.steps=5"]
TABLE = """\
reference: AVH
seeds: [0]
pairs: [[rendered, mnist]]
set: [{set}]
rows: [{{name: AVH, cfg: digits_avh}}]
"""


def called(*command, folder, **variables):
    """The output of a command that must succeed, in a folder, without this checkout in its environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "UDA_DATA")}
    environment |= {"PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "1", **variables}
    ended = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, f"{command}:\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the source distribution, and the wheel that was built from it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for part in PARTS:
        if (CHECKOUT / part).is_dir():
            shutil.copytree(CHECKOUT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CHECKOUT / part, source)
    (source / "datasets").mkdir()
    for card in (CHECKOUT / "datasets").glob("*.*"):
        shutil.copy(card, source / "datasets")
    (source / "datasets" / "pacs").mkdir()
    (source / "datasets" / "pacs" / "labels.yaml").write_text("data that lie beside the cards")
    (source / "benchmarks").mkdir(exist_ok=True)
    (source / "benchmarks" / "__init__.py").write_text("")
    called(sys.executable, "-m", "build", "--outdir", built, source, folder=source)
    return built


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """The Python of a new virtual environment: the wheel, and what it depends on from the one that tests run in."""
    home = tmp_path_factory.mktemp("home")
    called(sys.executable, "-m", "venv", "--without-pip", home, folder=home)
    python = home / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    called(*pip, wheel, folder=home)
    (packages,) = (home / "lib").glob("python*/site-packages")
    # A path in a .pth file is searched last, and the .pth files in it, such as this checkout's, are not read.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return python


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder to work in."""
    return tmp_path_factory.mktemp("empty")


def files_of_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_package_configs_cards_templates_and_pages_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith("uda_toolkit-")
    ours = [
        path
        for path in (CHECKOUT / "uda").rglob("*")
        if path.suffix in (".py", ".typed") or path.parent.name in ("templates", "page")
    ]
    expected = {path.relative_to(CHECKOUT).as_posix() for path in ours if path.is_file()}
    cards = (CHECKOUT / "datasets").glob("*.yaml")
    for path in [*(CHECKOUT / "configs").rglob("*.yaml"), *cards]:
        expected.add(f"uda/{path.relative_to(CHECKOUT).as_posix()}")
    assert {"uda/configs/base/visda.yaml", "uda/datasets/visda2017.yaml"} < expected
    assert files_of_package(wheel) == expected


def test_the_installed_package_is_the_wheels(python, folder):
    said = called(
        python, "-c", "import uda; from uda.core import resources as r; print(uda.__file__, r.CHECKOUT)", folder=folder
    )
    file, checkout = said.split()
    assert Path(file).is_relative_to(python.parents[1]) and checkout == "None"
    assert (python.parent / "uda").is_file()


def test_the_main_job(python, folder):
    called(python.parent / "uda", "adapt", "--cfg", "digits_avh.yaml", *REDUCED, "output=run", folder=folder)
    run = folder / "run"
    assert json.loads((run / "results.json").read_text())["selector"] == "avc" and (run / "report.html").is_file()


def test_a_run_within_the_users_repository_names_the_version_and_no_commit(python, folder):
    """The run of the job above is in no repository; this one is, and so is the environment of its Python."""
    repository = python.parents[1]
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    called(*git, "init", "--quiet", folder=repository)
    called(*git, "add", "--force", ".", folder=repository)
    called(*git, "commit", "--quiet", "--message", "mine", folder=repository)
    asked = "from uda.training import run_folder; import json; print(json.dumps(run_folder.environment([])))"
    environment = json.loads(called(python, "-c", asked, folder=repository))
    assert environment["commit"] is None and environment["uda"] in next((python.parents[1]).rglob("uda_toolkit-*")).name


def test_lists(python, folder):
    for what, name in (("configs", "visda_avh.yaml"), ("datasets", "visda2017"), ("methods", "self_training")):
        assert name in called(python, "-m", "uda", "adapt", "--list", what, folder=folder)


def test_a_dry_run_writes_nothing(python, tmp_path):
    said = called(python, "-m", "uda", "adapt", "--cfg", "digits_avh", "--dry-run", *REDUCED, folder=tmp_path)
    assert "nothing was written" in said and not list(tmp_path.iterdir())


def test_a_data_set_that_is_not_there_is_looked_for_in_the_users_folder(python, tmp_path):
    words = ["-m", "uda", "adapt", "--cfg", "visda_avh", "model.backbone=digits_cnn", "model.weights=none"]
    command = [python, *words, "--dry-run", "transforms={size: 28, resize: 28}", "model.head=null"]
    assert f"to unpack in {tmp_path / 'datasets' / 'visda2017'}" in called(*command, folder=tmp_path)


def test_a_table(python, folder):
    (folder / "small.yaml").write_text(TABLE.format(set=", ".join(f'"{word}"' for word in REDUCED)))
    called(python, "-m", "uda", "table", "small.yaml", folder=folder)
    (row,) = read_csv(folder / "results" / "small.csv")
    assert row["commit"].startswith("uda-toolkit ") and 0 < float(row["class_mean"]) <= 1


def test_the_hardness_toy(python, folder):
    called(python, "-m", "uda", "hardness", "toy", "--out", "toy", "--epochs", "1", folder=folder)
    assert list((folder / "toy").glob("*.html"))


def test_the_source_distribution_installs(built, tmp_path):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        folders = {name.split("/")[1] for name in files.getnames() if "/" in name}
    assert {"uda", "configs", "datasets"} <= folders and not {"tests", "benchmarks"} & folders
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path / "installed", archive]
    called(*command, folder=tmp_path)
    assert (tmp_path / "installed" / "uda" / "configs" / "digits_avh.yaml").is_file()
