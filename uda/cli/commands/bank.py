"""Compute the features of every image once, for runs that train on features."""

import argparse
from functools import partial
from pathlib import Path

from uda.cli.command_line import CommandParser, tell_interrupted
from uda.cli.lists import config_names, listing
from uda.cli.run_options import Once
from uda.core.errors import UserError
from uda.core.interruption import Interruption

#: The commands that run on banks.
COMMANDS = ("adapt", "generalize")

EXAMPLES = (
    ("features of PACS by the config's backbone", "--cfg pacs_avh.yaml"),
    ("another backbone of timm", "--cfg pacs_avh.yaml --backbone resnet50 model.weights=hub"),
    ("four augmented views of each image, for FixMatch", "--cfg pacs_fixmatch.yaml --views 4"),
    ("the network of a run", "--cfg pacs_avh.yaml --run runs/pacs_source/seed0"),
    ("one process per GPU", "torchrun --nproc_per_node=8 {script} --cfg visda_avh.yaml"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Compute the features of every image of every domain once and write them to a feature bank. "
        "`data.features=BANK` then trains any method on these features, in seconds.",
        EXAMPLES,
        "The domains are those of the card, or your own folders in the config. A domain whose file is there is not "
        "computed again, and an interrupted command goes on where it stopped.",
    )
    parser.add_argument(
        "--cfg",
        metavar="FILE",
        action=Once,
        offers=lambda: [name for command in COMMANDS for name in config_names(command)],
        help="a config of `uda adapt` or `uda generalize`: a path, or a name in configs/",
    )
    parser.add_argument("--backbone", metavar="NAME", help="another backbone than the config's (model.backbone)")
    parser.add_argument(
        "--views", type=int, default=0, metavar="N", help="augmented views of each image besides the plain one"
    )
    parser.add_argument(
        "--run",
        type=Path,
        dest="run_folder",
        metavar="RUN",
        help="take the features x of this run's network; runs on them with model.head=null train a new last layer only",
    )
    parser.add_argument(
        "--output", type=Path, dest="folder", metavar="FOLDER", help="the bank (default: banks/<data>_<backbone>)"
    )
    parser.add_list(("configs", "datasets", "backbones"), partial(listing, commands=COMMANDS))
    parser.add_overrides("change a setting, such as model.weights=pypi")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    if not options.cfg:
        parser.error("--cfg FILE is needed (or --list configs, or --help)")
    try:
        with Interruption():
            _make(options)
    except KeyboardInterrupt as interrupt:
        return tell_interrupted(interrupt, "the same command goes on from what is written")[0]
    return 0


def _make(options: argparse.Namespace) -> None:
    from uda.core.distributed import start
    from uda.feature_bank import kind_of_bank, make_bank
    from uda.trained_run import load_run
    from uda.training.device import set_up_process

    if any(word.partition("=")[0] == "data.features" for word in options.overrides):
        raise UserError(
            "command line: data.features: a bank is made of images; remove it, and name the bank by --output"
        )
    words = [*options.overrides, "data.features=null"]  # the config may name the bank that is to be made
    if options.backbone is not None:
        words.append(f"model.backbone={options.backbone}")
    config = kind_of_bank(options.cfg).load(options.cfg, words)
    run = None if options.run_folder is None else load_run(options.run_folder)
    data = Path(config.data.dataset or config.name).stem
    network = config.model.backbone if run is None else f"{run.config.name}_seed{run.config.seed}"
    folder = options.folder or Path("banks") / f"{data}_{network}"
    with start(config.runtime.device) as ranks:
        set_up_process(config.runtime)
        files = make_bank(config, folder, views=options.views, run=run, ranks=ranks)
        if ranks.is_main:
            # The features of a run are the input of its last layer, so the runs on them need no other head.
            head = " model.head=null" if run is not None else ""
            print(f"{len(files)} domains in {folder}; train on them with data.features={folder}{head}")
