"""Configs and cards are found beside the package in a checkout, and inside it in a wheel."""

import runpy
import shutil
from pathlib import Path

import pytest

import uda
from uda.core import resources


def test_a_checkout_has_them_beside_the_package():
    assert Path(uda.__file__).resolve().parent == resources.PACKAGE
    assert resources.PACKAGE.parent == resources.CHECKOUT
    assert (resources.CONFIGS / "digits_avh.yaml").is_file() and (resources.CARD_FOLDER / "digits.yaml").is_file()


@pytest.mark.parametrize("in_wheel", [True, False])
def test_a_wheel_has_them_in_the_package(tmp_path, in_wheel):
    """Folders called configs and datasets beside an installed package are somebody else's."""
    package = tmp_path / "uda"
    module = package / Path(resources.__file__).resolve().relative_to(resources.PACKAGE)
    module.parent.mkdir(parents=True)
    shutil.copy(resources.__file__, module)
    for folder in (tmp_path, package) if in_wheel else (tmp_path,):
        (folder / "configs").mkdir()
        (folder / "datasets").mkdir()
    found = runpy.run_path(str(module))
    assert found["CHECKOUT"] == (None if in_wheel else tmp_path)
    home = package if in_wheel else tmp_path
    assert (found["CONFIGS"], found["CARD_FOLDER"]) == (home / "configs", home / "datasets")
