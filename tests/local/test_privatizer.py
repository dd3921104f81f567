import numpy as np
import pytest

from rapt.errors import CorpusError, UsageError
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, draw_plain_tokens, plan_plain_tokens
from rapt.local.randomness import insecure_stream
from rapt.version import __version__
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.privatized_file import PrivatizedRecord, check_record
from significance import assert_counts
from toy_vocabularies import toy_vocabulary, toy_word

TEXTS = ["I really loved this film!", "no", "42 of 1999, and the [CLS]", "so 🎉 good"]
HARDLY_ANY_NOISE = 1e7
NOTHING_BUT_NOISE = 1e-5


def make(vocabulary, *, eta=75.0, count=4, drawn="record", truncate_to=None):
    plain = plan_plain_tokens(vocabulary, count=count, pool_size=50, drawn=drawn, rng=insecure_stream(1).generator)
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=eta)
    return Privatizer(vocabulary, mechanism, plain, truncate_to=truncate_to)


def test_every_token_of_a_text_has_one_in_its_record(bert_tiny):
    records = make(bert_tiny).privatize(TEXTS, labels=[0, 1, 0, None], stream=insecure_stream(2))
    assert [len(record.token_ids) for record in records] == [len(ids) for ids in bert_tiny.encode(TEXTS)]
    assert [record.label for record in records] == [0, 1, 0, None]
    assert all(len(record.plain_tokens) == len(record.privatized_plain_tokens) == 4 for record in records)


@pytest.mark.parametrize("drawn", ["file", "record"])
def test_plain_and_privatized_never_swap_places(bert_tiny, drawn):
    texts = ["I really loved this film!", "no", "42 of 1999"]
    privatizer = make(bert_tiny, eta=HARDLY_ANY_NOISE, drawn=drawn)
    records = privatizer.privatize(texts, labels=None, stream=insecure_stream(2))
    for record, ids in zip(records, bert_tiny.encode(texts), strict=True):
        assert record.token_ids == tuple(ids)
        plain = privatizer.plain_tokens.fixed if drawn == "file" else record.plain_tokens
        assert record.privatized_plain_tokens == plain
    if drawn == "file":
        assert all(record.plain_tokens is None for record in records)


def test_no_token_passes_unchanged_by_rule(bert_tiny):
    # Stop words, numbers, punctuation, pieces and [UNK]: with nothing but noise, none of them survives.
    text = "the of and 42 1999 , . ! 🎉 [CLS] unbelievably"
    records = make(bert_tiny, eta=NOTHING_BUT_NOISE).privatize([text] * 40, labels=None, stream=insecure_stream(2))
    true = np.array(bert_tiny.encode([text])[0])
    assert 100 in true
    kept = np.array([record.token_ids for record in records]) == true
    assert kept.mean(axis=0).max() < 0.2
    assert kept.mean() < 0.02
    plain = np.array([record.plain_tokens for record in records])
    assert (np.array([record.privatized_plain_tokens for record in records]) == plain).mean() < 0.05


def test_the_unknown_token_is_privatized_and_never_an_output(bert_tiny):
    record = make(bert_tiny, eta=HARDLY_ANY_NOISE).privatize(["🎉 🎉"], labels=None, stream=insecure_stream(2))[0]
    assert bert_tiny.encode(["🎉 🎉"]) == [[100, 100]]
    assert set(record.token_ids).isdisjoint({100})
    assert np.isin(record.token_ids, bert_tiny.eligible).all()


def test_plain_tokens_are_drawn_before_any_text_is_read(bert_tiny):
    def plain_of(texts):
        records = make(bert_tiny).privatize(texts, labels=None, stream=insecure_stream(2))
        return [record.plain_tokens for record in records]

    assert plain_of(["short", "shorter"]) == plain_of(["a very much longer text than that one", "and another"])


def test_records_have_plain_tokens_of_their_own_and_noise_of_their_own(bert_tiny):
    records = make(bert_tiny, eta=40.0).privatize(
        ["the same long text as ever"] * 30, labels=None, stream=insecure_stream(2)
    )
    assert len({record.plain_tokens for record in records}) == 30
    assert len({record.token_ids for record in records}) == 30


def test_without_plain_tokens_a_record_has_none(bert_tiny):
    privatizer = make(bert_tiny, count=0)
    record = privatizer.privatize(["text"], labels=None, stream=insecure_stream(2))[0]
    assert (record.plain_tokens, record.privatized_plain_tokens) == (None, ())
    assert privatizer.plain_tokens == NO_PLAIN_TOKENS


@pytest.mark.parametrize(("count", "drawn"), [(0, "file"), (4, "file"), (4, "record")])
def test_records_agree_with_the_manifest(bert_tiny, count, drawn):
    privatizer, stream = make(bert_tiny, count=count, drawn=drawn), insecure_stream(2)
    manifest = privatizer.manifest(labels=("no", "yes"), randomness=stream.provenance)
    for record in privatizer.privatize(TEXTS, labels=[0, 1, 1, 0], stream=stream):
        check_record(record, manifest, position=0)
    assert (manifest.model, manifest.vocabulary_hash) == ("bert-tiny", bert_tiny.hash)
    assert (manifest.mechanism.name, manifest.mechanism.eta) == ("laplace", 75.0)
    assert (manifest.randomness.insecure_seed, manifest.records, manifest.tokens) == (2, 0, 0)
    assert manifest.created_by == f"rapt {__version__}"


def test_a_seed_repeats_the_records(bert_tiny):
    first, second = (make(bert_tiny).privatize(TEXTS, labels=None, stream=insecure_stream(2)) for _ in range(2))
    assert first == second
    assert first != make(bert_tiny).privatize(TEXTS, labels=None, stream=insecure_stream(3))


def test_no_texts_give_no_records(bert_tiny):
    assert make(bert_tiny).privatize([], labels=[], stream=insecure_stream(2)) == []


def test_texts_are_not_changed(bert_tiny):
    texts, labels = list(TEXTS), [0, 1, 0, 1]
    make(bert_tiny).privatize(texts, labels=labels, stream=insecure_stream(2))
    assert (texts, labels) == (TEXTS, [0, 1, 0, 1])


# The limit: 64 tokens, of which 2 are special.


@pytest.fixture
def toy():
    return toy_vocabulary(np.eye(60), max_tokens=64)


def test_a_text_that_just_fits_is_taken(toy):
    privatizer = make(toy, count=10)
    assert privatizer.longest_text == 52
    text = " ".join([toy_word(3)] * 52)
    assert len(privatizer.privatize([text], labels=None, stream=insecure_stream(2))[0].token_ids) == 52


def test_a_text_that_does_not_fit_is_refused_with_its_position_its_length_and_a_way_out(toy):
    text = " ".join([toy_word(3)] * 53)
    with pytest.raises(CorpusError) as caught:
        make(toy, count=10).privatize([toy_word(1), text], labels=None, stream=insecure_stream(2), first_position=100)
    assert str(caught.value) == (
        "record 102 must have at most 52 tokens beside 10 plain and 2 special ones, got 53; "
        "split it, or cut it there with `truncate_to=52`"
    )


def test_a_longer_text_is_cut_where_the_setting_says(toy):
    text = " ".join(toy_word(i) for i in range(55))
    privatizer = make(toy, eta=HARDLY_ANY_NOISE, count=10, truncate_to=20)
    records = privatizer.privatize([text, toy_word(1)], labels=None, stream=insecure_stream(2))
    assert [record.token_ids for record in records] == [tuple(range(20)), (1,)]


def test_cutting_above_the_limit_does_not_lift_it(toy):
    text = " ".join([toy_word(3)] * 60)
    with pytest.raises(CorpusError, match="record 1 must have at most 52 tokens"):
        make(toy, count=10, truncate_to=53).privatize([text], labels=None, stream=insecure_stream(2))


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_a_text_without_tokens_is_refused_by_its_position(bert_tiny, text):
    with pytest.raises(CorpusError, match="record 8 must have at least one token, got an empty text"):
        make(bert_tiny).privatize(["fine", text], labels=None, stream=insecure_stream(2), first_position=6)


def test_labels_that_do_not_match_the_texts_are_refused(bert_tiny):
    with pytest.raises(UsageError, match="got 1 labels for 2 texts"):
        make(bert_tiny).privatize(["a", "b"], labels=[0], stream=insecure_stream(2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"truncate_to": 0}, "truncate_to must be at least 1"),
        ({"count": 62}, "plain tokens must leave room for a text"),
    ],
)
def test_a_setting_that_no_text_satisfies_is_refused(toy, wrong, message):
    with pytest.raises(UsageError, match=message):
        make(toy, **wrong)


def test_a_stream_of_another_process_is_refused(bert_tiny):
    from dataclasses import replace

    stream = insecure_stream(2)
    with pytest.raises(UsageError, match="in the process that made it"):
        make(bert_tiny).privatize(["a"], labels=None, stream=replace(stream, process=stream.process + 1))


def test_a_record_is_a_wire_value(bert_tiny):
    record = make(bert_tiny).privatize(["text"], labels=[1], stream=insecure_stream(2))[0]
    assert isinstance(record, PrivatizedRecord)
    assert {type(i) for i in (*record.token_ids, *record.plain_tokens, *record.privatized_plain_tokens)} == {int}


def test_a_text_that_was_released_before_keeps_its_tokens_and_gets_plain_tokens_of_its_own(bert_tiny):
    privatizer = make(bert_tiny, eta=HARDLY_ANY_NOISE)
    plain = privatizer.privatize(TEXTS, labels=None, stream=insecure_stream(2))
    known = [None, (7,), None, tuple(range(100, 100 + len(plain[3].token_ids)))]
    records = privatizer.privatize(TEXTS, labels=None, stream=insecure_stream(2), known=known)
    for position, record in enumerate(records):
        assert record.token_ids == (known[position] or plain[position].token_ids)
        assert record.privatized_plain_tokens == record.plain_tokens == plain[position].plain_tokens


@pytest.mark.parametrize(
    ("known", "message"),
    [([(7,)], "one known release or none"), ([None, (7, 8), None, None], r"got 2 tokens for 1 in record 12")],
)
def test_a_known_release_of_another_text_is_refused(bert_tiny, known, message):
    with pytest.raises(UsageError, match=message):
        make(bert_tiny).privatize(TEXTS, labels=None, stream=insecure_stream(2), known=known, first_position=10)


def plan(vocabulary, rng, *, count=6, pool_size=40, drawn="record"):
    return plan_plain_tokens(vocabulary, count=count, pool_size=pool_size, drawn=drawn, rng=rng)


def test_the_pool_is_the_first_whole_words(bert_tiny, rng):
    pool = plan(bert_tiny, rng, pool_size=200).pool
    words = bert_tiny.tokens(pool)
    assert words[:5] == ["the", "of", "and", "in", "to"]
    assert all(len(word) > 1 and word.isalpha() for word in words)
    assert list(pool) == sorted(set(pool))
    assert np.isin(pool, bert_tiny.eligible).all()


def test_one_sequence_serves_the_file_when_it_is_drawn_for_the_file(bert_tiny, rng):
    plain = plan(bert_tiny, rng, drawn="file")
    assert len(plain.fixed) == 6
    assert set(plain.fixed) <= plain.pool_set
    assert draw_plain_tokens(plain, rng) == draw_plain_tokens(plain, rng) == plain.fixed


def test_every_record_has_its_own_when_they_are_drawn_for_records(bert_tiny, rng):
    plain = plan(bert_tiny, rng)
    assert plain.fixed is None
    draws = {draw_plain_tokens(plain, rng) for _ in range(50)}
    assert len(draws) == 50
    assert all(len(draw) == 6 and set(draw) <= plain.pool_set for draw in draws)


@pytest.mark.parametrize("drawn", ["file", "record"])
def test_draws_are_uniform_over_the_pool(bert_tiny, drawn, rng):
    tokens = []
    for _ in range(20 if drawn == "file" else 1):
        plain = plan(bert_tiny, rng, count=1_000, pool_size=30, drawn=drawn)
        for _ in range(1 if drawn == "file" else 20):
            tokens += draw_plain_tokens(plain, rng)
    counts = np.bincount(np.searchsorted(plain.pool, tokens), minlength=30)
    assert_counts(counts, np.full(30, 1 / 30))


@pytest.mark.parametrize("seed", range(5))
def test_the_uniformity_test_can_fail(seed):
    skewed = np.random.default_rng(seed).integers(30, size=20_000) // 2 * 2  # every second word is missing
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(np.bincount(skewed, minlength=30), np.full(30, 1 / 30))


def test_a_count_of_zero_plans_none(bert_tiny, rng):
    assert plan(bert_tiny, rng, count=0) == NO_PLAIN_TOKENS
    assert draw_plain_tokens(NO_PLAIN_TOKENS, rng) == ()


def test_a_seed_repeats_the_plan(bert_tiny):
    first, second = (plan(bert_tiny, insecure_stream(9).generator, drawn="file") for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": -1}, "at least 0, got count=-1"),
        ({"pool_size": 0}, "at least 1 word, got pool_size=0"),
        ({"pool_size": 30_000}, r"at most the \d+ words of model='bert-tiny', got pool_size=30000"),
        ({"drawn": "once"}, "got drawn='once'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(bert_tiny, rng, wrong, message):
    with pytest.raises(UsageError, match=message):
        plan(bert_tiny, rng, **wrong)
