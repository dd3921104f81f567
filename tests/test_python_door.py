"""What a program or a notebook hands over by mistake, and what it prints."""

import numpy as np
import pytest

import rapt
from rapt.errors import CorpusError, UsageError
from rapt.local.client.objects import read_job_info
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


TEXTS, LABELS = ["the soup was cold", "we came back twice"] * 3, ["bad", "good"] * 3


def door(**arguments):
    """A call of `privatize` with one mistake in it."""
    given = {"eta": 100.0, "vocabulary": "bert-tiny", "ledger": None, **arguments}
    return lambda: rapt.privatize(given.pop("texts", TEXTS), **given)


def of_file(source="a.csv", target="out.jsonl", **arguments):
    """A call of `privatize_corpus` with one mistake in it."""

    def call():
        vocabulary = rapt.load_vocabulary("bert-tiny")
        mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=100.0)
        privatizer = Privatizer(vocabulary=vocabulary, mechanism=mechanism, plain_tokens=rapt.NO_PLAIN_TOKENS)
        given = {"privatizer": privatizer, "stream": insecure_stream(1), **arguments}
        return rapt.privatize_corpus(source, target, **given)

    return call


MISTAKES = {
    "a string for texts": door(texts=SECRET),
    "bytes for texts": door(texts=SECRET.encode()),
    "bytes among texts": door(texts=[SECRET.encode()]),
    "a number for texts": door(texts=5),
    "nothing for texts": door(texts=None),
    "no texts": door(texts=[]),
    "NaN among texts": door(texts=[SECRET, float("nan")]),
    "None among texts": door(texts=[SECRET, None]),
    "an empty text": door(texts=[SECRET, ""]),
    "lists for texts": door(texts=[[SECRET]]),
    "a mapping for texts": door(texts={SECRET: 1}),
    "a set of texts": door(texts={SECRET}),
    "no guarantee": door(eta=None),
    "two guarantees": door(epsilon=4),
    "eta as a string": door(eta="75"),
    "eta of 0": door(eta=0),
    "eta below 0": door(eta=-1),
    "eta that is NaN": door(eta=float("nan")),
    "eta that is True": door(eta=True),
    "eta that changes nothing": door(eta=1e6),
    "epsilon as a string": door(eta=None, epsilon="4"),
    "epsilon of 0": door(eta=None, epsilon=0),
    "epsilon of 100": door(eta=None, epsilon=100),
    "half a plain token": door(plain_tokens=1.5),
    "plain tokens as a string": door(plain_tokens="20"),
    "plain tokens below 0": door(plain_tokens=-1),
    "a billion plain tokens": door(plain_tokens=10**9),
    "half a token to keep": door(truncate_to=1.5),
    "no token to keep": door(truncate_to=0),
    "a vocabulary that is not there": door(vocabulary="nope"),
    "no vocabulary": door(vocabulary=None),
    "an unknown mechanism": door(mechanism="gauss"),
    "a mechanism for its name": door(mechanism=object()),
    "a code that is not there": door(eta=None, epsilon=4, code="nope"),
    "a string for labels": door(labels="abcdef"),
    "one label for six texts": door(labels=["a"]),
    "NaN among labels": door(labels=[1, float("nan")] * 3),
    "objects for labels": door(labels=[object()] * 6),
    "a label of its own for each text": door(labels=list("abcdef")),
    "label_epsilon without classes": door(labels=LABELS, label_epsilon=1),
    "label_epsilon as a string": door(labels=LABELS, label_epsilon="1", classes=["bad", "good"]),
    "a class that is not listed": door(labels=LABELS, classes=["bad"]),
    "a class twice": door(labels=LABELS, classes=["bad", "bad", "good"]),
    "classes without labels": door(classes=["bad"]),
    "False for no ledger": door(ledger=False),
    "a folder for a ledger": door(ledger="."),
    "another file for a ledger": door(ledger="a.csv"),
    "a name for a privatizer": door(privatizer="laplace"),
    "a generator of NumPy for a stream": door(stream=np.random.default_rng(1)),
    "a source that is not there": of_file("b.csv"),
    "a source of an unknown format": of_file("a.xls"),
    "the source as the output": of_file("a.csv", "a.csv"),
    "a folder as the output": of_file("a.csv", "."),
    "a folder that is not there": of_file("a.csv", "no/out.jsonl"),
    "a column that is not there": of_file(text_column="t"),
    "no stream": of_file(stream=None),
    "half a process": of_file(processes=1.5),
    "a delimiter of two letters": of_file(delimiter=";;"),
    "a privatized file that is none": lambda: rapt.read_privatized_file("a.csv"),
    "the name of a vocabulary for one": lambda: make_mechanism("laplace", vocabulary="bert-tiny", eta=5.0),
    "a seed that is a word": lambda: rapt.insecure_stream(SECRET),
    "a host for a URL": lambda: rapt.ServiceClient("localhost:1"),
    "a text for a privatized file": lambda: rapt.ServiceClient("http://127.0.0.1:1").upload(SECRET),
    "a table for a privatized file": lambda: rapt.ServiceClient("http://127.0.0.1:1").upload("a.csv"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_of_64_typical_mistakes_is_one_line_in_the_words_of_python(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(f"text,label\n{SECRET},bad\nwe came back twice,good\n")
    with pytest.raises(rapt.RaptError) as caught:
        MISTAKES[name]()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) > 20
    assert "--" not in said
    assert SECRET not in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_what_a_function_takes_besides_what_it_says_is_left_to_it(tmp_path):
    whole = rapt.plan_plain_tokens(
        rapt.load_vocabulary("bert-tiny"),
        count=np.int64(3),
        pool_size=50,
        drawn="record",
        rng=insecure_stream(1).generator,
    )
    assert whole.count == 3
    with pytest.raises(TypeError, match=r"privatize_corpus\(\) missing"):
        rapt.privatize_corpus(tmp_path / "a.csv", tmp_path / "b")


def test_no_public_value_prints_more_than_200_characters_or_anything_secret(bert_tiny, privatizer, tmp_path):
    """One value of every public class that is no error, of those that functions return, and of what a service says."""
    manifest = privatizer.manifest(labels=(SECRET, "b") * 20, randomness=insecure_stream(1).provenance)
    records = privatizer.privatize([SECRET + " good film " * 60], labels=[0], stream=insecure_stream(1))
    setting, plain = privatizer.mechanism.setting, privatizer.plain_tokens
    private = rapt.privatize([SECRET], privatizer=privatizer, labels=[SECRET], classes=[SECRET, "b"], ledger=None)
    common, rng = rapt.weigh_common_words(bert_tiny, count=20), insecure_stream(1).generator
    job = {"id": "ftjob-" + "0" * 24, "model": "m" * 60, "training_file": "file-" + "0" * 24, "status": "succeeded"}
    rest = {"method": {"type": "lora", "lora": {"a": [1] * 99}}, "seed": 1, "fine_tuned_model": "ft:" + "m" * 60}
    with rapt.open_ledger(tmp_path / "book") as ledger:
        values = [
            ledger,
            bert_tiny,
            bert_tiny.bundle,
            privatizer,
            plain,
            manifest,
            private,
            records[0],
            state_privacy(bert_tiny, setting, plain_tokens=plain, labels_sent=True),
            rapt.state_text_privacy(4.0),
            PrivatizedFile(manifest=manifest, records=tuple(records * 9)),
            insecure_stream(1),
            rapt.LabelledText(text=SECRET, label=SECRET),
            rapt.LabelPrivacy(epsilon=1.0),
            rapt.RaptClassifier(epsilon=4, classes=["a"] * 99),
            rapt.Policy.make(
                {kind: "mask" for kind in ("email", "phone", "iban", "card", "ip", "secret", "url", "date", "number")}
            ),
            rapt.load_code_privatizer("minilm-codes", epsilon=4.0),
            *(
                kind(f"http://user:{SECRET}@127.0.0.1:1/{'x' * 300}?key={SECRET}", api_key=SECRET)
                for kind in (rapt.ServiceClient, rapt.AsyncServiceClient)
            ),
            common,
            rapt.calibrate_unchanged(
                lambda eta: make_mechanism("laplace", vocabulary=bert_tiny, eta=eta),
                bert_tiny,
                share=0.5,
                weighting=common,
                rng=rng,
                draws=100,
                curve_steps=1,
            ),
            rapt.measure_deniability(privatizer.mechanism, bert_tiny, rng=rng, types=2, draws=20),
            read_job_info({**job, **rest, "created_at": 1, "error": None}),
            *(make_mechanism(name, vocabulary=bert_tiny, eta=30.0, allow_unproved=True) for name in MECHANISMS),
        ]
    public = {value for value in map(rapt.__dict__.get, rapt.__all__) if isinstance(value, type)}
    shown = {kind for value in values for kind in type(value).__mro__}
    assert {kind for kind in public - shown if not issubclass(kind, Exception)} <= {rapt.Mechanism}
    for value in values:
        assert len(repr(value)) <= 200, (type(value), repr(value))
        assert SECRET not in repr(value)
