"""`rapt ledger`, and `rapt privatize --ledger`, from the shell's side."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from rapt.wire.privatized_file import read_privatized_file

TINY = ("--vocabulary", "bert-tiny")


@pytest.fixture
def through(rapt, reviews: Path, tmp_path: Path):
    """Privatizes the reviews through one ledger, into a file of the given name."""

    def run(name: str, *arguments: object):
        return rapt(
            "privatize", reviews, tmp_path / name, "--eta", 30, *TINY, "--ledger", tmp_path / "ledger", *arguments
        )

    return run


def ids(path: Path):
    return [record.token_ids for record in read_privatized_file(path).records]


def test_a_second_run_costs_nothing_until_a_redraw_is_asked_for(through, rapt, tmp_path: Path, never_shows):
    for name, arguments in (("a", ()), ("b", ()), ("c", ("--redraw",))):
        outcome = through(name, *arguments)
        assert outcome.code == 0
        assert "rapt ledger show LEDGER" in outcome.err
    assert ids(tmp_path / "a") == ids(tmp_path / "b") != ids(tmp_path / "c")
    shown = rapt("ledger", "show", tmp_path / "ledger")
    assert (shown.code, shown.err) == (0, "")
    assert "12 of 6 texts" in shown.out
    assert "60 η on one text" in shown.out
    assert "laplace, eta = 30.0" in shown.out
    never_shows(shown.out + (tmp_path / "ledger").read_bytes().decode("latin-1"))


def test_json_is_one_document(through, rapt, tmp_path: Path):
    through("a", "--label-epsilon", 2)
    shown = json.loads(rapt("ledger", "show", tmp_path / "ledger", "--json").out)
    assert shown["releases"] == shown["texts"] == 6
    assert shown["budget"] == 30 * shown["tokens"]
    assert shown["most_label_epsilon"] == 2
    assert [setting["kind"] for setting in shown["settings"]] == ["text", "label"]
    checked = json.loads(rapt("ledger", "verify", tmp_path / "ledger", "--json").out)
    assert checked == {"file": str(tmp_path / "ledger"), "rows": 12, "head": shown["head"]}
    caps = json.loads(rapt("ledger", "cap", tmp_path / "ledger", "--in-all", 9999, "--json").out)
    assert caps == {"file": str(tmp_path / "ledger"), "per_text": None, "in_all": 9999.0}


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
    assert raised.out == "60 η on one text, none in all\n"
    assert through("b", "--redraw").code == 0
    assert rapt("ledger", "cap", tmp_path / "ledger", "--per-text", "inf").out == "none on one text, none in all\n"
    assert through("c", "--redraw").code == 0


def test_the_head_that_was_noted_must_stay_in_the_chain(through, rapt, tmp_path: Path):
    through("a")
    noted = rapt("ledger", "verify", tmp_path / "ledger")
    assert noted.code == 0
    assert noted.err == "6 rows, all in place\n"
    through("b", "--redraw")
    assert rapt("ledger", "verify", tmp_path / "ledger", "--head", noted.out.strip()).code == 0
    outcome = rapt("ledger", "verify", tmp_path / "ledger", "--head", "ab" * 32)
    assert outcome.code == 10
    assert "set back or rewritten" in outcome.err


def test_a_row_that_was_edited_is_named(through, rapt, tmp_path: Path):
    through("a")
    connection = sqlite3.connect(tmp_path / "ledger")
    with connection:
        connection.execute("DROP TRIGGER entries_are_not_changed")
        connection.execute("UPDATE entries SET budget = 0 WHERE sequence = 4")
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
        ("privatize reviews.csv out --eta 3 --cap 3", 2, "name it with --ledger"),
        ("privatize reviews.csv out --eta 3 --redraw", 2, "name it with --ledger"),
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


@pytest.mark.parametrize("value", ["CAST(x'ff7b80' AS TEXT)", "x'ff'", "'{'", "'5'", "'[]'", "'{\"mechanism\": 1}'"])
@pytest.mark.parametrize("column", ["kind", "setting", "released", "time"])
def test_a_damaged_row_is_one_line_and_never_a_defect(rapt, reviews: Path, tmp_path: Path, column, value):
    ledger = tmp_path / "l.db"
    arguments = ("privatize", reviews, tmp_path / "out", "--eta", 20, "--vocabulary", "bert-tiny")
    assert rapt(*arguments, "--ledger", ledger, "--cap", 90).code == 0
    with closing(sqlite3.connect(ledger)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(f"UPDATE entries SET {column} = {value}")
    for command in (("ledger", "show", ledger), (*arguments, "--overwrite", "--ledger", ledger)):
        assert rapt(*command).code in (0, 10)
    assert rapt("ledger", "verify", ledger).code == 10
