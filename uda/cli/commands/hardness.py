"""Study visual hardness (Chen et al., ICML 2020) on any classifier and any images."""

from functools import partial

from uda.cli.command_line import CommandParser
from uda.cli.hardness_commands import add_commands
from uda.cli.lists import listing

LISTS = ("configs", "scores", "degradations", "losses", "datasets", "backbones")

EXAMPLES = (
    ("a table of scores", "score --model runs/cifar10_resnet/seed0 --data cifar10:test --out scores.csv"),
    ("a table for a timm model", "score --model resnet50.tv_in1k --data /data/imagenet/val --out scores.parquet"),
    ("train and follow the scores", "dynamics --cfg cifar10_resnet.yaml --cfg cifar10_wide.yaml"),
    ("compare scores with people", "correlate --scores scores.csv --human cifar10h-counts.npy"),
    ("run the whole study", "all --cfg cifar10_study.yaml"),
    ("get a data set", "fetch cifar10"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "The study of visual hardness (Chen et al., ICML 2020) on any classifier and any images.",
        EXAMPLES,
        f"`{parser.prog} COMMAND --help` says more about each command.",
    )
    parser.add_list(LISTS, partial(listing, commands=["hardness dynamics", "hardness all"]))
    add_commands(parser)
