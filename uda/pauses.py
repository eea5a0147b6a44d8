"""Where training pauses to be saved, and where it ends because it was asked to."""

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from uda.engine import EpochState
from uda.interruption import Interrupted

if TYPE_CHECKING:
    from uda.session import Session

#: In a job of several processes they ask each other this often, in seconds, whether to pause.
SECONDS_BETWEEN_LOOKS = 0.5


class RunPauses:
    """Where an epoch pauses: when a checkpoint is due, or the run was asked to end. All ranks answer alike."""

    def __init__(self, run: "Session", first_step: int, save: Callable[[EpochState], None]):
        self.run = run
        self.save_state = save
        self._leaving = False
        self._look_at = first_step
        self._looked = (first_step, time.monotonic())

    def due(self, step: int | None = None) -> bool:
        """Whether to pause after `step` steps; None: at the epoch's end, where one may always ask."""
        run = self.run
        asked, old = run.interruption.requested is not None, run.ranks.is_main and run.checkpoints.due
        if run.ranks.world == 1:
            self._leaving = asked
            return asked or old
        if step is not None and step < self._look_at:
            return False
        now = time.monotonic()
        seconds = (now - self._looked[1]) / max(1, (step or 0) - self._looked[0])
        self._leaving, due, seconds = run.ranks.maximum([asked, asked or old, seconds])
        if step is not None:
            self._look_at = step + max(1, int(SECONDS_BETWEEN_LOOKS / max(seconds, 1e-3)))
            self._looked = (step, now)
        return bool(due)

    def save(self, state: EpochState) -> None:
        """Save, and end the run if it was asked to."""
        self.save_state(state)
        self.leave()

    def leave(self) -> None:
        """End the run if any rank was asked to."""
        if self._leaving:
            raise Interrupted(self.run.interruption.requested or signal.SIGTERM)
