"""A choice among rows, run by run, without target labels."""

from uda.tables.choice import choices_markdown
from uda.tables.comparison import paired_bootstrap


def report(row, seed, class_mean, im, report="1", angle="1.0"):
    return {
        "row": row,
        "source": "drawn",
        "target": "photo",
        "seed": str(seed),
        "report": report,
        "class_mean": str(class_mean),
        "im": str(im),
        "angle": angle,
    }


def test_by_hand():
    """im chooses B, A and, of two equal ones, the first. An earlier report, another row and a lone run do not count."""
    reports = [
        report("A", 0, 0.1, 9.0, report="0"),
        report("A", 0, 0.5, 1.0),
        report("B", 0, 0.7, 2.0),
        report("A", 1, 0.6, 3.0),
        report("B", 1, 0.8, 2.0),
        report("A", 2, 0.4, 1.0),
        report("B", 2, 0.3, 1.0),
        report("C", 0, 1.0, 9.0),
        report("A", 3, 1.0, 9.0),
    ]
    lines = choices_markdown(reports, [["A", "B"]], "class_mean").splitlines()
    rows = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines[2:])}
    assert "over the 3 runs" in lines[0]
    assert rows["always A"] == ["50.0", "3", "0", ""]
    assert rows["always B"][:3] == ["60.0", "0", "3"]
    assert rows["im"][:3] == [f"{100 * (0.7 + 0.6 + 0.4) / 3:.1f}", "2", "1"]
    assert rows["angle"][:3] == ["50.0", "3", "0"]
    assert rows["oracle"][:3] == [f"{100 * (0.7 + 0.8 + 0.4) / 3:.1f}", "1", "2"]
    gain = paired_bootstrap({"pair": [0.2, 0.0, 0.0]})
    assert rows["im"][3] == f"{100 * gain.mean:+.1f}, n = 3"


def test_rows_without_common_runs_are_left_out():
    assert choices_markdown([report("A", 0, 0.5, 1.0)], [["A", "B"]], "class_mean") == ""
