"""Several real processes on one ledger, and processes that are killed: nothing is spent twice, nothing is lost."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rapt.errors import LedgerError
from rapt.local.ledger import open_ledger
from rapt.local.ledger_file import Cap, Caps
from rapt.local.ledger_report import summarize_ledger, verify_ledger

TESTS = Path(__file__).parent.parent
TEXTS = 40
ETA = 5.0

# Each process waits for a line, so that all of them begin at once.
PRELUDE = """
import json, os, signal, sys
from pathlib import Path
from rapt.errors import BudgetError
from rapt.local.ledger import open_ledger
from rapt.local.ledger_releases import privatize_through
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.records import Chunk, ChunkSetting
from rapt.wire.manifest import NO_PLAIN_TOKENS
from toy_vocabularies import toy_vocabulary, toy_word

path, number = Path(sys.argv[1]), int(sys.argv[2])
vocabulary = toy_vocabulary([[i / 1000] for i in range(400)])
privatizer = Privatizer(vocabulary, make_mechanism("laplace", vocabulary=vocabulary, eta=5.0), NO_PLAIN_TOKENS)
texts = [f"{toy_word(i)} {toy_word(i + 1)} {toy_word(i + 2)}" for i in range(40)]
stream = secure_stream()

def release(ledger, texts, redraw=False):
    setting = ChunkSetting(privatizer, None, privatizer.manifest(labels=None, randomness=stream.provenance))
    records = privatize_through(ledger, Chunk(0, texts, None), setting, stream=stream, redraw=redraw)
    return [record.token_ids for record in records]

sys.stdin.readline()
"""


def start(program, path, *, number=0):
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program, str(path), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def together(program, path, *, processes):
    """What each of several processes that begin at once prints, as JSON."""
    started = [start(program, path, number=number) for number in range(processes)]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = []
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answers.append(json.loads(out))
    return answers


@pytest.fixture
def path(tmp_path):
    return tmp_path / "releases.ledger"


def test_processes_that_release_the_same_texts_at_once_pay_once_and_agree(path):
    # They also make the ledger and its key at the same moment. Each goes through the texts in an order of its own.
    program = """
order = texts[7 * number:] + texts[:7 * number]
with open_ledger(path) as ledger:
    found = {}
    for start in range(0, 40, 5):
        part = order[start:start + 5]
        found |= dict(zip(part, release(ledger, part)))
print(json.dumps([found[text] for text in texts]))
"""
    answers = together(program, path, processes=4)
    assert answers[1:] == answers[:1] * 3
    found = summarize_ledger(path)
    assert (found.texts, found.releases, found.spent["metric"].most_on_one_text) == (TEXTS, TEXTS, ETA)
    assert verify_ledger(path).rows == TEXTS


def test_processes_at_a_cap_spend_exactly_the_cap(path):
    with open_ledger(path) as ledger:
        ledger.set_caps(Caps(metric=Cap(on_text=7 * ETA)))
    program = """
done = 0
with open_ledger(path) as ledger:
    for attempt in range(5):
        try:
            release(ledger, texts[:1], redraw=True)
            done += 1
        except BudgetError:
            pass
print(done)
"""
    answers = together(program, path, processes=4)
    assert sum(answers) == 7
    assert summarize_ledger(path).spent["metric"].most_on_one_text == 7 * ETA
    assert verify_ledger(path).rows == 8


def test_looking_first_and_spending_later_would_exceed_the_cap(tmp_path):
    # The twin: the same steps outside of one transaction, in the order that two processes may take them.
    one, other = (sqlite3.connect(tmp_path / "twin", isolation_level=None) for _ in range(2))
    one.execute("CREATE TABLE spent (eta)")
    count = "SELECT count(*) FROM spent"
    room = [connection.execute(count).fetchone()[0] < 1 for connection in (one, other)]
    for connection, allowed in zip((one, other), room, strict=True):
        if allowed:
            connection.execute("INSERT INTO spent VALUES (5.0)")
    assert one.execute(count).fetchone()[0] == 2
    one.close()
    other.close()


def killed(program, path):
    process = start(program, path)
    out, err = process.communicate("\n", timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    return out


def test_a_process_killed_after_the_ledger_and_before_the_file_has_spent_and_the_release_is_kept(path):
    program = """
with open_ledger(path) as ledger:
    print(json.dumps(release(ledger, texts)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    drawn = json.loads(killed(program, path))
    assert verify_ledger(path).rows == TEXTS
    again = together(
        "with open_ledger(path) as ledger:\n    print(json.dumps(release(ledger, texts)))\n", path, processes=1
    )
    assert again == [drawn]
    assert summarize_ledger(path).releases == TEXTS


def test_a_process_killed_before_the_commit_has_spent_nothing(path):
    program = """
with open_ledger(path) as ledger:
    release(ledger, texts[:3])
    ledger._append = lambda row, append=ledger._append: (append(row), os.kill(os.getpid(), signal.SIGKILL))
    release(ledger, texts)
"""
    killed(program, path)
    assert verify_ledger(path).rows == 3
    assert summarize_ledger(path).releases == 3


def test_a_process_killed_while_it_makes_the_ledger_leaves_none_that_could_be_taken_for_whole(path):
    program = """
import rapt.local.ledger_file as file
file._iterate_statements = lambda script: os.kill(os.getpid(), signal.SIGKILL)
with open_ledger(path):
    pass
"""
    killed(program, path)
    with pytest.raises(LedgerError, match="must have a new key, got an older one"), open_ledger(path):
        pass
