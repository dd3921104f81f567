"""Texts of a program in, a value that may leave out: no file of texts, the same checks, the same ledger."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import rapt
from code_material import code_privatizer
from rapt.errors import BudgetError, CorpusError, MechanismError, RaptError, UsageError
from rapt.local.ledger import open_ledger
from rapt.local.ledger_file import Cap, Caps
from rapt.local.ledger_place import name_receipt, read_receipt
from rapt.local.ledger_report import summarize_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream
from rapt.local.records import restore_order
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.privatized_file import read_privatized_file

SECRET = "zanzibarsecret"
TEXTS = ["the soup was cold", "we came back twice", "a long dull evening", "the best film of the year"]
LABELS = ["bad", "good", "bad", "good"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder of its own: the ledger of a project is found from there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def privatize(texts, *, allow_weak=True, **arguments):
    """The front door for settings that change next to nothing."""
    return rapt.privatize(texts, allow_weak=allow_weak, **arguments)


@pytest.fixture(scope="module")
def tokens(bert_tiny):
    """A setting whose noise changes nothing: what comes back shows what went in, and where."""
    return Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=1e5), NO_PLAIN_TOKENS)


@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        pd.Series(TEXTS, index=[9, 7, 5, 3]),
        pa.array(TEXTS),
        pd.DataFrame({"text": TEXTS, "label": LABELS}),
        pa.table({"text": TEXTS, "label": LABELS}),
        (text for text in TEXTS),
    ],
    ids=["list", "tuple", "array", "series", "arrow array", "frame", "arrow table", "generator"],
)
def test_every_form_of_texts_is_the_same_texts_in_their_order(tokens, texts):
    found = privatize(texts, privatizer=tokens, ledger=None)
    assert found.texts == TEXTS
    assert [len(ids) for ids in found.ids] == [len(record.token_ids) for record in found]
    assert (len(found), found.labels, found.manifest.records) == (4, None, 4)


@pytest.mark.parametrize("table", [pd.DataFrame, pa.table, dict], ids=["frame", "arrow table", "no table"])
def test_labels_come_from_a_column_or_beside_the_texts(tokens, table):
    columns = {"review": TEXTS, "stars": [2.0, 5.0, 2.0, 5.0]}
    if table is dict:
        found = privatize(TEXTS, labels=np.array([2, 5, 2, 5]), privatizer=tokens, ledger=None)
    else:
        found = privatize(table(columns), text_column="review", label_column="stars", privatizer=tokens, ledger=None)
    assert found.labels == ["2", "5", "2", "5"]
    assert found.manifest.labels == ("2", "5")


def test_classes_have_the_kinds_of_labels(tokens):
    found = privatize(TEXTS, labels=[0, 1, 0, 1], classes=[1, 0], privatizer=tokens, ledger=None)
    assert (found.labels, found.manifest.labels) == (["0", "1", "0", "1"], ("1", "0"))


def test_eta_and_epsilon_alone_make_the_setting():
    found = privatize(TEXTS, eta=75.0, labels=LABELS, vocabulary="bert-tiny", ledger=None)
    assert (found.manifest.mechanism.eta, found.manifest.plain_tokens.count) == (75.0, 20)
    assert found.statement().to_text().startswith("Privacy statement")
    with pytest.raises(rapt.VocabularyError):
        privatize(TEXTS, epsilon=4.0, code="no-such-code", ledger=None)


def test_whole_texts_have_ids_and_no_words(bert_tiny):
    found = privatize(TEXTS, labels=LABELS, privatizer=code_privatizer(bert_tiny, epsilon=2.0), ledger=None)
    assert [len(ids) for ids in found.ids] == [1] * 4
    assert "at better odds than e^2.00" in found.statement().unit
    assert repr(found) == "Privatized(4 texts, mechanism='subset', epsilon=2)"
    with pytest.raises(UsageError, match="has no words"):
        _ = found.texts


def test_texts_that_come_again_are_answered_by_the_ledger_of_the_project(tokens, bert_tiny, folder):
    noisy = Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=30.0), NO_PLAIN_TOKENS)
    first, again = (privatize(TEXTS, privatizer=noisy) for _ in range(2))
    assert first.ids == again.ids
    assert first.manifest.arrangement.replayed
    assert summarize_ledger(folder / ".rapt" / "ledger.sqlite").releases == 4
    with open_ledger(folder / "own") as own:
        own.set_caps(Caps(metric=Cap(on_text=30.0)))
        privatize(TEXTS, privatizer=noisy, ledger=own)
        with pytest.raises(BudgetError):
            privatize(TEXTS, privatizer=noisy, ledger=own, redraw=True)
    with pytest.raises(UsageError, match="noise from a seed protects nothing"):
        privatize(TEXTS, privatizer=noisy, stream=insecure_stream(1))


def test_a_saved_file_is_shuffled_if_it_has_labels_and_its_receipt_says_how(tokens, folder):
    many = [f"{text} {number}" for number in range(20) for text in TEXTS]  # one order of 80! is drawn
    found = privatize(many, labels=LABELS * 20, privatizer=tokens, ledger="own.ledger")
    manifest = found.save("out.jsonl")
    written = read_privatized_file("out.jsonl")
    assert written.manifest == manifest
    assert manifest.arrangement.shuffled
    assert written.records != found.file.records
    receipt = read_receipt(name_receipt(folder / "own.ledger", manifest.records_sha256))
    assert restore_order(written, key=bytes.fromhex(receipt["order_key"])).records == found.file.records
    with pytest.raises(UsageError, match="must not exist yet"):
        found.save("out.jsonl")
    found.save("out.jsonl", shuffle=False, overwrite=True)
    assert read_privatized_file("out.jsonl").records == found.file.records
    assert not any(text.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file() for text in many)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"texts": SECRET}, UsageError, "texts must be a list of strings, got a single one"),
        ({"texts": [SECRET, None]}, CorpusError, "record 2 must be a text, got none"),
        ({"texts": [SECRET, math.nan]}, CorpusError, "record 2 must be a text, got none"),
        ({"texts": [SECRET, " "]}, CorpusError, "record 2 must have at least one token"),
        ({"texts": []}, CorpusError, "at least one text"),
        ({"texts": 3}, UsageError, "must be lists, got int"),
        ({"texts": {"text": [SECRET]}}, UsageError, "must be lists, got dict"),
        ({"texts": {SECRET, "a fine day"}}, UsageError, "must be lists, got set"),
        ({"labels": {"a": 1, "b": 2}}, UsageError, "must be lists, got dict"),
        ({"texts": pd.DataFrame({"body": [SECRET]})}, UsageError, "must have the column 'text'"),
        ({"labels": ["a"]}, UsageError, "one label for each text, got 1 label for 2 texts"),
        ({"labels": "ab"}, UsageError, "labels must be a list"),
        ({"labels": ["a", None]}, CorpusError, "record 2 must have a label, got none"),
        ({"labels": ["a", math.nan]}, CorpusError, "record 2 must have a label, got none"),
        ({"labels": ["a", [SECRET]]}, UsageError, "label of record 2 must be a name or a number, got list"),
        ({"labels": ["a", "b"], "classes": ["a", "c"]}, CorpusError, "have one of the 2 labels that were named"),
        ({"labels": ["a", "b"], "label_epsilon": 1.0}, UsageError, "must be listed"),
        ({"labels": ["a", "b"], "label_column": "label"}, UsageError, "must be given once"),
        ({"label_column": "label"}, UsageError, "a column must be of a table"),
        ({"classes": ["a"]}, UsageError, "must come with labels"),
        ({"eta": 75.0}, UsageError, "one guarantee must be named"),
        ({"privatizer": None}, UsageError, "one guarantee must be named"),
        ({"privatizer": None, "eta": 75.0, "epsilon": 4.0}, UsageError, "one guarantee must be named"),
        ({"privatizer": None, "eta": math.nan}, MechanismError, "eta must be"),
        ({"privatizer": None, "epsilon": 20.0}, MechanismError, "epsilon must be at most 16"),
    ],
)
def test_mistakes_are_answered_before_anything_is_paid_for(tokens, folder, arguments, error, said):
    arguments = {"texts": [SECRET, "a fine day"], "privatizer": tokens} | arguments
    with pytest.raises(error, match=said) as caught:
        privatize(arguments.pop("texts"), **arguments)
    assert isinstance(caught.value, RaptError)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


def test_neither_the_value_nor_its_parts_show_a_text(tokens):
    found = privatize([SECRET, SECRET + " again"], privatizer=tokens, ledger=None)
    assert repr(found) == "Privatized(2 texts, mechanism='laplace', eta=100000)"
    assert SECRET not in repr(found[0]) + repr(found[:]) + repr(vars(found))


def test_a_setting_that_keeps_nearly_everything_is_refused_before_anything_is_paid_for(tokens, folder):
    with pytest.raises(MechanismError, match="eta must change more than a tenth of the tokens, got eta=100000 at"):
        privatize(TEXTS, privatizer=tokens, allow_weak=False)
    assert list(folder.iterdir()) == []
    kept = privatize(TEXTS, privatizer=tokens, ledger=None).kept
    assert (kept.own.share, kept.running.share) == (1.0, 1.0)
