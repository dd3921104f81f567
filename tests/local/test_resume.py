"""Going on after a kill: no record lost, repeated or drawn twice, and nothing continued that is not the same run."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from rapt.errors import CorpusError, RaptError, UsageError, WireError
from rapt.local.corpus import privatize_corpus
from rapt.local.ledger import open_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, plan_plain_tokens
from rapt.local.randomness import insecure_stream, secure_stream
from rapt.wire.manifest import LabelPrivacy
from rapt.wire.privatized_file import read_privatized_file

SECRET = "zanzibarsecret"
TEXTS = [" ".join(["good", "film"] * (i % 5) + ["actors"]) for i in range(40)]


def setting(vocabulary, *, eta=30.0, count=2, drawn="file", truncate_to=None):
    plain = plan_plain_tokens(vocabulary, count=count, pool_size=30, drawn=drawn, rng=secure_stream().generator)
    return Privatizer(vocabulary, make_mechanism("laplace", vocabulary=vocabulary, eta=eta), plain, truncate_to)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{text},{'no' if i % 3 else 'yes'}\n" for i, text in enumerate(TEXTS)))
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def partial(tmp_path):
    return tmp_path / "out.partial"


def run(source, target, privatizer, *, stream=None, **options):
    return privatize_corpus(source, target, privatizer=privatizer, stream=stream or secure_stream(), **options)


class Stopped(Exception):
    """What ends a run in a test after its records were written."""


def cut(source, target, partial, privatizer, **options):
    """A run that stopped before its end, with all of its records on the disk; returns what stands there."""

    def stop(records, tokens):
        raise Stopped

    with pytest.raises(Stopped):
        run(source, target, privatizer, on_progress=stop, resume=True, **options)
    assert not target.exists()
    return partial.read_bytes()


def begin(source, target, partial, privatizer, *, lines=9, **options):
    whole = cut(source, target, partial, privatizer, **options)
    partial.write_bytes(b"".join(whole.splitlines(keepends=True)[: lines + 1]))
    return whole.splitlines()[1 : lines + 1]


def assert_whole(target, partial, *, labels=True):
    file = read_privatized_file(target)  # counts and digest are checked here
    counts = [min(2 * (i % 5) + 1, 99) for i in range(40)]
    assert [len(record.token_ids) for record in file.records] == counts
    if labels:
        assert [record.label for record in file.records] == [0 if i % 3 else 1 for i in range(40)]
    assert not partial.exists()
    return file


@pytest.mark.parametrize("drawn", ["file", "record"])
def test_a_run_that_was_cut_anywhere_is_finished(bert_tiny, source, target, partial, drawn):
    privatizer = setting(bert_tiny, drawn=drawn)
    whole = cut(source, target, partial, privatizer)
    for at in [
        0,
        1,
        len(whole) // 90,
        *range(len(whole) // 3, len(whole), len(whole) // 7),
        len(whole) - 1,
        len(whole),
    ]:
        partial.write_bytes(whole[:at])
        run(source, target, setting(bert_tiny, drawn=drawn), resume=True)
        file = assert_whole(target, partial)
        kept = max(whole[:at].count(b"\n") - 1, 0)
        assert target.read_bytes().splitlines()[1 : kept + 1] == whole.splitlines()[1 : kept + 1]
        if kept:
            assert file.manifest.plain_tokens == privatizer.plain_tokens
        target.unlink()


def test_what_was_not_kept_is_drawn_anew(bert_tiny, source, target, partial):
    kept = begin(source, target, partial, setting(bert_tiny, eta=1.0), lines=20)
    before = partial.read_bytes()
    results = []
    for _ in range(2):
        partial.write_bytes(before)
        run(source, target, setting(bert_tiny, eta=1.0), resume=True)
        results.append(target.read_bytes().splitlines()[1:])
        target.unlink()
    assert results[0][:20] == results[1][:20] == kept
    assert not set(results[0][20:]) & set(results[1][20:])


def test_a_seed_does_not_repeat_the_noise_of_the_first_records(bert_tiny, tmp_path, target, partial):
    source = tmp_path / "same.csv"
    source.write_text("text\n" + "good film actors music story\n" * 30)
    privatizer = setting(bert_tiny, eta=1.0, count=0)
    kept = begin(source, target, partial, privatizer, lines=10, label_column=None, stream=insecure_stream(3))
    run(source, target, privatizer, label_column=None, stream=insecure_stream(3), resume=True)
    assert not set(kept) & set(target.read_bytes().splitlines()[11:])


def test_without_anything_begun_it_begins(bert_tiny, source, target, partial):
    run(source, target, setting(bert_tiny), resume=True)
    assert_whole(target, partial)


def test_a_run_that_fails_leaves_its_records_only_when_resume_was_asked(bert_tiny, tmp_path, target, partial):
    long = tmp_path / "long.csv"
    long.write_text("text\n" + "good film\n" * 601)

    def stop(records, tokens):
        raise KeyboardInterrupt

    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run(long, target, setting(bert_tiny, count=0), label_column=None, resume=resume, on_progress=stop)
        assert partial.exists() is resume
    run(long, target, setting(bert_tiny, count=0), label_column=None, resume=True)
    assert read_privatized_file(target).manifest.records == 601


def test_an_unfinished_run_is_neither_lost_by_forgetting_resume_nor_kept_against_overwrite(
    bert_tiny, source, target, partial
):
    kept = begin(source, target, partial, setting(bert_tiny, eta=1.0))
    before = partial.read_bytes()
    with pytest.raises(UsageError, match="go on with `resume=True`, or begin anew with `overwrite=True`"):
        run(source, target, setting(bert_tiny, eta=1.0))
    assert partial.read_bytes() == before
    run(source, target, setting(bert_tiny, eta=1.0), overwrite=True)
    assert_whole(target, partial)
    assert not set(kept) & set(target.read_bytes().splitlines())


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("content", [b"mine\n", b"mine", b'{"schema": "mine"}\n'])
def test_a_file_of_somebody_else_under_the_name_of_the_work_stays(bert_tiny, source, target, partial, content, options):
    partial.write_bytes(content)
    with pytest.raises((UsageError, WireError)):
        run(source, target, setting(bert_tiny), **options)
    assert partial.read_bytes() == content
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"eta": 31.0}, {}),
        ({"count": 3}, {}),
        ({"drawn": "record"}, {}),
        ({}, {"labels": ("yes", "no")}),
        ({}, {"label_column": None}),
        ({}, {"label_privacy": LabelPrivacy(epsilon=1.0), "labels": ("no", "yes")}),
        ({}, {"stream": insecure_stream(4)}),
    ],
)
def test_other_settings_are_refused_and_nothing_is_lost(bert_tiny, source, target, partial, change, options):
    begin(source, target, partial, setting(bert_tiny))
    before = partial.read_bytes()
    with pytest.raises(WireError, match=r"must be continued with .*remove its \.partial file"):
        run(source, target, setting(bert_tiny, **change), resume=True, **options)
    assert partial.read_bytes() == before
    assert not target.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:5],  # shorter than what was written
        lambda lines: [lines[0], *lines[2:]],  # a text is gone
        lambda lines: [lines[0], f"{SECRET} {SECRET},yes", *lines[2:]],  # another text
        lambda lines: [lines[0], lines[1].replace("yes", "no"), *lines[2:]],  # another label
    ],
)
def test_another_source_is_refused_without_its_text(bert_tiny, source, target, partial, change):
    begin(source, target, partial, setting(bert_tiny))
    lines = source.read_text().splitlines()
    source.write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(CorpusError, match="the source must be the one that the unfinished output was begun") as caught:
        run(source, target, setting(bert_tiny), labels=("no", "yes"), resume=True)
    assert SECRET not in str(caught.value)
    assert partial.exists()


def test_another_cut_of_long_texts_is_refused(bert_tiny, source, target, partial):
    begin(source, target, partial, setting(bert_tiny, truncate_to=3))
    with pytest.raises(CorpusError, match="got another text as record 3"):
        run(source, target, setting(bert_tiny), resume=True)


@pytest.mark.parametrize("damage", [b"{}\n", b"damaged\n", b'{"token_ids":[-1]}\n'])
def test_a_damaged_line_is_refused(bert_tiny, source, target, partial, damage):
    begin(source, target, partial, setting(bert_tiny))
    with partial.open("ab") as stream:
        stream.write(damage)
    with pytest.raises(WireError, match="record 10"):
        run(source, target, setting(bert_tiny), resume=True)


def test_something_else_under_the_name_is_refused(bert_tiny, source, target, partial):
    partial.write_text("text,label\nmine,1\n")
    with pytest.raises(UsageError, match="got a file that rapt did not begin"):
        run(source, target, setting(bert_tiny), resume=True)
    assert partial.read_text() == "text,label\nmine,1\n"


def test_no_reader_takes_an_unfinished_file_for_a_whole_one(bert_tiny, source, target, partial):
    for lines in (0, 9, 40):
        begin(source, target, partial, setting(bert_tiny), lines=lines)
        with pytest.raises(WireError, match=r"must hold what its manifest counts|must match the digest"):
            read_privatized_file(partial)
        partial.unlink()


def test_a_run_that_was_killed_just_before_its_end_is_finished(bert_tiny, source, target, partial):
    run(source, target, setting(bert_tiny))
    whole = target.read_bytes()
    target.rename(partial)
    run(source, target, setting(bert_tiny), resume=True)
    assert target.read_bytes() == whole


def test_two_runs_on_one_output_do_not_mix(bert_tiny, source, target, partial):
    refused = []

    def second(records, tokens):
        with pytest.raises(CorpusError, match="one process at a time") as caught:
            run(source, target, setting(bert_tiny), resume=True)
        refused.append(caught)

    run(source, target, setting(bert_tiny), on_progress=second)
    assert len(refused) == 1
    assert_whole(target, partial)


def test_a_resumed_run_spends_nothing_twice_in_its_ledger(bert_tiny, source, target, partial, tmp_path):
    privatizer = setting(bert_tiny)

    def spent_so_far():
        from rapt.local.ledger_report import summarize_ledger

        found = summarize_ledger(tmp_path / "ledger")
        return found.rows, found.releases, found.spent

    with open_ledger(tmp_path / "ledger") as ledger:
        begin(source, target, partial, privatizer, ledger=ledger)
    spent = spent_so_far()
    with open_ledger(tmp_path / "ledger") as ledger:
        run(source, target, setting(bert_tiny), ledger=ledger, resume=True)
    assert spent_so_far() == spent
    assert_whole(target, partial)


def test_records_that_a_ledger_does_not_know_are_not_continued_with_it(bert_tiny, source, target, partial, tmp_path):
    with open_ledger(tmp_path / "another") as another:
        begin(source, target, partial, setting(bert_tiny), ledger=another)
    with (
        open_ledger(tmp_path / "ledger") as ledger,
        pytest.raises(UsageError, match="record 1 of the unfinished output must be accounted for"),
    ):
        run(source, target, setting(bert_tiny), ledger=ledger, resume=True)


KILLS = 3  # of five chunks; the last run finishes what is left


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_is_killed_again_and_again_ends_with_every_record_once(tmp_path, target, partial, processes):
    # Lengths vary from text to text, so that a lost, repeated or moved record shows.
    source = tmp_path / "many.csv"
    counts = [1 + i * 37 % 11 for i in range(2_600)]
    source.write_text("text,label\n" + "".join(f"{'film ' * n},{n % 2}\n" for n in counts))
    command = [sys.executable, "-m", "rapt", "privatize", source, target, "--eta", "30", "--vocabulary", "bert-tiny"]
    command += ["--plain-tokens", "0", "--resume", "--keep-order", "--processes", str(processes)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    seen = 0
    for _ in range(KILLS):
        process = subprocess.Popen(command, **quiet)
        while process.poll() is None and (not partial.exists() or partial.stat().st_size <= seen):
            try:
                process.wait(timeout=0.01)
            except subprocess.TimeoutExpired:
                continue
        assert process.returncode is None, "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not target.exists()
        seen = partial.stat().st_size
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file = read_privatized_file(target)
    assert [len(record.token_ids) for record in file.records] == counts
    assert [record.label for record in file.records] == [n % 2 for n in counts]
    assert not partial.exists()


def test_a_setting_that_cannot_be_is_refused(bert_tiny, source, target):
    with pytest.raises(UsageError, match="processes must be at least 1"):
        run(source, target, setting(bert_tiny), processes=0)
    with pytest.raises(RaptError):
        run(source, target, replace(setting(bert_tiny), truncate_to=0))
