"""Write a run's network as a file for other programs: ONNX or torch.export."""

import argparse
from functools import partial
from pathlib import Path

from uda.cli.command_line import CommandParser
from uda.cli.run_options import add_saved_run

#: Formats and the default names of their files, which are known before torch is imported.
FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}

EXAMPLES = (
    ("for ONNX Runtime", "runs/digits_avh/seed0 --format onnx"),
    ("for PyTorch without uda", "runs/digits_avh/seed0 --format torch-export --out digits.pt2"),
    ("the label-free choice, checked on other images", "runs/visda_avh/seed0 --format onnx --weights label_free "
     "--images photos"),
)  # fmt: skip


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Write a run's network as a file for other programs. The model takes images (batch, channels, rows, columns) "
        "from 0 to 1, resized and cropped, and normalises them itself. It returns features, logits and probabilities. "
        "The batch may have any size.",
        EXAMPLES,
        "Beside the file is a .json with the classes, the steps from an image file to the model's input, and versions. "
        "The file is read again and compared with the run's network on up to 32 images. If they differ, nothing is "
        'written and the exit code is 2. The format onnx needs pip install "uda-toolkit[export]", or in a checkout '
        'pip install -e ".[export]".',
    )
    add_saved_run(parser)
    parser.add_argument("--format", choices=list(FILES), help="format of the file")
    parser.add_argument("--out", type=Path, help="the file (default: model.onnx or model.pt2)")
    parser.add_argument(
        "--images",
        metavar="IMAGES",
        help="images for the check: a folder, a .txt list or an image file (default: those of the run's target)",
    )
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: CommandParser, options: argparse.Namespace) -> None:
    if options.format is None:
        parser.error(f"--format is needed: {' or '.join(FILES)}")
    from uda.data.given_images import named_images
    from uda.exported_run import check_file_name, export_run
    from uda.trained_run import load_run

    out = options.out or Path(FILES[options.format])
    check_file_name(out, options.format)
    run = load_run(options.run_folder, device="cpu", weights=options.weights)
    given = {}
    if options.images is not None:
        given = {"images": named_images([options.images], run.config.data.reading), "place": options.images}
    check = export_run(run, options.format, out, **given)
    print(f"{run.config.name} (weights {options.weights}): {out} ({out.stat().st_size / 1e6:,.1f} MB) and its .json")
    print(f"checked on {check.describe()}")
