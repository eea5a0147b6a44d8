"""`python -m benchmarks.run_search`: what validators choose among the trials of searches."""

import re

import pytest

from benchmarks import run_search
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT

#: Two seeds of three trials. `im` finds 0.9 and 0.8 (all of the gain, and three quarters), `snd` the recipe and a loss.
TRIALS = """\
seed,trial,state,values,oracle,im,snd
0,0,finished,"{""lr"":0.1}",0.5,0.1,3
0,1,finished,"{""lr"":0.2}",0.9,0.9,2
0,2,failed,"{""lr"":9}",,,
1,0,finished,"{""lr"":0.1}",0.5,0.1,1
1,1,finished,"{""lr"":0.2}",0.8,0.9,2
1,2,finished,"{""lr"":0.3}",0.9,0.8,1
1,3,finished,"{""lr"":0.3}",0.4,0.2,3
"""


def test_the_table_by_hand():
    lines = run_search.to_markdown(TRIALS).splitlines()[2:]
    assert lines[0] == "| `im` | 85.0 | 88 | 75 | 0.60 |"
    assert lines[1] == "| `snd` | 45.0 | -12 | -25 | -0.63 |"
    assert lines[2:] == [
        "| the recipe as it is | 50.0 | 0 | 0 |  |",
        "| labels: a bound, not a choice | 90.0 | 100 | 100 |  |",
    ]


def test_without_labels_there_is_no_table():
    with pytest.raises(UserError, match="no target labels"):
        run_search.to_markdown("seed,trial,state,values,oracle,im\n0,0,finished,{},,1\n")


@pytest.mark.parametrize(
    "name", sorted(path.stem.removeprefix("search_") for path in (CHECKOUT / "results").glob("search_*.csv"))
)
def test_a_table_of_the_documentation_is_what_its_csv_gives(name):
    text = (CHECKOUT / "docs" / "search.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"<!-- table search_{name} -->\n(.*?)<!-- end search_{name} -->", text, flags=re.DOTALL)
    assert block == run_search.to_markdown((CHECKOUT / "results" / f"search_{name}.csv").read_text(encoding="utf-8"))


def test_searches_are_made_and_go_on(tiny, in_folder, capsys):
    space = in_folder / "space.yaml"
    space.write_text("source.optim.lr: [0.01, 0.1]\n")
    quick = ["self_training.steps=1", "self_training.rounds=1"]
    words = ["--cfg", str(tiny), "--space", str(space), "--trials", "2", "--seeds", "1", "--name", "mine", *quick]
    document = in_folder / "notes.md"
    document.write_text("<!-- table search_mine -->\n<!-- end search_mine -->\n")
    assert run_search.main([*words, "--into", str(document)]) == 0
    assert "| `im` |" in document.read_text() and "| `im` |" in capsys.readouterr().out
    text = (in_folder / "results" / "search_mine.csv").read_text()
    assert len(run_search.read_trials(text)[0][0]) == 2
    assert run_search.main(words) == 0
    assert "seed0 is finished" in capsys.readouterr().out
    assert (in_folder / "results" / "search_mine.csv").read_text() == text


@pytest.mark.parametrize("name", run_search.POOR)
def test_a_poor_recipe_is_a_config(name, in_folder):
    from uda.adaptation.config import AdaptationConfig
    from uda.searches.space import read_space

    config = AdaptationConfig.load(run_search.poor_config(in_folder, name))
    assert config.self_training.portion.max == 0.02 and config.self_training.selector == "avc"
    assert read_space(name, config)[0].settings
    with pytest.raises(UserError, match="give --cfg and --space too"):
        run_search.poor_config(in_folder, "mine")
