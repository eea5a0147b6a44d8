"""Reading of checkpoints, as a session reads them."""

from pathlib import Path

from uda.training.checkpoint import Checkpoints, Progress, parse


def load_checkpoint(folder: Path) -> tuple[Progress, dict[str, object]] | None:
    """The newest complete checkpoint of a folder; None if there is none."""
    content = Checkpoints(folder).read()
    return None if content is None else parse(content, str(folder))
