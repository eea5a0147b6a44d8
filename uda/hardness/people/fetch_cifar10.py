"""Download CIFAR-10 through torchvision and write it as the folders that its card describes."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from uda.core.errors import UserError
from uda.core.files import write_text
from uda.data.cards import CARDS, data_homes
from uda.hardness.people.human import ORDER_FILE, number_within


def fetch_cifar10(root: Path | None = None, archive: Path | None = None, log: Callable[[str], None] = print) -> Path:
    """Make `train/<class>/NNNN.png` and `test/<class>/NNNN.png`, and `test_order.txt`, the test images' official order.

    NNNN counts the images of a class from 0000 in the official order. Existing folders and files are not changed.

    Args:
        root: the folder to make; None: the card's folder in $UDA_DATA, or in ./datasets if $UDA_DATA is not set.
        archive: folder of torchvision's archive. The download is kept there. None: a folder that is removed at the end.
        log: called with lines about what is made.

    Returns:
        The folder.

    Raises:
        UserError: the archive could not be downloaded, or is damaged. torchvision checks its checksum before it opens
            the archive.
    """
    card = CARDS["cifar10"]
    root = root or data_homes()[0] / card.folder
    wanted = [name for name in (*card.domains, ORDER_FILE) if not (root / name).exists()]
    for name in [*card.domains, ORDER_FILE]:
        if name not in wanted:
            log(f"{root / name} exists already")
    if not wanted:
        return root
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as working:
        for domain in card.domains:
            needs_order = domain == "test" and ORDER_FILE in wanted
            if domain not in wanted and not needs_order:
                continue
            data = _torchvision(domain == "train", archive or Path(working))
            names = number_within([data.classes[label] for label in data.targets], domain)
            if domain in wanted:
                part = Path(working) / "part"
                for name, pixels in zip(names, data.data, strict=True):
                    file = part / f"{name}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(file)
                shutil.move(part / domain, root / domain)
                log(f"{root / domain}: {len(names):,} images")
            if needs_order:
                write_text(root / ORDER_FILE, "".join(f"{name}.png\n" for name in names))
                log(f"{root / ORDER_FILE}: the official order of the test images")
    return root


def _torchvision(train: bool, folder: Path):
    """torchvision's CIFAR10 in the folder, downloaded if it is not there."""
    from torchvision.datasets import CIFAR10

    try:
        return CIFAR10(folder, train=train, download=True)
    except (OSError, RuntimeError, EOFError) as error:  # no network, no disk space, wrong checksum
        raise UserError(
            f"CIFAR-10 could not be downloaded from {CIFAR10.url} ({type(error).__name__}: {error}); go online once, "
            f"or copy {CIFAR10.filename} to this machine and name its folder in `archive`"
        ) from None
