"""`python -m benchmarks.run_processes`: the comparison of one process with several."""

import importlib.util
import json

import pytest

from uda.core.resources import CHECKOUT

spec = importlib.util.spec_from_file_location("processes_under_test", CHECKOUT / "benchmarks" / "run_processes.py")
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)


def make_run(folder, rows, class_mean):
    (folder / "rounds/00").mkdir(parents=True)
    lines = ["image,label,class,score,ratio,selected", *(f"{i},{a},x,0.5,1,{b}" for i, (a, b) in enumerate(rows))]
    (folder / "rounds/00/pseudo_labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "results.json").write_text(json.dumps({"final": {"class_mean": class_mean}}))
    return folder


def test_agreement_counts_labels_and_choices(tmp_path):
    """Four images: one has another label, one is chosen by one run alone."""
    first = make_run(tmp_path / "a", [(1, 1), (2, 0), (3, 1), (4, 0)], 0.5)
    second = make_run(tmp_path / "b", [(1, 1), (9, 0), (3, 0), (4, 0)], 0.75)
    assert processes.agreement(first, second) == 0.5 and processes.agreement(first, first) == 1
    assert processes.final(second) == 0.75


def test_the_table(tmp_path, monkeypatch, capsys):
    finals = {
        ("alone", 0): 0.90,
        ("alone", 1): 0.92,
        ("parts", 0): 0.90,
        ("parts", 1): 0.90,
        ("job", 0): 0.8,
        ("job", 1): 1.0,
    }

    def made(options, kind, seed):
        return make_run(tmp_path / f"{kind}{seed}", [(1, 1), (2, int(kind == "job" and seed))], finals[kind, seed])

    monkeypatch.setattr(processes, "run", made)
    document = tmp_path / "page.md"
    document.write_text("<!-- table processes -->\n<!-- end processes -->\n")
    assert processes.main(["--seeds", "2", "--into", str(document)]) == 0
    assert "| 1 | 92.0 | 90.0 | 100.0 | 50.00 % | 50.00 % |" in document.read_text()
    assert (
        "| all | 91.0 ± 1.4 | 90.0 ± 0.0 | 90.0 ± 14.1 | 50.00 % at least | 50.00 % at least |"
        in capsys.readouterr().out
    )


def test_a_run_that_fails_is_shown(tmp_path):
    with pytest.raises(SystemExit, match="no such config"):
        processes.main(["--seeds", "1", "--cfg", "nowhere.yaml", "--runs", str(tmp_path)])
