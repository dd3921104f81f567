"""The states of a run that are kept, so that one that was killed or paused goes on; and waiting for a store.

Work on a store that is away is done again until it passes, so that no run is lost to it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from threading import Event
from typing import Final, TypeVar

from rapt.errors import DamagedError, UnavailableError, WireError
from rapt.service.storage.blobs import read_blob
from rapt.service.storage.data_directory import explain_not_stored
from rapt.service.storage.job_rows import StoredJob
from rapt.service.storage.job_runs import add_run_state, read_latest_run_state
from rapt.service.storage.store import Store, is_blob, keeps_run_states, naming, release
from rapt.service.tuning.run_state import RunState, load_run_state, pack_run_state, save_run_state, unpack_run_state
from rapt.service.tuning.tuner import TuningCancelled
from rapt.whole_files import sync_folder

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.2  # s; each is twice the one before
_LONGEST_PAUSE: Final = 5.0

T = TypeVar("T")
# A state is offered every few steps, which costs a copy of what is trained, and written after some time, which costs
# the disk.
STEPS_BETWEEN_RUN_STATES: Final = 10


def retry_while_away(work: Callable[[], T], *, should_stop: Callable[[], bool]) -> T:
    """Return what `work` returns, however long its store is away.

    Args:
        work: May be begun again, also after it was done and the answer of the store was lost.
        should_stop: Asked before each pause.

    Raises:
        TuningCancelled: The store was away, and it was time to stop.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            done = work()
        except UnavailableError as error:
            if should_stop():
                raise TuningCancelled from None
            if pause == _FIRST_PAUSE:
                log.warning("a job waits for its store: %s", error)
            Event().wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if pause > _FIRST_PAUSE:
                log.info("a job goes on: its store is back")
            return done


class RunStates:
    """The states of one job: the latest to begin with, and those that are kept on the way."""

    def __init__(self, store: Store, job: StoredJob, *, between: float, should_stop: Callable[[], bool]) -> None:
        """Keep a state every `between` s, and the last one whenever the run is asked to stop.

        While the store is away the run waits, until `should_stop` says yes.
        """
        self._should_stop = should_stop
        self._store = store
        self._job = job
        self._between = between
        self._kept_at = time.monotonic()
        self._stopping = False

    def latest(self) -> RunState | None:
        """The state to go on from; None to begin. The run is the same either way, only longer."""
        found = read_latest_run_state(self._store, self._job)
        if found is None:
            return None
        try:
            if not is_blob(found.folder):
                return load_run_state(self._store.directory.run_state(found.folder))
            content = retry_while_away(
                lambda: read_blob(self._store.blobs, found.folder, size=found.bytes), should_stop=self._should_stop
            )
            with self._store.directory.scratch() as folder:
                unpack_run_state(content, folder)
                return load_run_state(folder)
        except (WireError, DamagedError, FileNotFoundError) as error:
            log.warning("job %s begins again: its state is not good (%s)", self._job.id, type(error).__name__)
            return None

    def stops(self, asked: bool) -> bool:
        """Pass on whether the run is asked to stop: then the state that follows is kept, however early."""
        self._stopping = asked
        return asked

    def keep(self, state: RunState) -> None:
        """Keep a state if it is time, on the disk first and then in the store; the one before goes.

        One that finds no room on the disk is left out: the run goes on, and the one before it stays.
        """
        due = self._stopping or time.monotonic() - self._kept_at >= self._between
        if not due or not state.step:
            return
        self._kept_at = time.monotonic()
        try:
            self._keep_blob(state) if keeps_run_states(self._store) else self._keep_folder(state)
        except OSError as error:
            log.warning("job %s: no state of step %d, %s", self._job.id, state.step, explain_not_stored(error))

    def _keep_blob(self, state: RunState) -> None:
        """Keep a state where workers on every machine reach it."""
        with self._store.directory.scratch() as folder:
            save_run_state(state, folder)
            content = pack_run_state(folder)

        def put() -> None:
            with self._store.directory.stage_bytes(content) as staged:
                name, size, now = staged.sha256, staged.bytes, int(time.time())
                with naming(self._store, staged):
                    kept = add_run_state(self._store, self._job, step=state.step, folder=name, now=now, size=size)
            if not kept:
                release(self._store, [name])

        retry_while_away(put, should_stop=self._should_stop)

    def _keep_folder(self, state: RunState) -> None:
        name, kept = secrets.token_hex(12), False
        try:
            save_run_state(state, self._store.directory.run_state(name))
            sync_folder(self._store.directory.run_states)
            kept = retry_while_away(lambda: self._add(state, name), should_stop=self._should_stop)
        finally:
            if not kept:
                self._store.directory.remove_run_state(name)

    def _add(self, state: RunState, folder: str) -> bool:
        now = int(time.time())
        return add_run_state(self._store, self._job, step=state.step, folder=folder, now=now)
