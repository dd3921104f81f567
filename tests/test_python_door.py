"""What a program or a notebook hands over by mistake, and what it prints."""

import numpy as np
import pytest

import rapt
from rapt.errors import CorpusError, UsageError
from rapt.local.guarantee import state_privacy
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.mechanisms import MECHANISMS, make_mechanism
from rapt.local.privatizer import Privatizer, plan_plain_tokens
from rapt.local.randomness import insecure_stream
from rapt.wire.privatized_file import PrivatizedFile

SECRET = "zanzibarsecret"


@pytest.fixture(scope="module")
def privatizer(bert_tiny):
    plain = plan_plain_tokens(bert_tiny, count=20, pool_size=500, drawn="file", rng=insecure_stream(1).generator)
    return Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=30.0), plain)


@pytest.fixture(scope="module")
def bert_tiny():
    return rapt.load_vocabulary("bert-tiny")


@pytest.mark.parametrize("texts", [SECRET, SECRET.encode()])
def test_a_string_where_a_list_belongs_is_refused(bert_tiny, privatizer, texts):
    for call in (
        bert_tiny.encode,
        bert_tiny.spans,
        lambda t: privatizer.privatize(t, labels=None, stream=insecure_stream(1)),
    ):
        with pytest.raises(UsageError, match="texts must be a list of strings, got a single one") as caught:
            call(texts)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "none; leave it out"), (None, "none; leave it out"), (3, "int; make it a string")],
)
def test_what_is_no_text_is_named_by_its_record(bert_tiny, privatizer, value, said):
    for call in (
        bert_tiny.encode,
        bert_tiny.spans,
        lambda t: privatizer.privatize(t, labels=None, stream=insecure_stream(1)),
    ):
        with pytest.raises(CorpusError, match=f"record 2 must be a text, got {said}"):
            call([SECRET, value, "fine"])


def test_texts_may_be_an_array_and_labels_and_ids_numbers_of_numpy(bert_tiny, privatizer, tmp_path):
    records = privatizer.privatize(np.array(["good film", "bad"]), labels=np.array([1, 0]), stream=insecure_stream(1))
    assert [type(record.label) for record in records] == [int, int]
    ids = np.array(bert_tiny.encode(["good film"])[0])
    assert bert_tiny.decode(ids) == "good film"
    assert bert_tiny.tokens(ids) == ["good", "film"]
    manifest = privatizer.manifest(labels=("no", "yes"), randomness=insecure_stream(1).provenance)
    with rapt.write_privatized_file(str(tmp_path / "out"), manifest) as writer:
        writer.append(rapt_lines(records, manifest))
    assert [record.label for record in rapt.read_privatized_file(str(tmp_path / "out")).records] == [1, 0]


def rapt_lines(records, manifest):
    from rapt.wire.privatized_file import write_record_lines

    return write_record_lines(records, manifest, first_position=0)


@pytest.mark.parametrize("label", [float("nan"), 0.5, "yes", True])
def test_what_is_no_index_of_a_class_is_refused(privatizer, label):
    with pytest.raises(UsageError, match="the label of record 2 must be the index of a class or None, got "):
        privatizer.privatize(["good", "bad"], labels=[0, label], stream=insecure_stream(1))
    with pytest.raises(UsageError, match="every label must be a whole number"):
        RandomizedResponse(classes=2, epsilon=1.0).randomize([label], rng=np.random.default_rng(1))


def test_paths_may_be_strings(tmp_path):
    with rapt.open_ledger(str(tmp_path / "ledger")):
        pass
    assert (tmp_path / "ledger").exists()


def test_no_public_value_prints_more_than_two_lines(bert_tiny, privatizer):
    manifest = privatizer.manifest(labels=(SECRET, "b") * 20, randomness=insecure_stream(1).provenance)
    records = privatizer.privatize([SECRET + " good film " * 60], labels=[0], stream=insecure_stream(1))
    statement = state_privacy(
        bert_tiny, privatizer.mechanism.setting, plain_tokens=privatizer.plain_tokens, labels_sent=True
    )
    values = [
        bert_tiny,
        bert_tiny.bundle,
        privatizer,
        privatizer.plain_tokens,
        manifest,
        records[0],
        statement,
        PrivatizedFile(manifest=manifest, records=tuple(records * 9)),
        insecure_stream(1),
        rapt.LabelledText(text=SECRET),
        rapt.LabelPrivacy(epsilon=1.0),
        rapt.ServiceClient("http://127.0.0.1:1", api_key=SECRET),
        *(make_mechanism(name, vocabulary=bert_tiny, eta=30.0, allow_unproved=True) for name in MECHANISMS),
    ]
    for value in values:
        assert len(repr(value)) <= 200, type(value)
        assert SECRET not in repr(value)
