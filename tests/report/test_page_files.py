"""The files of the page that are not templates: uPlot as it was published, and a script that cannot inject HTML."""

import hashlib
import re

import pytest

from uda.core.resources import CHECKOUT

PAGE = CHECKOUT / "uda" / "report" / "page"
#: SHA-256 of the files of uplot 1.6.32 on npm.
PUBLISHED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_uplot_is_as_published(name):
    assert hashlib.sha256((PAGE / name).read_bytes()).hexdigest() == PUBLISHED[name]


def test_the_script_has_no_way_from_text_to_code():
    script = (PAGE / "report.js").read_text(encoding="utf-8")
    ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(|XMLHttpRequest|import\("
    )
    assert re.findall(ways, script) == []


@pytest.mark.parametrize("name", ["report.js", "report.css", *PUBLISHED])
def test_a_file_that_is_put_into_the_page_does_not_end_its_element(name):
    assert not re.search(r"</(script|style)", (PAGE / name).read_text(encoding="utf-8"), re.IGNORECASE)
