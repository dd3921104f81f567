"""Whole texts become records of codes: as any privatizer does it, and with nothing in a record but codewords."""

import math
from dataclasses import replace

import numpy as np
import pytest

from code_material import RowsEncoder, code_bundle, code_privatizer
from rapt.errors import CorpusError, MechanismError, UsageError, VocabularyError, WireError
from rapt.local.codes.code_privatizer import load_code_privatizer
from rapt.local.codes.codebook import draw_codewords
from rapt.local.corpus import privatize_corpus
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.randomness import RandomStream, insecure_stream, secure_stream
from rapt.local.records import PartColumns
from rapt.public_models import PUBLIC_CODES
from rapt.wire.code_bundle import project_states, write_code_bundle
from rapt.wire.manifest import LabelPrivacy, PlainTokens, Randomness
from rapt.wire.privatized_file import read_privatized_file
from significance import assert_counts

TEXTS = ["the film was a joy", "a dull and endless film", "joy"]
SECRET = "zanzibarsecret"


@pytest.fixture
def privatizer(bert_tiny):
    return code_privatizer(bert_tiny)


@pytest.mark.parametrize("codes", [1, 3])
def test_every_text_becomes_as_many_codewords_whatever_its_length(bert_tiny, codes):
    privatizer = code_privatizer(bert_tiny, codes=codes)
    records = privatizer.privatize([*TEXTS, "film " * 1000], labels=[0, 1, None, 1], stream=secure_stream())
    assert all(len(record.token_ids) == codes for record in records)
    assert all(0 <= code < 12 for record in records for code in record.token_ids)
    assert [record.label for record in records] == [0, 1, None, 1]
    assert privatizer.token_counts(TEXTS) == [codes] * 3
    manifest = privatizer.manifest(labels=None, randomness=Randomness(source="a test"))
    assert (manifest.unit, manifest.vocabulary_hash) == ("text", privatizer.mechanism.bundle.hash)


def test_the_codes_of_a_text_follow_the_law_of_the_mechanism_at_its_code(privatizer):
    drawn = privatizer.privatize([TEXTS[0]] * 10_000, labels=None, stream=insecure_stream(1))
    code = project_states(privatizer.encoder.encode([TEXTS[0]]), privatizer.mechanism.bundle)
    law = np.exp(privatizer.mechanism.log_probabilities(code))[0, 0]
    assert_counts(np.bincount([record.token_ids[0] for record in drawn], minlength=12), law)


@pytest.mark.parametrize("seed", range(5))
def test_the_test_of_the_law_rejects_the_code_of_another_text(privatizer, seed):
    drawn = privatizer.privatize([TEXTS[0]] * 10_000, labels=None, stream=insecure_stream(seed))
    code = project_states(privatizer.encoder.encode([TEXTS[1]]), privatizer.mechanism.bundle)
    law = np.exp(privatizer.mechanism.log_probabilities(code))[0, 0]
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(np.bincount([record.token_ids[0] for record in drawn], minlength=12), law)


def test_what_is_beyond_the_longest_input_changes_nothing_that_leaves(privatizer):
    long = "film " * 14
    drawn = [privatizer.privatize([text], labels=None, stream=insecure_stream(3)) for text in (long, long + SECRET)]
    assert drawn[0] == drawn[1]
    assert privatizer.count_cut([long, long + SECRET, "film"]) == 1


def test_a_known_release_is_given_again_and_its_text_is_not_encoded(privatizer):
    records = privatizer.privatize(TEXTS, labels=None, stream=secure_stream(), known=[(7,), None, (7,)])
    assert [record.token_ids for record in records][::2] == [(7,), (7,)]
    assert privatizer.encoder.encoded == 1
    with pytest.raises(UsageError, match="got 2 tokens for 1 in record 2"):
        privatizer.privatize(TEXTS, labels=None, stream=secure_stream(), known=[(7,), (7, 7), None])


@pytest.mark.parametrize(
    ("texts", "labels", "error", "reason"),
    [
        (["fine", ""], None, CorpusError, "record 2 must have at least one token"),
        (["fine", "\ud800"], None, CorpusError, "record 2"),
        (["fine"], [0, 1], UsageError, "one label for each text"),
        (["fine"], [0.5], UsageError, "index of a class"),
        (f"{SECRET} is one string", None, UsageError, "texts"),
    ],
)
def test_bad_texts_are_one_clear_line_without_the_text(privatizer, texts, labels, error, reason):
    with pytest.raises(error, match=reason) as refused:
        privatizer.privatize(texts, labels=labels, stream=secure_stream())
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_stream_of_another_process_is_refused(privatizer):
    copied = RandomStream(np.random.default_rng(0), Randomness(source="a test"), process=1)
    with pytest.raises(UsageError, match="process that made it"):
        privatizer.privatize(TEXTS, labels=None, stream=copied)


def test_codes_have_neither_plain_tokens_nor_targets(privatizer):
    with pytest.raises(UsageError, match="no plain tokens"):
        privatizer.with_plain_tokens(PlainTokens(count=1, pool=(1,), fixed=None))
    with pytest.raises(UsageError, match="no targets"):
        privatizer.manifest(labels=None, randomness=Randomness(source="a test"), targets="public")


def test_an_encoder_that_the_code_was_not_made_with_is_refused(bert_tiny):
    other = RowsEncoder(bert_tiny)
    other.hash = "sha256:" + "ff" * 32
    with pytest.raises(
        VocabularyError, match="tiny-encoder cdcdcdcdcdcd, got ffffffffffff; name that one with `encoder`"
    ):
        code_privatizer(bert_tiny, encoder=other)
    with pytest.raises(VocabularyError, match="must read 16 tokens of a text"):
        code_privatizer(bert_tiny, encoder=RowsEncoder(bert_tiny, max_tokens=17))


def test_the_setting_shows_no_array(privatizer):
    assert repr(privatizer) == "CodePrivatizer(model='tiny-encoder', epsilon=4)"


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "in.csv"
    rows = [f'"{TEXTS[i % 3]} {i}","{TEXTS[(i + 1) % 3]}",{("bad", "good")[i % 2]}' for i in range(40)]
    path.write_text("text,other,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_a_corpus_becomes_a_file_of_codes(corpus, tmp_path, privatizer):
    said = []
    manifest = privatize_corpus(
        corpus, tmp_path / "out", privatizer=privatizer, stream=secure_stream(), on_checked=said.append
    )
    file = read_privatized_file(tmp_path / "out")
    assert file.manifest == manifest
    assert (manifest.schema, manifest.records, manifest.tokens, manifest.labels) == (
        "rapt.codes/1",
        40,
        40,
        ("bad", "good"),
    )
    assert [record.label for record in file.records] == [0, 1] * 20
    assert said[0].cut_texts == 0
    assert "film" not in (tmp_path / "out").read_text()


def test_a_corpus_has_codes_of_its_texts_and_randomized_labels(corpus, tmp_path, privatizer):
    manifest = privatize_corpus(
        corpus,
        tmp_path / "out",
        privatizer=privatizer,
        labels=("bad", "good"),
        label_privacy=LabelPrivacy(epsilon=1.0),
        stream=secure_stream(),
    )
    assert (manifest.pairs, manifest.tokens, manifest.label_privacy) == (False, 40, LabelPrivacy(epsilon=1.0))
    assert RandomizedResponse(classes=2, epsilon=1.0).keep_probability == pytest.approx(math.e / (math.e + 1))


def test_a_text_to_be_generated_is_refused_before_anything_is_drawn(corpus, tmp_path, privatizer):
    with pytest.raises(UsageError, match="no targets"):
        privatize_corpus(
            corpus,
            tmp_path / "out",
            privatizer=privatizer,
            other_texts=PartColumns(target="other"),
            stream=secure_stream(),
        )
    assert not list(tmp_path.glob("out*"))


def test_a_text_that_is_cut_is_said(tmp_path, privatizer):
    (tmp_path / "in.csv").write_text("text,label\n" + "film " * 20 + ",a\nfilm,b\n")
    said = []
    privatize_corpus(
        tmp_path / "in.csv", tmp_path / "out", privatizer=privatizer, stream=secure_stream(), on_checked=said.append
    )
    assert "1 texts are longer than what is read of a text, and are cut there" in said[0].remarks


def test_a_run_that_was_killed_goes_on_and_draws_no_text_again(corpus, tmp_path, privatizer):
    options = {"privatizer": privatizer, "label_column": None, "stream": insecure_stream(4), "resume": True}
    whole = tmp_path / "whole"
    privatize_corpus(corpus, whole, **options | {"stream": insecure_stream(4)})
    lines = whole.read_bytes().splitlines(keepends=True)
    (tmp_path / "out.partial").write_bytes(b"".join(lines[:18]) + lines[18][:5])
    privatize_corpus(corpus, tmp_path / "out", **options)
    records = read_privatized_file(tmp_path / "out").records
    assert len(records) == 40
    assert records[:17] == read_privatized_file(whole).records[:17]
    (tmp_path / "more.partial").write_bytes(b"".join(lines[:18]))
    other = replace(privatizer, mechanism=replace(privatizer.mechanism, epsilon=2.0))
    with pytest.raises(WireError, match="continued with the settings it was begun with"):
        privatize_corpus(corpus, tmp_path / "more", **options | {"privatizer": other})


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, 64.5])
def test_a_code_is_loaded_from_its_folder_only_at_an_epsilon_of_its_domain(tmp_path, epsilon):
    write_code_bundle(code_bundle(), tmp_path / "code")
    with pytest.raises(MechanismError, match="the epsilon of a text must be a number above 0"):
        load_code_privatizer(tmp_path / "code", epsilon=epsilon)


def test_what_is_no_code_is_refused_with_the_way_to_one(tmp_path):
    with pytest.raises(
        VocabularyError, match=r"must be a folder with code\.json and code\.safetensors, or one of minilm-codes"
    ):
        load_code_privatizer(tmp_path, epsilon=1.0)


@pytest.mark.parametrize("name", PUBLIC_CODES)
def test_a_code_that_comes_with_rapt_is_the_pinned_one_and_of_its_encoder(name, monkeypatch):
    privatizer = load_code_privatizer(name, epsilon=4.0)
    bundle = privatizer.mechanism.bundle
    assert (bundle.hash, bundle.languages) == (PUBLIC_CODES[name], ("en",))
    assert (bundle.codewords == draw_codewords(codes=1, codewords=4096, dimensions=8)).all()
    monkeypatch.setitem(PUBLIC_CODES, name, "sha256:" + "0" * 64)
    with pytest.raises(VocabularyError, match="must be the one that came with rapt"):
        load_code_privatizer(name, epsilon=4.0)


def test_the_code_that_comes_with_rapt_tells_praise_from_blame():
    privatizer = load_code_privatizer("minilm-codes", epsilon=4.0)
    praise = [f"The {thing} was wonderful, we loved it." for thing in ("film", "soup", "hotel", "phone", "concert")]
    blame = [f"The {thing} was terrible, a waste of money." for thing in ("film", "soup", "hotel", "phone", "concert")]
    codes = project_states(privatizer.encoder.encode(praise + blame), privatizer.mechanism.bundle)
    apart = codes[:5].mean(axis=0) - codes[5:].mean(axis=0)
    assert (codes[:5] @ apart).min() > (codes[5:] @ apart).max()
