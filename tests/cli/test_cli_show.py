"""What stands in a privatized file, shown beside the text behind it, and to nobody else."""

import json

import pytest

TEXTS = ["the soup was cold", "we came back twice and it was good", "zanzibarsecret"]


@pytest.fixture
def made(rapt, tmp_path):
    """A file in which nearly nothing stays, one in which all does, and their source."""
    source = tmp_path / "in.csv"
    source.write_text("\n".join(["text,label", *(f"{text},{len(text) % 2}" for text in TEXTS)]) + "\n")
    for name, eta in (("noisy", 5), ("kept", 900)):
        given = ("--vocabulary", "few-words", "--eta", eta, "--allow-weak", "--ledger", tmp_path / "book", "--redraw")
        assert rapt("privatize", source, tmp_path / name, *given).code == 0
    return source


def test_what_stayed_is_marked_and_counted_whatever_the_order_of_the_file(rapt, made, tmp_path):
    shown = rapt("show", tmp_path / "kept", "--original", made, "--ledger", tmp_path / "book")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[:3] == ["text 1", "  in clear  the soup was cold", "  left as   [the] [soup] [was] [cold]"]
    assert lines[-1].endswith("of them (100.0%) as they were")
    found = json.loads(
        rapt("show", tmp_path / "noisy", "--original", made, "--ledger", tmp_path / "book", "--json").out
    )
    assert found["stayed"] == sum(sum(text["stayed"]) for text in found["texts"])
    assert found["texts"][0]["before"] == TEXTS[0].split()
    assert found["tokens"] == sum(len(text["after"]) for text in found["texts"])


def test_without_the_source_there_is_nothing_but_what_left(rapt, made, tmp_path):
    found = json.loads(rapt("show", tmp_path / "noisy", "--first", 2, "--json").out)
    assert (len(found["texts"]), found["stayed"]) == (2, None)
    assert all(text["before"] is None for text in found["texts"])
    assert "soup" not in rapt("show", tmp_path / "noisy", "--first", 0).out


def test_unknown_tokens_are_counted(rapt, tmp_path):
    (tmp_path / "in.csv").write_text("text\nthe \u2603 \u2603 film\n")
    given = ("--vocabulary", "few-words", "--eta", 5, "--no-label", "--no-ledger")
    assert rapt("privatize", tmp_path / "in.csv", tmp_path / "out", *given).code == 0
    shown = rapt("show", tmp_path / "out", "--original", tmp_path / "in.csv").out
    assert "of the source the vocabulary does not know 2" in shown


def test_another_source_vocabulary_or_receipt_is_refused(rapt, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("text\none\n")
    (tmp_path / "short.csv").write_text("text\none\ntwo\nthree\n")
    for arguments, code, said in (
        ("--original other.csv --ledger book", 3, "a text for each record, got 1 for 3"),
        ("--original short.csv --ledger book", 3, "must have the tokens that left, got fewer"),
        ("--original in.csv --receipt none", 10, "got none there"),
        ("--vocabulary minilm", 5, "must be the one that the file was privatized with"),
    ):
        outcome = rapt("show", "kept", *arguments.split())
        assert (outcome.code, outcome.out) == (code, "")
        assert said in outcome.err
        assert "soup" not in outcome.err


def test_a_setting_that_keeps_nearly_everything_is_refused_and_one_that_keeps_much_is_warned_of(rapt, tmp_path):
    (tmp_path / "in.csv").write_text("text\n" + "the film was good and we came back\n" * 9)
    given = ("privatize", tmp_path / "in.csv", tmp_path / "out", "--vocabulary", "few-words", "--no-label", "--eta")
    refused = rapt(*given, 500)
    assert (refused.code, refused.err.count("\n")) == (6, 1)
    assert "eta must change more than a tenth of the tokens, got eta=500" in refused.err
    assert "insist with --allow-weak" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    assert "rapt: warning: 100 % of the tokens of these texts stay" in rapt(*given, 500, "--allow-weak").err
    assert "% of running public text)" in rapt(*given, 20, "--overwrite").err
    said = rapt(*given, 20, "--overwrite", "--json")
    assert json.loads(said.out)["unchanged"].keys() == {"running_text", "own_texts"}
    assert rapt("privatize", tmp_path / "in.csv", tmp_path / "c", "--epsilon", 4, "--allow-weak").code == 2
