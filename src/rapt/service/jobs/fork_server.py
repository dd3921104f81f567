"""A fork server: a process that has imported what jobs need, and forks one process after the other on demand.

Importing torch and the library of models takes seconds, forking takes milliseconds. The fork server is forked from the
service at its start, before a model is loaded, a database opened or a thread begun. It has one thread, which computes
nothing, and two descriptors, a socket to the service and standard error; what is asked of a job, its environment and
its settings pass it by, in pipes. So what a process gets from it is the code that the service runs, and nothing of a
tenant, nor of another process before it.

It waits for one process at a time, and each of them dies with it. Its death is noticed when the next one is asked for:
then there is none any more, and the service starts its processes afresh.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

log = logging.getLogger(__name__)

# What a forked process does with what it is asked and with the pipe for its answers.
Runs = Callable[[BinaryIO, BinaryIO], None]

_NUMBER: Final = struct.Struct("!i")
_LONGEST_FORK: Final = 30.0  # a fork server that takes longer is stuck, s
_PR_SET_PDEATHSIG: Final = 1  # number of an option of Linux' `prctl`


class ForkedProcess:
    """A process that a fork server has forked, with those parts of `subprocess.Popen` that its owner uses."""

    def __init__(self, pid: int, *, control: socket.socket, stdin: BinaryIO, stdout: BinaryIO) -> None:
        """Keep its id, which no other process gets before its end was read from `control`, and its two pipes."""
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self.returncode: int | None = None
        self._control = control
        self._guard = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, or minus the number of the signal that ended it; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended within so many seconds.
        """
        with self._guard:
            if self.returncode is None:
                self._control.settimeout(timeout)
                try:
                    said = self._control.recv(_NUMBER.size)
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired("a forked process", timeout or 0) from None
                except OSError:
                    said = b""
                self.returncode = _NUMBER.unpack(said)[0] if said else -signal.SIGKILL  # it died with the fork server
                with suppress(OSError):
                    self._control.send(b"0")  # from here on its id may be another's
            return self.returncode

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it died this moment, with the fork server
                os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """The service's side of a fork server; used by one thread."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        """Keep the socket to it, and its id."""
        self._control, self._pid = control, pid
        self._is_alive = True
        self._last: ForkedProcess | None = None

    def start(self) -> ForkedProcess | None:
        """Fork a process with the environment of this one, and end the one before it. None where that fails."""
        if not self._is_alive:
            return None
        if self._last is not None:  # else the word of its end would be taken for the id of the next
            self._last.kill()
            self._last.wait()
        theirs, stdin = os.pipe()
        try:
            stdout, answers = os.pipe()
        except OSError:
            os.close(theirs)
            os.close(stdin)
            raise
        try:
            self._control.settimeout(_LONGEST_FORK)
            socket.send_fds(self._control, [b"1"], [theirs, answers])
            said = self._control.recv(_NUMBER.size)
        except OSError:
            said = b""
        finally:
            os.close(theirs)
            os.close(answers)
        pid = _NUMBER.unpack(said)[0] if said else 0
        if not pid:
            os.close(stdin)
            os.close(stdout)
            if not said:
                log.warning("the fork server of jobs is gone; each of their processes imports what it needs again")
                self.close()
            return None
        process = self._last = ForkedProcess(
            pid, control=self._control, stdin=os.fdopen(stdin, "wb"), stdout=os.fdopen(stdout, "rb")
        )
        with suppress(OSError):  # it has died already, which whoever waits for it will see
            process.stdin.write(json.dumps(dict(os.environ)).encode() + b"\n")
            process.stdin.flush()
        return process

    def close(self) -> None:
        """End the fork server, and what it has forked."""
        if self._is_alive:
            self._is_alive = False
            self._control.close()
            with suppress(OSError):  # somebody else has waited for it
                os.kill(self._pid, signal.SIGKILL)  # not waited for yet, so the id is still its own
                os.waitpid(self._pid, 0)


@contextmanager
def open_fork_server(run: Runs) -> Iterator[ForkServer | None]:
    """Fork a fork server from this process, and end it with the block.

    This process must have computed nothing in parallel: threads of libraries do not come along, and are waited for.

    Args:
        run: Function that a forked process runs, with the pipe of what it is asked and the pipe for its answers.

    Yields:
        The fork server; None where there cannot be one: the system is not Linux or forks no more, or this process has
        other threads.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        yield None
        return
    # Where it is ignored, nobody is told how a process has ended, and its id is another's at once.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by whoever started this process
            stream.flush()  # else both processes would write what waits
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that are not its own: those of OpenBLAS, which stops them around each fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes
            pid = -1
    if pid == 0:
        try:
            fork_on_demand(there, run)
        finally:
            os._exit(1)
    there.close()
    if pid < 0:
        here.close()
        yield None
        return
    server = ForkServer(here, pid)
    try:
        yield server
    finally:
        server.close()


def fork_on_demand(control: socket.socket, run: Runs) -> NoReturn:
    """Be a fork server until the other end of the socket is closed.

    A message asks for a process with two descriptors, of what it is asked and for its answers. Two numbers go back: the
    id of the process, 0 where it could not be forked, and, once it has ended, its exit code. A message without
    descriptors says that this was read, and that the id may be given to another process.
    """
    os.setsid()  # a Ctrl-C in the terminal is for the service
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, 3))
    _keep_descriptors(2, control.fileno())
    _name_this_process("rapt-forks")
    gc.freeze()  # a collection would write to, and so copy, all that was imported
    ended = 0
    while True:
        asked, pipes, _flags, _address = socket.recv_fds(control, 1, 2)
        if not asked:
            os._exit(0)
        if not pipes:
            os.waitpid(ended, 0)
            continue
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes
            pid = -1
        if pid == 0:
            control.close()
            _run_forked(pipes, run, parent=parent)
        for pipe in pipes:
            os.close(pipe)
        try:
            control.send(_NUMBER.pack(max(pid, 0)))
            if pid > 0:
                ended = pid
                found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                assert found is not None  # it was waited for
                code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
                control.send(_NUMBER.pack(code))
        except OSError:  # the service is gone
            os._exit(0)


def _run_forked(pipes: list[int], run: Runs, *, parent: int) -> NoReturn:
    """Take on the environment, a session and a name of its own, and run."""
    try:
        os.setsid()
        with suppress(AttributeError, OSError):  # a C library without it: a process whose pipe ends leaves by itself
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            _name_this_process("rapt-job")
            asked, answers = os.fdopen(pipes[0], "rb"), os.fdopen(pipes[1], "wb")
            os.environ.clear()
            os.environ.update(json.loads(asked.readline()))
            run(asked, answers)
            os._exit(0)
    except BaseException as error:  # nothing may go on in a copy of the service; its message may hold anything
        log.error("a process of jobs ended by %s", type(error).__name__)
    os._exit(1)


def _keep_descriptors(*kept: int) -> None:
    """Close all others; nothing comes in, and what is printed goes to standard error."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):  # the one of the list itself
                os.close(int(name))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    if sys.__stderr__ is None:  # closed by whoever started the service, and whatever it opened first is there
        os.dup2(0, 2)
    os.dup2(2, 1)


def _name_this_process(name: str) -> None:
    """Show a name of its own in lists of processes, where it has the command of the service."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)
