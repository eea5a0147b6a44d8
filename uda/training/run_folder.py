"""The run folder: its owner, its log, and the environment of the run."""

import configparser
import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import yaml
from pydantic import ValidationError

from uda.core.errors import UserError
from uda.core.files import remove_temporaries, write_json, write_text
from uda.core.plain_text import WIDTH, harmless
from uda.core.resources import DISTRIBUTION, PACKAGE
from uda.core.version import __version__
from uda.evaluation.prediction_table import PREDICTIONS
from uda.training.config import RunConfig, differing_keys, of_this_version

#: A message names at most this many keys.
MOST_DIFFERENCES = 8
#: Widest and narrowest lines in a terminal. Longer lines of text are hard to read.
WIDEST, NARROWEST = 140, 40
#: Git hooks set these variables. They make git use another repository than that of the folder.
ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


def print_at_once(line: str) -> None:
    """Print a line and flush the output."""
    print(line, flush=True)


class RunLog:
    """Shows lines to people and writes them with date and time to log.txt, once the run has a folder.

    Args:
        silent: neither show nor write. With several processes only one of them logs.
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
            message = harmless(message, keep="\n")
            self.note(message)
            if self._show is not None:
                self._show(message)

    def table(self, lines: Callable[[int], Iterable[str]]) -> None:
        """Log lines that depend on the width in columns: that of the terminal, and 80 in log.txt."""
        if self.silent:
            return
        for line in lines(WIDTH):
            self.note(harmless(line))
        if self._show is not None:
            for line in lines(self.width):
                self._show(harmless(line))

    @property
    def width(self) -> int:
        """Columns of lines that are shown: those of the terminal; 80 if stdout is none."""
        if sys.stdout is None or not sys.stdout.isatty():
            return WIDTH
        return min(WIDEST, max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns))

    @property
    def quiet(self) -> bool:
        """Whether nothing is shown. Then progress bars should not be shown either."""
        return self.silent or self._show is None

    def note(self, message: str) -> None:
        """Write a message to the file only. It is for errors, which the terminal gets in another way."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._waiting += [f"{stamp}  {line}" for line in message.split("\n")]
        self._flush()

    def open(self, path: Path) -> None:
        """Write all lines to `path`, those so far and those to come."""
        self._path = path
        self._flush()

    def _flush(self) -> None:
        if self._path and self._waiting:
            try:
                with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write("\n".join(self._waiting) + "\n")
            except OSError as error:  # no error: writing the results will fail too and report it
                if not self._full:
                    print(f"warning: {self._path} cannot be written: {error.strerror}", file=sys.stderr)
                self._full = True
                return
            self._full = False
            self._waiting.clear()


def _with_new_settings(saved: Mapping[str, object], kind: type[RunConfig]) -> Mapping[str, object]:
    """A saved config with newer settings added at their defaults, which change nothing."""
    try:
        return kind.model_validate(saved).model_dump(mode="json")
    except ValidationError:
        return saved


class RunFolder:
    """The run folder, `runs/<config>/seed<N>/`. The first start creates it, and only the same config can use it again.

    Raises:
        UserError: the folder holds something else, cannot be written, or belongs to another config. Names the keys.
    """

    def __init__(self, config: RunConfig, check: bool = True):
        self.config = config
        self.path = config.folder
        self.checkpoints = self.path / "checkpoints"
        self.results = self.path / "results.json"
        self._lock_file: IO[str] | None = None
        self.resized = ""
        """`self_training.rounds: 10 -> 15` if the config has another number of rounds than the folder; else empty."""
        if check:
            self._check_owner()

    def _check_owner(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output: {self.path} is a file, not a folder")
        saved = self.path / "config.yaml"
        if saved.is_file():
            try:
                content = yaml.safe_load(saved.read_text(encoding="utf-8"))
                content = _with_new_settings(of_this_version(content), type(self.config))
                unread = tuple(f"{section}." for section in self.config.unread)
                length = (key for key in self.config.length if not key.startswith(unread))
                differences = differing_keys(self.config, content, skip=(*self.config.not_identity, *length))
                self.resized = "; ".join(differing_keys(self.config, content))
            except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
                raise UserError(f"{saved} cannot be read; choose another output=..., or delete {self.path}") from None
            if differences:
                longer = all(difference.startswith(self.config.totals) for difference in differences)
                why = ", and its length cannot change, because schedules depend on it" * longer
                shown = "; ".join(differences[:MOST_DIFFERENCES])
                if len(differences) > MOST_DIFFERENCES:
                    shown += f"; and {len(differences) - MOST_DIFFERENCES} more"
                raise UserError(
                    f"{self.path} holds a run of another config, {content.get('name')} with method "
                    f"{content.get('method')}. It differs in (there -> here) {shown}{why}; "
                    "choose another output=..., or delete that folder"
                )
        elif self.path.is_dir() and not all(_ours_at_once(path.name) for path in self.path.iterdir()):
            raise UserError(f"output: {self.path} is neither empty nor a run folder; choose another output=...")

    def create(
        self,
        command: Sequence[str] | None,
        compute: Mapping[str, object] | None = None,
        weights: Mapping[str, object] | None = None,
    ) -> None:
        """Create an unfinished run's folder with config.yaml and environment.json, and lock it against other processes.

        Args:
            command: the command line, for environment.json; None for a call from Python.
            compute: the settled runtime settings, for environment.json.
            weights: origin of the backbone's weights, for environment.json. An earlier start's entry is kept.

        Raises:
            UserError: the folder cannot be written, or another process works in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            of_the_end = (self.results, self.path / "report.html", self.path / PREDICTIONS)
            for file in of_the_end:  # broken, or of a shorter run
                file.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"output: {self.path} cannot be written: {error.strerror}") from None
        remove_temporaries(self.path)
        if self.resized or not (self.path / "config.yaml").is_file():
            write_text(self.path / "config.yaml", self.config.to_yaml())
        file = self.path / "environment.json"
        write_json(file, environment(command, compute, self._first_weights(file) or weights))

    def release(self) -> None:
        """Unlock the folder for other processes."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    @staticmethod
    def _first_weights(file: Path) -> Mapping[str, object] | None:
        """The weights that an earlier start began with; None if no file names them."""
        try:
            found = json.loads(file.read_text(encoding="utf-8")).get("weights")
        except (OSError, ValueError, AttributeError):
            return None
        return found if isinstance(found, Mapping) else None

    def _lock(self) -> None:
        self._lock_file = locked(self.path, "output", "another output=...")


def locked(folder: Path, setting: str, other: str) -> IO[str] | None:
    """Lock a folder until this process ends in any way, or the file is closed. Loader processes do not inherit it.

    Args:
        folder: the folder.
        setting: what names the folder, for messages.
        other: how to choose another one.

    Returns:
        The open file. None if there are no locks.

    Raises:
        UserError: another process works in the folder.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = open(folder / ".lock", "a", encoding="utf-8")  # noqa: SIM115 (open as long as the work)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise UserError(
            f"{setting}: another process works in {folder}; wait until it ends, or choose {other}"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            raise  # the listed errors mean a file system without locks
    return file


def is_locked(folder: Path) -> bool | None:
    """Whether another process works in a folder. A process must not ask about a folder that it works in itself.

    None if there are no locks.
    """
    try:
        import fcntl

        file = open(folder / ".lock", encoding="utf-8")  # noqa: SIM115 (closed below)
    except ImportError:  # Windows
        return None
    except OSError:  # no such file
        return False
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, because the folder may be read-only
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # a file system without locks
            return None
    return False


def _ours_at_once(name: str) -> bool:
    """Whether a run that was killed at its start can have left this file."""
    return name == ".lock" or (name.startswith(".") and name.endswith(".tmp"))


def environment(
    command: Sequence[str] | None = None,
    compute: Mapping[str, object] | None = None,
    weights: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Versions, device and the checkout's commit. They help to explain a difference between two runs."""
    from importlib.metadata import version  # importing timm for its version takes half a second

    import torch

    device = str((compute or {}).get("device"))
    gpu = device if device.startswith("cuda") else None
    return {
        "uda": __version__,
        "commit": code_commit(),
        "command": None if command is None else list(command),
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
    """The commit of the checkout that the code runs from; None for an installed copy.

    `-dirty` is added if a file that can change a result differs from the commit. Files in results/ cannot.

    Args:
        package: folder of the package `uda`. Its parent is a checkout if it is the top of a git work tree that tracks
            the package and this project's setup.cfg. A virtual environment in a user's repository is not a checkout.
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
