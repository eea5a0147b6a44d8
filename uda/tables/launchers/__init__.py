"""Launchers: where and how the runs of a table are carried out. Each is a class in a module of this package."""

from uda.tables.launchers import cluster, local, printed  # noqa: F401  (launchers register themselves)
from uda.tables.launchers.launcher import LAUNCHERS, Ended, Launcher

__all__ = ["LAUNCHERS", "Ended", "Launcher"]
