"""Work of the trusted side that goes on while the service works: in a thread, because it shares the texts."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """One piece of work in a thread that can be asked to stop, and its result or error."""

    def __init__(self, work: Callable[[Callable[[], bool]], T]) -> None:
        """Start it; `work` gets a function that says whether it should stop."""
        self._stop = Event()
        self._result: list[T] = []
        self._error: BaseException | None = None
        # A daemon: an interrupted demo does not wait for an attack that nobody will read.
        self._thread = Thread(target=self._run, args=(work,), name="rapt-demo", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Callable[[], bool]], T]) -> None:
        try:
            self._result.append(work(self._stop.is_set))
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        self._thread.join(seconds)

    def result(self) -> T:
        """Its result, once it has ended; its error is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def stop(self) -> None:
        """Ask it to stop, and give it a moment."""
        self._stop.set()
        self._thread.join(timeout=5)
