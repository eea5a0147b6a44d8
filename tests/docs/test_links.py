"""Every link between the Markdown files leads somewhere, and the site has every page."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pkgutil import resolve_name

import pytest
import yaml

from tests.docs.documents import TEXTS, anchors, links
from uda.core.resources import CHECKOUT


def broken(name: str) -> list[str]:
    """The links of a document that lead to no file or to no heading."""
    found = []
    for link in links(TEXTS[name]):
        file, _, anchor = link.partition("#")
        path = ((CHECKOUT / name).parent / file).resolve() if file else CHECKOUT / name
        target = path.relative_to(CHECKOUT).as_posix() if path.is_relative_to(CHECKOUT) else ""
        if not path.exists() or (anchor and anchor not in anchors(TEXTS.get(target, ""))):
            found.append(link)
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    assert broken(name) == []


def test_a_link_to_nowhere_is_found(monkeypatch):
    monkeypatch.setitem(TEXTS, "docs/x.md", "[a](none.md) [b](concepts.md#none) [c](concepts.md#avh-and-avc) [d](#e)")
    assert broken("docs/x.md") == ["none.md", "concepts.md#none", "#e"]


@pytest.mark.parametrize("name", [name for name in TEXTS if name.startswith("docs/")])
def test_pages_of_the_site_link_to_one_another_alone(name):
    """A site holds docs/ alone."""
    assert [link for link in links(TEXTS[name]) if link.startswith("..")] == []


@pytest.mark.parametrize("name", [name for name in TEXTS if name.startswith("docs/")])
def test_names_and_files_of_the_code_are_there(name):
    """`uda.module.name` and `uda/module.py` in backquotes."""
    for dotted in re.findall(r"`(uda(?:\.[A-Za-z_]\w*)+)`", TEXTS[name]):
        assert resolve_name(dotted) is not None
    files = re.findall(r"`((?:uda|tests|examples|benchmarks)/[\w/]+\.py)`", TEXTS[name])
    assert [file for file in files if not (CHECKOUT / file).is_file()] == []


def test_the_site_has_every_page_once():
    site = (CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r": ([\w-]+\.md)$", site.partition("\nnav:")[2], flags=re.MULTILINE)
    assert sorted(pages) == sorted(name.removeprefix("docs/") for name in TEXTS if name.startswith("docs/"))
    assert yaml.safe_load(site)["docs_dir"] == "docs"


@pytest.mark.skipif(not find_spec("mkdocs"), reason="needs the extra docs")
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "AVC" in (tmp_path / "site" / "concepts" / "index.html").read_text(encoding="utf-8")
