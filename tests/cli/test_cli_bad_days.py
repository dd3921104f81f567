"""What goes wrong with a long run from outside: a full disk, a kill at any moment, two runs at once.

Each text occurs once and is told from the others by its number of tokens and its label, so a record that is lost,
repeated or moved shows; the ledger must have spent once for each.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rapt.local.ledger_report import summarize_ledger
from rapt.wire.privatized_file import read_privatized_file

TEXTS = 2_600  # five chunks and a part of one


def count_of(position):
    return 4 + position * 37 % 11


@pytest.fixture
def source(tmp_path):
    # Three words of the alphabet tell the texts apart, so that each is a release of its own.
    path = tmp_path / "many.csv"
    letters = "abcdefghijklmnop"
    path.write_text(
        "text,label\n"
        + "".join(
            f"{letters[i // 256]} {letters[i // 16 % 16]} {letters[i % 16]} {'film ' * (count_of(i) - 3)},{i % 2}\n"
            for i in range(TEXTS)
        )
    )
    return path


def command(source, target, *options):
    fixed = ["--eta", "10", "--vocabulary", "few-words", "--plain-tokens", "0", "--mechanism", "santext"]
    fixed += ["--keep-order"]
    return [sys.executable, "-m", "rapt", "privatize", str(source), str(target), *fixed, *map(str, options)]


def assert_every_record_once(target: Path, ledger: Path | None = None):
    file = read_privatized_file(target)
    assert [len(record.token_ids) for record in file.records] == [count_of(i) for i in range(TEXTS)]
    assert [record.label for record in file.records] == [i % 2 for i in range(TEXTS)]
    assert not target.with_name(target.name + ".partial").exists()
    if ledger is not None:
        assert summarize_ledger(ledger).releases == TEXTS


def with_files_of_at_most(size):
    """Limit the size of each file, as a full disk limits the size of all."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("with_ledger", [False, True])
def test_a_disk_that_fills_up_in_the_middle_is_one_line_and_the_run_goes_on_from_there(tmp_path, source, with_ledger):
    target, ledger = tmp_path / "out", tmp_path / "ledger"
    options = ["--resume", *(["--ledger", ledger] if with_ledger else ["--no-ledger"])]
    full = subprocess.run(
        command(source, target, *options), capture_output=True, text=True, preexec_fn=with_files_of_at_most(100_000)
    )
    assert full.returncode == (10 if with_ledger else 3)
    errors = [line for line in full.stderr.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("rapt: error: ")
    assert "Traceback" not in full.stderr
    assert not target.exists()
    done = subprocess.run(command(source, target, *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_every_record_once(target, ledger if with_ledger else None)


def test_two_runs_on_one_ledger_at_once_spend_each_text_once(tmp_path, source):
    ledger, targets = tmp_path / "ledger", [tmp_path / "a", tmp_path / "b"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command(source, target, "--ledger", ledger), **quiet) for target in targets]
    for process in runs:
        said = process.communicate()[1]
        assert process.returncode == 0, said
    for target in targets:
        assert_every_record_once(target, ledger)
    # One release each, so both runs sent the same.
    first, second = (read_privatized_file(target).records for target in targets)
    assert first == second


def test_two_runs_on_one_output_at_once_end_with_one_whole_file(tmp_path, source):
    target = tmp_path / "out"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command(source, target, "--overwrite"), **quiet) for _ in range(2)]
    said = [process.communicate()[1] for process in runs]
    codes = [process.returncode for process in runs]
    assert 0 in codes
    for code, lines in zip(codes, said, strict=True):
        assert code in (0, 3)
        if code:
            assert "one process at a time" in lines
    assert_every_record_once(target)


@pytest.mark.slow
@pytest.mark.parametrize("with_ledger", [False, True])
def test_a_run_that_is_killed_at_twenty_random_moments_ends_with_every_record_once(tmp_path, source, with_ledger):
    seed = int(os.environ.get("RAPT_TEST_SEED", "7"))
    moments = random.Random(seed)
    target, ledger = tmp_path / "out", tmp_path / "ledger"
    options = ["--resume", *(["--ledger", ledger] if with_ledger else [])]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begun = time.monotonic()
    subprocess.run(command(source, tmp_path / "timed"), check=True, **quiet)
    whole = time.monotonic() - begun
    kills = 0
    while kills < 20:
        process = subprocess.Popen(command(source, target, *options), **quiet)
        try:
            process.wait(timeout=moments.uniform(0.2, 1.1) * whole)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0, f"seed {seed}, after {kills} kills"
        if target.exists():  # it came to its end, maybe just before the kill: begin again, with the same ledger
            assert_every_record_once(target, ledger if with_ledger else None)
            target.unlink()
    done = subprocess.run(command(source, target, *options), capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    assert_every_record_once(target, ledger if with_ledger else None)
