"""When a training saves: where it is told to, by the clock, and before it has to leave.

saver = Saver(run, trainer.checkpoint, lambda: trainer.iteration, minutes=15, keep=3)
for batch in saver.watched(loader):         # what was learned is saved before an error goes on its way
    trainer.step(batch)
    saver.by_the_clock()
    if reason := runtime.stop_reason():
        saver.leave(reason)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from reid_eval.errors import ReidError, Stopped
from reid_eval.progress import say
from reid_models.checkpoints import Checkpoint
from reid_models.runs import RunDir

B = TypeVar("B")
logger = logging.getLogger(__name__)


class Saver:
    """Saves a training's checkpoints in its run.

    Those that are due stay as `keep` and `every` say (see `RunDir.keep_last`). One that the clock, a signal or an error
    asked for is kept until the next one, so that a run that was stopped ends with the files of one that was not.
    `minutes` without a checkpoint are the most that a kill may cost; 0 for no limit.
    """

    def __init__(
        self,
        run: RunDir,
        checkpoint: Callable[[], Checkpoint],
        iteration: Callable[[], int],
        *,
        minutes: float,
        keep: int,
        every: int = 0,
    ) -> None:
        self.run, self.checkpoint, self.iteration = run, checkpoint, iteration
        self.minutes, self.keep, self.every = minutes, keep, every
        self._saved_at = (run.iterations() or [0])[-1]  # the iteration of the newest checkpoint
        self._is_passing = run.is_passing(self._saved_at)
        self._saved_at_s = time.monotonic()

    def save(self, *, passing: bool = False) -> None:
        """Save the training as it is now."""
        self.run.save(self.checkpoint(), passing=passing)
        self.run.keep_last(self.keep, every=self.every)
        self._saved_at, self._is_passing = self.iteration(), passing
        self._saved_at_s = time.monotonic()

    def is_saved(self) -> bool:
        """Whether the checkpoint that is due at this iteration is there."""
        return self.iteration() == self._saved_at and not self._is_passing

    def by_the_clock(self) -> None:
        """Save if nothing has been saved for `minutes`."""
        if self.minutes > 0 and time.monotonic() - self._saved_at_s >= 60 * self.minutes:
            self._save_what_is_new()

    def leave(self, reason: str) -> NoReturn:
        """Save, and raise `Stopped` with the reason."""
        self._save_what_is_new()
        where = f"iteration {self._saved_at} in {self.run.path}"
        raise Stopped(f"{reason}: saved {where}; run it again to go on (train: with --resume)")

    @contextmanager
    def before_errors(self) -> Iterator[None]:
        """Within the block an error that a user can mend, such as a damaged picture, costs nothing learned so far."""
        try:
            yield
        except Stopped:
            raise
        except ReidError:
            try:
                if self._save_what_is_new():
                    say(f"saved iteration {self._saved_at} in {self.run.path}")
            except ReidError as error:
                logger.warning("could not be saved: %s", error)
            raise

    def watched(self, batches: Iterable[B]) -> Iterator[B]:
        """The batches; an error in making one costs nothing learned so far."""
        iterator = iter(batches)
        while True:
            with self.before_errors():
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def _save_what_is_new(self) -> bool:
        if is_new := self.iteration() > self._saved_at:
            self.save(passing=True)
        return is_new
