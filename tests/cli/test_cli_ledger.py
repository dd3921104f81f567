"""`rapt ledger`, and `rapt privatize --ledger`, from the shell's side."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from rapt.cli.program import run
from rapt.wire.privatized_file import read_privatized_file

TINY = ("--vocabulary", "few-words")


@pytest.fixture
def through(rapt, reviews: Path, tmp_path: Path):
    """Privatizes the reviews through one ledger, into a file of the given name."""

    def run(name: str, *arguments: object):
        return rapt(
            "privatize",
            reviews,
            tmp_path / name,
            "--eta",
            30,
            *TINY,
            "--ledger",
            tmp_path / "ledger",
            "--keep-order",
            *arguments,
        )

    return run


def ids(path: Path):
    return [record.token_ids for record in read_privatized_file(path).records]


def test_a_second_run_costs_nothing_until_a_redraw_is_asked_for(through, rapt, tmp_path: Path, never_shows):
    for name, arguments in (("a", ()), ("b", ()), ("c", ("--redraw",))):
        outcome = through(name, *arguments)
        assert outcome.code == 0
        assert "run: rapt ledger show" in outcome.err
    assert ids(tmp_path / "a") == ids(tmp_path / "b") != ids(tmp_path / "c")
    shown = rapt("ledger", "show", tmp_path / "ledger")
    assert (shown.code, shown.err) == (0, "")
    assert "12 of 6 texts" in shown.out
    assert "60 η on one text" in shown.out
    assert "laplace, eta = 30.0" in shown.out
    never_shows(shown.out + (tmp_path / "ledger").read_bytes().decode("latin-1"))


def test_json_is_one_document(through, rapt, tmp_path: Path):
    through("a", "--label-epsilon", 2, "--labels", "negative,positive")
    shown = json.loads(rapt("ledger", "show", tmp_path / "ledger", "--json").out)
    assert shown["releases"] == shown["texts"] == 6
    assert shown["spent"]["metric"] == {"in_all": 30 * shown["tokens"], "most_on_one_text": 30}
    assert shown["spent"]["label"] == {"in_all": 12, "most_on_one_text": 2}
    assert [setting["kind"] for setting in shown["settings"]] == ["metric", "label"]
    checked = json.loads(rapt("ledger", "verify", tmp_path / "ledger", "--json").out)
    assert checked == {"file": str(tmp_path / "ledger"), "rows": 12, "head": shown["head"], "noted": 1}
    caps = json.loads(rapt("ledger", "cap", tmp_path / "ledger", "--of", "label", "--in-all", 9999, "--json").out)
    assert (caps["label"], caps["metric"]) == (
        {"on_text": None, "in_all": 9999.0},
        {"on_text": None, "in_all": None},
    )


def test_a_cap_refuses_before_anything_is_written_and_can_be_raised(through, rapt, tmp_path: Path, never_shows):
    assert through("a", "--cap", 50).code == 0
    refused = through("b", "--redraw")
    assert (refused.code, refused.out) == (10, "")
    assert "asked=30 spent=30 limit=50" in refused.err
    assert refused.err.count("\n") == 1
    never_shows(refused.err)
    assert not (tmp_path / "b").exists()
    other = through("b", "--cap", 60)
    assert other.code == 2
    assert "rapt ledger cap" in other.err
    raised = rapt("ledger", "cap", tmp_path / "ledger", "--per-text", 60)
    assert raised.out == "60 η on one text\n"
    assert through("b", "--redraw").code == 0
    assert rapt("ledger", "cap", tmp_path / "ledger", "--per-text", "inf").out == "none\n"
    assert through("c", "--redraw").code == 0


def test_the_head_that_was_noted_must_stay_in_the_chain(through, rapt, tmp_path: Path):
    through("a")
    noted = rapt("ledger", "verify", tmp_path / "ledger")
    assert noted.code == 0
    assert noted.err == "6 rows, all in place; 1 noted head is among them\n"
    through("b", "--redraw")
    assert rapt("ledger", "verify", tmp_path / "ledger", "--head", noted.out.strip()).code == 0
    outcome = rapt("ledger", "verify", tmp_path / "ledger", "--head", "ab" * 32)
    assert outcome.code == 10
    assert "set back or rewritten" in outcome.err


@pytest.mark.parametrize("head", ["abc", "", "g" * 64, "whole[:63]", "whole+0"])
def test_a_head_that_is_not_64_hex_digits_is_refused_and_is_no_alarm(head, through, rapt, tmp_path: Path):
    through("a")
    whole = rapt("ledger", "verify", tmp_path / "ledger").out.strip()
    head = {"whole[:63]": whole[:63], "whole+0": whole + "0"}.get(head, head)
    outcome = rapt("ledger", "verify", tmp_path / "ledger", "--head", head)
    assert (outcome.code, outcome.out) == (2, "")
    assert "--head must be 64 hexadecimal digits" in outcome.err
    assert outcome.err.count("\n") == 1
    assert rapt("ledger", "verify", tmp_path / "ledger", "--head", whole.upper()).code == 0


@pytest.mark.parametrize("key", ["kept", "gone"])
def test_a_ledger_that_was_emptied_beside_its_receipts_is_refused(key, rapt, reviews: Path, tmp_path: Path):
    run = ("--eta", 30, *TINY)
    assert rapt("privatize", reviews, tmp_path / "a", *run).code == 0
    ledger = tmp_path / ".rapt" / "ledger.sqlite"
    ledger.write_bytes(b"")
    if key == "gone":
        ledger.with_name("ledger.sqlite.key").unlink()
    outcome = rapt("privatize", reviews, tmp_path / "b", *run)
    assert (outcome.code, outcome.out) == (10, "")
    assert "the ledger was emptied or removed; restore it" in outcome.err
    assert not (tmp_path / "b").exists()
    assert ledger.read_bytes() == b""


def test_the_hint_asks_for_the_ledger_unless_it_is_found_from_here_and_names_no_file(
    rapt, reviews: Path, tmp_path: Path, monkeypatch
):
    project, elsewhere = tmp_path / "project", tmp_path / "else where"
    project.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(project)
    run = ("--eta", 30, *TINY)
    assert "run: rapt ledger show\n" in rapt("privatize", reviews, "a", *run).err
    named = rapt("privatize", reviews, "b", *run, "--ledger", elsewhere / "V.db")
    assert "run: rapt ledger show LEDGER (that of --ledger, " in named.err
    monkeypatch.chdir(elsewhere)
    found = rapt("privatize", reviews, project / "c", *run)
    assert "run: rapt ledger show LEDGER (that of --ledger, " in found.err
    assert not [name for name in (str(tmp_path), "V.db") if name in named.err + found.err]


def test_a_row_that_was_edited_is_named(through, rapt, tmp_path: Path):
    through("a")
    connection = sqlite3.connect(tmp_path / "ledger")
    with connection:
        connection.execute("DROP TRIGGER entries_are_not_changed")
        connection.execute("UPDATE entries SET in_all = 0 WHERE sequence = 4")
    connection.close()
    outcome = rapt("ledger", "verify", tmp_path / "ledger")
    assert (outcome.code, outcome.out) == (10, "")
    assert outcome.err.startswith("rapt: error: row 4 of the ledger")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("ledger show none", 10, "got none at 'none'"),
        ("ledger verify reviews.csv", 10, "a file that rapt wrote"),
        ("ledger cap none --per-text 3", 2, "must exist to be capped"),
        ("ledger cap none", 2, "give --per-text"),
        ("ledger verify .", 10, "got the folder '.'; name a file in it"),
        ("privatize reviews.csv out --eta 3 --ledger .", 10, "got the folder '.'; name a file in it"),
        ("privatize reviews.csv out --eta 3 --ledger z.db --ledger-key z.db", 10, "its key must be two files"),
        ("privatize reviews.csv out --eta 3 --ledger .rapt/z --ledger-key ./.rapt/z", 10, "its key must be two files"),
        ("privatize reviews.csv out --eta 3 --cap 3 --no-ledger", 2, "must come without --no-ledger"),
        ("privatize reviews.csv out --eta 3 --redraw --no-ledger", 2, "must come without --no-ledger"),
        ("privatize reviews.csv out --eta 3 --ledger new --insecure-seed 1", 2, "noise from a seed protects nothing"),
        ("privatize reviews.csv out --eta 3 --label-cap -1", 2, "--label-cap must be a finite number above 0"),
        ("privatize reviews.csv reviews.csv.key --eta 3 --ledger-key reviews.csv", 2, "other files than the ledger"),
        ("privatize reviews.csv out --eta 3 --ledger new --cap nan", 2, "--cap must be a finite number above 0"),
        ("privatize reviews.csv out --eta 3 --ledger reviews.csv", 2, "other files than the ledger"),
        ("privatize reviews.csv out --eta 3 --ledger nowhere/new", 10, "must be writable"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing_behind(
    arguments, code, said, rapt, reviews: Path, tmp_path: Path, monkeypatch, never_shows
):
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    outcome = rapt(*arguments.split(), *(TINY if arguments.startswith("privatize") else ()))
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    never_shows(outcome.err)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture(scope="module")
def used(tmp_path_factory) -> Path:
    """A folder with a corpus and a ledger through which it was privatized."""
    folder = tmp_path_factory.mktemp("used")
    (folder / "in.csv").write_text("text,label\na good film,yes\na bad one,no\n")
    arguments = ("privatize", folder / "in.csv", folder / "out", "--eta", 20, *TINY, "--ledger", folder / "l.db")
    assert run([*map(str, arguments), "--cap", "90"]) == 0
    return folder


@pytest.mark.parametrize("value", ["CAST(x'ff7b80' AS TEXT)", "x'ff'", "'{'", "'5'", "'[]'", "'{\"mechanism\": 1}'"])
@pytest.mark.parametrize("column", ["kind", "setting", "released", "time"])
def test_a_damaged_row_is_one_line_and_never_a_defect(rapt, used: Path, tmp_path: Path, column, value):
    shutil.copytree(used, tmp_path, dirs_exist_ok=True)
    ledger = tmp_path / "l.db"
    arguments = ("privatize", tmp_path / "in.csv", tmp_path / "out", "--eta", 20, "--vocabulary", "few-words")
    with closing(sqlite3.connect(ledger)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(f"UPDATE entries SET {column} = {value}")
    for command in (("ledger", "show", ledger), (*arguments, "--overwrite", "--ledger", ledger)):
        assert rapt(*command).code in (0, 10)
    assert rapt("ledger", "verify", ledger).code == 10


def test_a_run_counts_without_being_told_and_a_second_release_is_named(rapt, reviews: Path, tmp_path: Path):
    target = tmp_path / "out"
    arguments = ("privatize", reviews, target, "--vocabulary", "few-words")
    first = rapt(*arguments, "--eta", 20)
    assert "a ledger was begun" in first.err
    ledger = tmp_path / ".rapt" / "ledger.sqlite"
    head = json.loads(rapt("ledger", "show", ledger, "--json").out)["head"]
    assert f"6 texts released, 0 answered by earlier releases of theirs; head {head}" in first.err
    (receipt,) = (tmp_path / ".rapt" / "ledger.sqlite.receipts").iterdir()
    kept = json.loads(receipt.read_text())
    assert (kept["head"], kept["records_sha256"]) == (head, read_privatized_file(target).manifest.records_sha256)
    again = rapt(*arguments, "--eta", 20, "--overwrite")
    assert "0 texts released, 6 answered" in again.err
    assert "whoever sees both sees that they are the same text" in again.err
    more = rapt(*arguments, "--eta", 21, "--overwrite")
    assert "6 of the texts had been released before: this is one more release, and adds up" in more.err


def test_without_a_ledger_a_run_says_that_nothing_is_counted_and_names_a_second_release(
    rapt, reviews: Path, tmp_path: Path
):
    arguments = ("privatize", reviews, tmp_path / "out", "--eta", 20, "--vocabulary", "few-words")
    first = rapt(*arguments, "--no-ledger")
    assert "nothing is counted" in first.err
    assert not (tmp_path / ".rapt").exists()
    assert "its texts are now released twice" in rapt(*arguments, "--no-ledger", "--overwrite").err
    seeded = rapt(*arguments, "--insecure-seed", 1, "--overwrite")
    assert seeded.code == 0
    assert not (tmp_path / ".rapt").exists()


def test_a_ledger_counts_what_several_processes_draw(rapt, reviews: Path, tmp_path: Path):
    arguments = ("--eta", 20, "--vocabulary", "few-words", "--processes", 2)
    arguments += ("--label-epsilon", 1, "--labels", "negative,positive", "--keep-order")
    for name in ("a", "b"):
        assert rapt("privatize", reviews, tmp_path / name, *arguments).code == 0
    first, second = (read_privatized_file(tmp_path / name).records for name in ("a", "b"))
    assert [(record.token_ids, record.label) for record in first] == [
        (record.token_ids, record.label) for record in second
    ]
    shown = json.loads(rapt("ledger", "show", tmp_path / ".rapt" / "ledger.sqlite", "--json").out)
    assert (shown["releases"], shown["rows"]) == (6, 12)


def test_a_ledger_that_was_set_back_is_found_by_the_receipts_beside_it(rapt, reviews: Path, tmp_path: Path):
    arguments = ("privatize", reviews, tmp_path / "out", "--vocabulary", "few-words", "--overwrite", "--eta")
    rapt(*arguments, 20)
    ledger = tmp_path / ".rapt" / "ledger.sqlite"
    before = ledger.read_bytes()
    rapt(*arguments, 21)
    assert rapt("ledger", "verify", ledger).code == 0
    ledger.write_bytes(before)
    outcome = rapt("ledger", "verify", ledger)
    assert (outcome.code, "set back or rewritten" in outcome.err) == (10, True)


def test_a_machine_without_a_keyring_is_told_so_before_any_work(through, rapt, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    monkeypatch.setattr("keyring.core._keyring_backend", None)  # the library remembers what it found
    refused = through("a", "--ledger-key", "keyring")
    assert (refused.code, refused.err.count("\n")) == (10, 1)
    assert "must have a keyring that keeps secrets" in refused.err
    assert not (tmp_path / "ledger").exists()
