"""A run's folder: whose it is, its log, and what it was made with."""

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

import uda
from uda.atomic import write_json, write_text
from uda.config import ROOT, Config, differing_keys
from uda.errors import UserError


class RunLog:
    """Plain lines to the terminal and, once there is a folder, to its log.txt with the time of day."""

    def __init__(self):
        self._path: Path | None = None
        self._waiting: list[str] = []

    def __call__(self, message: str) -> None:
        print(message, flush=True)
        self.note(message)

    def note(self, message: str) -> None:
        """Write to the file what the terminal is told by other means: errors."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._waiting += [f"{stamp}  {line}" for line in message.split("\n")]
        self._flush()

    def open(self, path: Path) -> None:
        """Write what was said so far to `path`, and all that follows."""
        self._path = path
        self._flush()

    def _flush(self) -> None:
        if self._path and self._waiting:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("\n".join(self._waiting) + "\n")
            self._waiting.clear()


class RunFolder:
    """`runs/<config>/seed<N>/`: made on the first start, refused when another config made it.

    Raises:
        UserError: the folder holds something else, cannot be written, or belongs to another config (keys named).
    """

    def __init__(self, config: Config):
        self.config = config
        self.path = config.folder
        self.checkpoints = self.path / "checkpoints"
        self.results = self.path / "results.json"
        self._check_owner()

    def _check_owner(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output: {self.path} is a file, not a folder")
        saved = self.path / "config.yaml"
        if saved.is_file():
            try:
                content = yaml.safe_load(saved.read_text(encoding="utf-8"))
                differences = differing_keys(self.config, content)
            except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
                raise UserError(f"{saved} cannot be read; choose another output=..., or delete {self.path}") from None
            if differences:
                raise UserError(
                    f"{self.path} was made by another config ({'; '.join(differences)}); "
                    "choose another output=..., or delete that folder"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"output: {self.path} is not empty and not a run folder; choose another output=...")

    @property
    def finished(self) -> bool:
        """Whether the run has written its results."""
        return self.results.is_file()

    def create(self, command: list[str], compute: Mapping[str, object] | None = None) -> None:
        """Make the folder with its config.yaml and environment.json (`compute`: the settled runtime settings)."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / "config.yaml").is_file():
                write_text(self.path / "config.yaml", self.config.to_yaml())
            write_json(self.path / "environment.json", environment(command, compute))
        except OSError as error:
            raise UserError(f"output: {self.path} cannot be written: {error.strerror}") from None


def environment(command: list[str], compute: Mapping[str, object] | None = None) -> dict[str, object]:
    """Versions, device and commit: what someone needs to understand a difference between two runs."""
    import numpy
    import timm
    import torch
    import torchvision

    return {
        "uda": uda.__version__,
        "commit": _commit(),
        "command": command,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "compute": dict(compute or {}),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
