"""Order, length and receipts of records from the shell's side, and outputs that replace no other file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rapt.local.records import restore_order
from rapt.wire.privatized_file import read_privatized_file

TINY = ("--vocabulary", "few-words")


def numbered(tmp_path: Path, count: int) -> Path:
    """Texts that are told apart by their number of tokens, whatever becomes of their words."""
    source = tmp_path / "numbered.csv"
    source.write_text("text,label\n" + "".join(f"{'film ' * (i + 1)},{'ab'[i % 2]}\n" for i in range(count)))
    return source


@pytest.mark.parametrize(
    ("options", "shuffled"),
    [((), True), (("--keep-order",), False), (("--no-label",), False), (("--no-label", "--shuffle"), True)],
)
def test_the_order_of_training_texts_is_drawn_and_that_of_queries_is_kept(rapt, tmp_path: Path, options, shuffled):
    source, target, receipt = numbered(tmp_path, 25), tmp_path / "out", tmp_path / "receipt"
    arguments = ("--eta", 20, *TINY, "--plain-tokens", 0, "--receipt", receipt, *options)
    assert rapt("privatize", source, target, *arguments).code == 0
    file = read_privatized_file(target)
    lengths = [len(record.token_ids) for record in file.records]
    assert sorted(lengths) == list(range(1, 26))
    assert (lengths == list(range(1, 26))) == (not shuffled), "25 records keep their order less than once in 10^25 runs"
    assert file.manifest.arrangement.shuffled == shuffled
    key = json.loads(receipt.read_text())["order_key"]
    if shuffled:
        back = restore_order(file, key=bytes.fromhex(key)).records
        assert [len(record.token_ids) for record in back] == list(range(1, 26))
        assert all(record.label is None or record.label == i % 2 for i, record in enumerate(back))
        if not options:
            assert "texts, which were shuffled" in " ".join(rapt("statement", target).out.split())
    else:
        assert key is None


def test_an_audit_puts_shuffled_records_back_by_the_receipt_and_refuses_without_one(rapt, tmp_path: Path):
    source, target = numbered(tmp_path, 8), tmp_path / "out"
    kept = tmp_path / "kept"
    assert rapt("privatize", source, target, "--eta", 20, *TINY, "--receipt", kept).code == 0
    audit = ("audit", target, "--original", source, "--attacks", "embedding_inversion")
    assert rapt(*audit).code == 0
    (receipt,) = (tmp_path / ".rapt" / "ledger.sqlite.receipts").iterdir()
    receipt.unlink()
    refused = rapt(*audit)
    assert (refused.code, "got none in its folder or above; name the run" in refused.err) == (10, True)
    assert "got none there" in rapt(*audit, "--ledger", tmp_path / ".rapt" / "ledger.sqlite").err
    assert rapt(*audit, "--receipt", kept).code == 0
    assert rapt(*audit, "--receipt", kept, "--ledger", kept).code == 2
    other = tmp_path / "other"
    assert rapt("privatize", source, tmp_path / "again", "--eta", 20, *TINY, "--receipt", other).code == 0
    assert "got another" in rapt(*audit, "--receipt", other).err


def test_an_audit_finds_the_receipt_beside_a_ledger_of_any_name_above_and_is_told_of_one_elsewhere(
    rapt, tmp_path: Path
):
    source, target = numbered(tmp_path, 24), tmp_path / "project" / "out"
    (tmp_path / "safe").mkdir()
    target.parent.mkdir()
    audit = ("audit", target, "--original", source, "--attacks", "embedding_inversion", "--json")
    for ledger, told in ((tmp_path / "mine", ()), (tmp_path / "safe" / "l", ("--ledger", tmp_path / "safe" / "l"))):
        made = rapt("privatize", source, target, "--eta", 20, *TINY, "--ledger", ledger, "--overwrite")
        assert made.code == 0, made.err
        assert rapt(*audit, *told).code == 0
    assert rapt(*audit).code == 10


def test_lengths_are_rounded_up_by_words_that_go_through_the_mechanism_too(rapt, tmp_path: Path):
    source = numbered(tmp_path, 24)
    arguments = ("--vocabulary", "few-words", "--plain-tokens", 0, "--length-bucket", 8, "--keep-order")
    files = []
    for name, eta in (("a", 20), ("b", 20), ("clear", 1e4)):
        assert rapt("privatize", source, tmp_path / name, "--eta", eta, "--allow-weak", *arguments).code == 0
        files.append(read_privatized_file(tmp_path / name))
    assert [len(record.token_ids) for record in files[0].records] == [8] * 8 + [16] * 8 + [24] * 8
    assert files[0].records == files[1].records, "an answered release keeps its padding"
    assert files[0].manifest.arrangement.length_bucket == 8
    # With hardly any noise the words that fill up are to be seen: many different ones, none of them that of the text.
    film = files[2].records[0].token_ids[0]
    assert all(record.token_ids[: i + 1] == (film,) * (i + 1) for i, record in enumerate(files[2].records))
    filled = [ids for i, record in enumerate(files[2].records) for ids in record.token_ids[i + 1 :]]
    assert len(set(filled)) > len(filled) / 2
    shown = json.loads(rapt("ledger", "show", tmp_path / ".rapt" / "ledger.sqlite", "--json").out)
    assert {setting["tokens"] for setting in shown["settings"]} == {24 * 25 // 2}, "public words cost nothing"
    assert "rounded up to a multiple of 8" in " ".join(rapt("statement", tmp_path / "a").out.split())
    audit = rapt("audit", tmp_path / "a", "--original", source, "--attacks", "embedding_inversion", "--lend", 0)
    assert (audit.code, "the attackers are told the true ones" in audit.err) == (0, True)
    assert f"{24 * 25 // 2} tokens" in audit.out


def test_a_text_that_no_bucket_holds_is_refused(rapt, tmp_path: Path):
    source = numbered(tmp_path, 4)
    outcome = rapt("privatize", source, tmp_path / "out", "--eta", 20, *TINY, "--length-bucket", 400)
    assert outcome.code == 0
    long = tmp_path / "long.csv"
    long.write_text("text,label\n" + "film " * 401 + ",a\n")
    refused = rapt("privatize", long, tmp_path / "none", "--eta", 20, *TINY, "--length-bucket", 400)
    assert (refused.code, "cut it there with --truncate 400" in refused.err) == (3, True)


@pytest.mark.parametrize("name", ["in.csv", "out", "out.partial", "my.key", "kept.txt", "nodir/receipt", "folder"])
def test_a_receipt_replaces_no_other_file_and_is_refused_before_the_work(rapt, reviews, tmp_path, name):
    (tmp_path / "in.csv").write_bytes(reviews.read_bytes())
    (tmp_path / "my.key").write_text("ab" * 32 + "\n")
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / "folder").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    overwrite = () if name == "kept.txt" else ("--overwrite",)
    outcome = rapt(
        *("privatize", tmp_path / "in.csv", tmp_path / "out", "--eta", 60, "--vocabulary", "few-words", "--no-ledger"),
        *("--receipt", tmp_path / name, *overwrite),
    )
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_never_replaces_the_key_of_a_ledger_wherever_it_lies(rapt, reviews, tmp_path):
    key = tmp_path / "somewhere"
    key.write_text("ab" * 32)
    arguments = ("privatize", reviews, key, "--eta", 60, "--vocabulary", "few-words", "--no-ledger", "--overwrite")
    outcome = rapt(*arguments)
    assert (outcome.code, "looks like" in outcome.err, key.read_text()) == (2, True, "ab" * 32)
