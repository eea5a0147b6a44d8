"""Tables in Markdown, and the marked places of a document."""

import re

import pytest

from uda.core.errors import UserError
from uda.report.markdown import has_place, insert_markdown, markdown_table


def test_a_table_by_hand():
    rows = [["CBST", "94.8", ""], ["AVH", "95.4", "+0.6"]]
    assert markdown_table(["Method", "mean", "gain"], rows, "lrr") == (
        "| Method | mean | gain |\n|---|---:|---:|\n| CBST | 94.8 |  |\n| AVH | 95.4 | +0.6 |\n"
    )
    assert markdown_table(["one"], []) == "| one |\n|---|\n"


def test_a_place_is_found_by_its_name():
    assert has_place("<!-- table mine -->", "mine") and not has_place("<!-- table mine -->", "min")


def test_markdown_goes_between_the_markers_and_nowhere_else():
    before = "# Title\n\n<!-- table other -->\nleft\n<!-- end other -->\ntext <!-- comment -->\n"
    after = "\n\nmore | text\n<!-- table last -->\n<!-- end last -->\n"
    document = f"{before}<!-- table mine -->\nold\n\nolder\n<!-- end mine -->{after}"
    expected = f"{before}<!-- table mine -->\n| new |\n<!-- end mine -->{after}"
    assert insert_markdown(document, "mine", "| new |\n") == expected
    assert insert_markdown(expected, "mine", "| new |\n") == expected


@pytest.mark.parametrize(
    "document",
    [
        "nothing here",
        "<!-- table mine -->\n",
        "<!-- end mine -->\n",
        "<!-- table other -->\n<!-- end other -->\n",
        "<!-- end mine -->\n<!-- table mine -->\nall that follows\n",
    ],
)
def test_missing_or_crossed_markers_are_named(document):
    with pytest.raises(UserError, match=re.escape("<!-- table mine --> and <!-- end mine -->")):
        insert_markdown(document, "mine", "| new |\n")
