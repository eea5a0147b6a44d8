#!/usr/bin/env python3
"""Take the screenshots of the documentation: `python docs/screenshots.py [RUN [RUN ...]]`.

Without run folders, the default task is run first: `uda adapt --cfg digits_avh.yaml`, with AVC and with softmax. The
first run gives the pictures of its page, all of them give the picture of their comparison. It needs playwright (extra
`test`) and a chromium: the machine's, or the one that the environment variable UDA_CHROMIUM names.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser.conftest import FLAGS, find_chromium, load  # noqa: E402
from uda.cli.main import main as uda  # noqa: E402

IMAGES = ROOT / "docs" / "images"
WIDTH = 1200
#: Name, page, colour scheme, the element to begin with (None: the top), and height in pixels.
SHOTS = (
    ("report", "report", "light", None, 1010),
    ("report-dark", "report", "dark", None, 760),
    ("report-selection", "report", "light", "#selection", 830),
    ("report-images", "report", "light", "#images", 900),
    ("report-map", "report", "dark", "#map", 800),
    ("comparison", "comparison", "light", None, 900),
)


def run_default_task(folder: Path) -> list[Path]:
    """Run the default task with two selectors. Returns the run folders."""
    runs = []
    for name, selector in (("digits_avh", "avc"), ("digits_cbst", "softmax")):
        runs.append(folder / name)
        words = ["adapt", "--cfg", f"{name}.yaml", f"output={runs[-1]}"]
        if uda(words):
            raise SystemExit(f"the run with {selector} failed")
    return runs


def take(pages: dict[str, Path]) -> None:
    """Take all screenshots of the pages, by name."""
    from playwright.sync_api import sync_playwright

    program = find_chromium()
    if program is None:
        raise SystemExit("no chromium; install one, or set UDA_CHROMIUM")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        for name, which, scheme, element, height in SHOTS:
            page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)
            load(page, pages[which])
            if element:
                page.eval_on_selector(element, "(place) => window.scrollTo(0, place.offsetTop - 16)")
            page.wait_for_timeout(300)  # pictures that come into view are decoded
            page.screenshot(path=IMAGES / f"{name}.png")
            print(IMAGES / f"{name}.png")
        browser.close()


def main(words: list[str]) -> None:
    """Take the screenshots of the runs that the words name, or of new ones."""
    with tempfile.TemporaryDirectory() as temporary:
        runs = [Path(word).resolve() for word in words] or run_default_task(Path(temporary))
        comparison = Path(temporary) / "comparison.html"
        if len(runs) < 2 or uda(["report", *map(str, runs), "--out", str(comparison)]):
            raise SystemExit("name at least two run folders without problems")
        take({"report": runs[0] / "report.html", "comparison": comparison})


if __name__ == "__main__":
    main(sys.argv[1:])
