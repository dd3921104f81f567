"""The program `rapt` without its start: one process imports what the commands need, and forks another for each call.

Importing takes seconds of a processor, forking milliseconds. A call runs in the directory, with the environment and the
descriptors of its caller; it is a process of its own from its arguments to its exit code. That the program can be
started, and what it imports by itself, is not seen here: tests of that start the real one.

`warm_program` yields the path of an executable `rapt`, on Linux; as a program, this file is the process that forks.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from rapt.cli import main
from rapt.cli.program import run

# What commands import when they run, and more of them than one; none of it computes anything while it is imported.
LOADED = ("torch", "transformers", "scipy.stats", "rapt.cli.program", "rapt.service.http.server")

# The executable: it hands on all it was called with, passes signals by, and ends with the code of the forked process.
CALLER = """#!{python} -IS
import os, signal, socket, sys
control = socket.socket(socket.AF_UNIX)
control.connect({address!r})
variables = [name + "=" + value for name, value in os.environ.items()]
told = os.fsencode("\\0".join([os.getcwd(), str(len(sys.argv)), *sys.argv, *variables]))
socket.send_fds(control, [len(told).to_bytes(4, "big")], [0, 1, 2])
control.sendall(told)
pid = int.from_bytes(control.recv(4), "big")
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
sys.exit(int.from_bytes(control.recv(4), "big"))
"""


@contextmanager
def warm_program(folder: Path) -> Iterator[Path]:
    """The path of an executable `rapt` in the folder, whose calls are forked until the end of the block."""
    address = str(folder / "calls")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        program = folder / "rapt"
        program.write_text(CALLER.format(python=sys.executable, address=address))
        program.chmod(0o700)
        number = listener.fileno()
        command = [sys.executable, __file__, str(number)]
        with subprocess.Popen(command, pass_fds=[number], stdout=subprocess.DEVNULL) as process:
            try:
                yield program
            finally:
                process.terminate()


def fork_for_each_call(listener: socket.socket) -> list[str]:
    """Return the arguments of a call, in a process that was forked for it and looks to it like a new one."""
    waiting = 0
    while True:
        control, _ = listener.accept()
        if os.fork() == 0:
            break
        control.close()
        waiting += 1
        while waiting and os.waitpid(-1, os.WNOHANG)[0]:
            waiting -= 1
    listener.close()
    size, descriptors, _, _ = socket.recv_fds(control, 4, 3)
    told = control.makefile("rb").read(int.from_bytes(size, "big"))
    pid = os.fork()
    if pid != 0:
        wait_for(pid, control)
    control.close()
    folder, count, *rest = os.fsdecode(told).split("\0")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variable.split("=", 1) for variable in rest[int(count) :])
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    return rest[: int(count)]


def wait_for(pid: int, control: socket.socket) -> NoReturn:
    """Tell the caller the id of the process that was forked for it, and its exit code; end it if the caller is gone."""
    control.sendall(pid.to_bytes(4, "big"))
    end = os.pidfd_open(pid)
    if control in select.select([control, end], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        control.sendall((code % 256).to_bytes(4, "big"))
    os._exit(0)


if __name__ == "__main__":
    for name in LOADED:
        __import__(name)
    run(["--version"])  # builds the command line, which is kept
    gc.collect()
    gc.freeze()  # a collection would write to, and so copy, all that was imported
    arguments = fork_for_each_call(socket.socket(fileno=int(sys.argv[1])))
    code = 1
    try:
        sys.argv = arguments
        main()
    except SystemExit as left:
        code = left.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking all the libraries down costs a second
