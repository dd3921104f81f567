"""The trusted half imports and works where the heavy half is not installed."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, sys

HEAVY = {"torch", "transformers", "fastapi", "sqlalchemy", "pydantic", "scipy", "jinja2", "pandas", "sklearn"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import rapt, rapt.local, rapt.wire
for package in (rapt.local, rapt.wire):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # The kernel is a library that ctypes loads; its name alone makes it look like a module.
        if module.name != "rapt.local.native._nearest":
            importlib.import_module(module.name)
assert not HEAVY & set(sys.modules), sorted(HEAVY & set(sys.modules))

from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS

vocabulary = load_vocabulary("bert-tiny")
mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=50.0)
records = Privatizer(vocabulary, mechanism, NO_PLAIN_TOKENS).privatize(["a text"], labels=None, stream=secure_stream())
print(len(records[0].token_ids))
"""


def test_the_trusted_half_works_with_everything_heavy_blocked():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"


# What Windows lacks. The stand-in for its locks of byte ranges does what they do, by those of this system.
WINDOWS = """
import os, subprocess, sys
import fcntl as own

class Locks:
    LK_NBLCK = 2
    def locking(self, descriptor, mode, size):
        own.lockf(descriptor, own.LOCK_EX | own.LOCK_NB, size)

sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))
sys.modules["msvcrt"] = Locks() if sys.argv[1] == "locks" else None
for name in ("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "fork", "geteuid", "getuid", "memfd_create", "sysconf"):
    delattr(os, name)
from rapt.cli.program import run

if sys.argv[2] == "hold":
    from pathlib import Path
    from rapt.whole_files import open_alone
    with open_alone(Path("out.jsonl.partial")):
        print("held", flush=True)
        sys.stdin.read()
    sys.exit()
sys.exit(max(run(command.split()) for command in sys.argv[2:]))
"""
PRIVATIZE = "privatize in.csv out.jsonl --eta 50 --vocabulary bert-tiny"


@pytest.fixture
def on_windows(tmp_path):
    """A function that runs commands in a folder with a corpus, without what Windows lacks."""
    (tmp_path / "in.csv").write_text("text,label\na good film,1\nno film,0\n")

    def run(*commands, locks="locks"):
        command = [sys.executable, "-c", WINDOWS, locks, *commands]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_the_trusted_half_works_without_what_windows_lacks(on_windows, tmp_path):
    done = on_windows(PRIVATIZE, "statement out.jsonl", "ledger show")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {".rapt", "in.csv", "out.jsonl"}
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    served = on_windows("serve")
    assert served.returncode == 2
    assert "this command needs Linux or macOS" in served.stderr


def test_the_locks_of_windows_keep_a_second_process_out_and_leave_nothing(on_windows, tmp_path):
    command = [sys.executable, "-c", WINDOWS, "locks", "hold"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        second = on_windows(PRIVATIZE)
        assert second.returncode != 0
        assert "written by one process at a time" in second.stderr
        holder.stdin.close()
    assert holder.returncode == 0
    assert not list(tmp_path.glob("*.lock"))


def test_where_files_cannot_be_locked_nothing_is_written(on_windows, tmp_path):
    done = on_windows(PRIVATIZE, locks="none")
    assert done.returncode == 2
    assert "files must be locked while they are written" in done.stderr
    assert not list(tmp_path.glob("out*"))
