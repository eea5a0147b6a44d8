"""A run's folder: whose it is, its log, and what it was made with."""

import configparser
import errno
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import yaml
from pydantic import ValidationError

from uda.core.errors import UserError
from uda.core.files import remove_temporaries, write_json, write_text
from uda.core.resources import DISTRIBUTION, PACKAGE
from uda.core.version import __version__
from uda.training.config import RunConfig, differing_keys

#: With these variables git answers for another repository than that of the folder. Its hooks set them.
ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


def print_at_once(line: str) -> None:
    """Print a line and flush the output."""
    print(line, flush=True)


class RunLog:
    """Shows lines to people and, once the run has a folder, writes them to its log.txt with the time of day.

    Args:
        silent: neither shows nor writes. In a job of several processes only one of them speaks.
        show: shows one line. With None the lines go to log.txt only, and no progress bar is drawn.
    """

    def __init__(self, silent: bool = False, show: Callable[[str], None] | None = print_at_once):
        self.silent = silent
        self._show = show
        self._path: Path | None = None
        self._waiting: list[str] = []
        self._full = False

    def __call__(self, message: str) -> None:
        if not self.silent:
            self.note(message)
            if self._show is not None:
                self._show(message)

    @property
    def quiet(self) -> bool:
        """Whether nothing is shown, so that no progress bar should be either."""
        return self.silent or self._show is None

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
            try:
                with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write("\n".join(self._waiting) + "\n")
            except OSError as error:  # what matters more will fail too and say so
                if not self._full:
                    print(f"warning: {self._path} cannot be written: {error.strerror}", file=sys.stderr)
                self._full = True
                return
            self._full = False
            self._waiting.clear()


def _with_new_settings(saved: Mapping[str, object], kind: type[RunConfig]) -> Mapping[str, object]:
    """A saved config with the settings that came later, at their defaults, which change nothing."""
    try:
        return kind.model_validate(saved).model_dump(mode="json")
    except ValidationError:
        return saved


class RunFolder:
    """`runs/<config>/seed<N>/`: made on the first start, refused when another config made it.

    Raises:
        UserError: the folder holds something else, cannot be written, or belongs to another config (keys named).
    """

    def __init__(self, config: RunConfig, check: bool = True):
        self.config = config
        self.path = config.folder
        self.checkpoints = self.path / "checkpoints"
        self.results = self.path / "results.json"
        self._lock_file: IO[str] | None = None
        self.resized = ""
        """`self_training.rounds: 10 -> 15` where the config asks for another number of rounds than the folder's."""
        if check:
            self._check_owner()

    def _check_owner(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output: {self.path} is a file, not a folder")
        saved = self.path / "config.yaml"
        if saved.is_file():
            try:
                content = yaml.safe_load(saved.read_text(encoding="utf-8"))
                content = _with_new_settings(content, type(self.config))
                unread = tuple(f"{section}." for section in self.config.unread)
                length = (key for key in self.config.length if not key.startswith(unread))
                differences = differing_keys(self.config, content, skip=(*self.config.not_identity, *length))
                self.resized = "; ".join(differing_keys(self.config, content))
            except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
                raise UserError(f"{saved} cannot be read; choose another output=..., or delete {self.path}") from None
            if differences:
                longer = all(difference.startswith(self.config.totals) for difference in differences)
                why = ", whose schedules run over all steps, so that it cannot be made longer or shorter" * longer
                raise UserError(
                    f"{self.path} was made by another config ({'; '.join(differences)}){why}; "
                    "choose another output=..., or delete that folder"
                )
        elif self.path.is_dir() and not all(_ours_at_once(path.name) for path in self.path.iterdir()):
            raise UserError(f"output: {self.path} is not empty and not a run folder; choose another output=...")

    def create(
        self,
        command: list[str],
        compute: Mapping[str, object] | None = None,
        weights: Mapping[str, object] | None = None,
    ) -> None:
        """Make an unfinished run's folder with its config.yaml and environment.json, and keep other runs out of it.

        For environment.json: `compute`, the settled runtime settings; `weights`, where the backbone's come from, of a
        run that has begun before those that it names already.

        Raises UserError when the folder cannot be written, or another process is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            for file in (self.results, self.path / "report.html"):  # broken, or of fewer rounds than are wanted now
                file.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"output: {self.path} cannot be written: {error.strerror}") from None
        remove_temporaries(self.path)
        if self.resized or not (self.path / "config.yaml").is_file():
            write_text(self.path / "config.yaml", self.config.to_yaml())
        file = self.path / "environment.json"
        write_json(file, environment(command, compute, self._first_weights(file) or weights))

    def release(self) -> None:
        """Let other processes work in the folder."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    @staticmethod
    def _first_weights(file: Path) -> Mapping[str, object] | None:
        """Which weights an earlier start has begun with; None where no file says so."""
        try:
            found = json.loads(file.read_text(encoding="utf-8")).get("weights")
        except (OSError, ValueError, AttributeError):
            return None
        return found if isinstance(found, Mapping) else None

    def _lock(self) -> None:
        """A lock that ends with this process, however it ends; record locks are not inherited by loader workers."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self._lock_file = open(self.path / ".lock", "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"output: another process is at work in {self.path}; wait for its end, or choose another output=..."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                raise  # those: a file system that knows no locks


def _ours_at_once(name: str) -> bool:
    """Whether a run that was killed in its first moments can have left this file."""
    return name == ".lock" or (name.startswith(".") and name.endswith(".tmp"))


def environment(
    command: list[str], compute: Mapping[str, object] | None = None, weights: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Versions, device and a checkout's commit: what someone needs to understand a difference between two runs."""
    from importlib.metadata import version  # importing timm for its version takes half a second

    import torch

    device = str((compute or {}).get("device"))
    gpu = device if device.startswith("cuda") else None
    return {
        "uda": __version__,
        "commit": code_commit(),
        "command": command,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "timm": version("timm"),
        "numpy": version("numpy"),
        "threads": torch.get_num_threads(),
        "compute": dict(compute or {}),
        "weights": dict(weights or {}),
        "cuda": torch.cuda.get_device_name(gpu) if torch.cuda.is_available() else None,
    }


def code_commit(package: Path = PACKAGE) -> str | None:
    """The commit of the checkout that the code is run from; None for an installed copy.

    `-dirty` says that something that decides a result has changed since. results/ does not.

    Args:
        package: folder of the package `uda`. Its parent is a checkout if it is the top of a git work tree that tracks
            the package and this project's setup.cfg. A virtual environment within a repository of the user's is none.
    """
    checkout, names = package.parent, ["setup.cfg", f"{package.name}/__init__.py"]
    variables = {name: value for name, value in os.environ.items() if name not in ANOTHER_REPOSITORY}

    def git(*arguments: str) -> str:
        answer = subprocess.run(
            ["git", *arguments], cwd=checkout, env=variables, capture_output=True, text=True, timeout=10, check=True
        )
        return answer.stdout.strip()

    setup = configparser.ConfigParser()
    try:
        setup.read(checkout / "setup.cfg", encoding="utf-8")
        if setup.get("metadata", "name", fallback="") != DISTRIBUTION:
            return None
        if git("ls-files", "--full-name", "--error-unmatch", "--", *names).split("\n") != names:
            return None
        commit = git("describe", "--always", "--abbrev=12")
        changed = git("status", "--porcelain", "--", "uda", "configs", "datasets", "tools")
    except (configparser.Error, UnicodeDecodeError, OSError, subprocess.SubprocessError):
        return None
    return commit + "-dirty" * bool(changed)
