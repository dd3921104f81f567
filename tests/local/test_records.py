"""Pairs and targets: every text goes through the mechanism, each a release of its own, and nothing leaves unasked."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from rapt.errors import CorpusError, UsageError, WireError
from rapt.local.corpus import privatize_corpus
from rapt.local.guarantee import state_privacy
from rapt.local.ledger import open_ledger
from rapt.local.ledger_report import summarize_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream, secure_stream
from rapt.local.records import PartColumns, SourceItem, draw_order, make_order_key
from rapt.wire.manifest import NO_PLAIN_TOKENS, PlainTokens, Randomness
from rapt.wire.privatized_file import read_privatized_file
from significance import ALPHA
from toy_vocabularies import toy_vocabulary, toy_word

VOCABULARY = toy_vocabulary(np.random.default_rng(1).standard_normal((300, 4)), max_tokens=64)
ROWS = [(5 + i % 3, 1 + i % 4, 2 + i % 5) for i in range(30)]  # lengths of the three texts
ALL = PartColumns(second="b", target="c")


def text_of(row, part, length):
    return " ".join(toy_word((11 * row + 101 * part + place) % 300) for place in range(length))


TEXTS = [tuple(text_of(row, part, length) for part, length in enumerate(lengths)) for row, lengths in enumerate(ROWS)]


def privatizer(*, eta=1.0, plain=NO_PLAIN_TOKENS, truncate_to=None):
    return Privatizer(VOCABULARY, make_mechanism("laplace", vocabulary=VOCABULARY, eta=eta), plain, truncate_to)


def write_source(path, texts=TEXTS):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["a", "b", "c", "label"])
        writer.writerows([*row, "yes" if position % 2 else "no"] for position, row in enumerate(texts))
    return path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "pairs.csv")


def run(source, target, *, made=None, columns=ALL, stream=None, **options):
    privatize_corpus(
        source,
        target,
        privatizer=made or privatizer(),
        text_column="a",
        other_texts=columns,
        stream=stream or secure_stream(),
        **options,
    )
    return read_privatized_file(target)


def lengths_of(records):
    parts = [(record.token_ids, record.second_token_ids, record.target_ids) for record in records]
    return [tuple(len(part) for part in row if part is not None) for row in parts]


def test_every_text_of_a_record_is_there_and_counted(source, tmp_path):
    file = run(source, tmp_path / "out")
    assert lengths_of(file.records) == ROWS
    assert (file.manifest.pairs, file.manifest.targets) == (True, "privatized")
    assert file.manifest.tokens == sum(map(sum, ROWS))
    assert [record.label for record in file.records] == [position % 2 for position in range(30)]


@pytest.mark.parametrize(
    ("columns", "kept"),
    [(PartColumns(second="b"), (0, 1)), (PartColumns(target="c"), (0, 2)), (PartColumns(), (0,))],
)
def test_only_the_named_columns_leave(source, tmp_path, columns, kept):
    assert lengths_of(run(source, tmp_path / "out", columns=columns).records) == [
        tuple(row[part] for part in kept) for row in ROWS
    ]


def test_at_a_large_eta_each_text_is_itself_in_its_own_place(source, tmp_path):
    file = run(source, tmp_path / "out", made=privatizer(eta=1e6))
    for record, texts in zip(file.records, TEXTS, strict=True):
        ids = (record.token_ids, record.second_token_ids, record.target_ids)
        assert tuple(" ".join(VOCABULARY.tokens(part)) for part in ids) == texts


def kept_share(ids, part):
    """Tokens that are as they were, of the texts of one part."""
    true = VOCABULARY.encode([row[part] for row in TEXTS])
    pairs = [(x, y) for own, drawn in zip(true, ids, strict=True) for x, y in zip(own, drawn, strict=True)]
    return sum(x == y for x, y in pairs), len(pairs)


def test_every_part_is_privatized_and_a_public_target_is_not(source, tmp_path):
    # At eta = 1e-3 an output hardly depends on its input: few tokens stay. A part that skips the mechanism keeps all.
    file = run(source, tmp_path / "out", made=privatizer(eta=1e-3))
    for part, name in enumerate(("token_ids", "second_token_ids", "target_ids")):
        same, count = kept_share([getattr(record, name) for record in file.records], part)
        assert count >= 60
        assert same < count / 2
    public = run(source, tmp_path / "open", made=privatizer(eta=1e-3), columns=replace(ALL, public_target=True))
    assert public.manifest.targets == "public"
    assert public.manifest.tokens == sum(first + second for first, second, _ in ROWS)
    same, count = kept_share([record.target_ids for record in public.records], 2)
    assert same == count


def test_plain_tokens_stand_before_the_first_text_only(source, tmp_path):
    plain = PlainTokens(count=3, pool=(4, 5, 6, 7), fixed=None)
    file = run(source, tmp_path / "out", made=privatizer(plain=plain))
    assert lengths_of(file.records) == ROWS
    assert all(len(record.privatized_plain_tokens) == 3 for record in file.records)


def test_workers_write_the_same_records_as_one_process_would(source, tmp_path):
    file = run(source, tmp_path / "out", made=privatizer(eta=1e6), processes=2)
    assert file.records == run(source, tmp_path / "one", made=privatizer(eta=1e6)).records


def test_a_sentence_costs_the_same_wherever_it_stands(source, tmp_path):
    ledger_path = tmp_path / "releases.ledger"
    with open_ledger(ledger_path) as ledger:
        first = run(source, tmp_path / "one", ledger=ledger)
        spent = summarize_ledger(ledger_path)
        assert run(source, tmp_path / "two", ledger=ledger).records == first.records
        swapped = write_source(tmp_path / "swapped.csv", [(b, a, c) for a, b, c in TEXTS])
        again = run(swapped, tmp_path / "three", ledger=ledger)
    assert [record.token_ids for record in again.records] == [record.second_token_ids for record in first.records]
    assert [record.second_token_ids for record in again.records] == [record.token_ids for record in first.records]
    assert summarize_ledger(ledger_path) == spent


@pytest.mark.parametrize("with_ledger", [False, True])
def test_a_killed_run_of_pairs_goes_on(source, tmp_path, with_ledger):
    class Stopped(Exception):
        pass

    def stop(records, tokens):
        raise Stopped

    with open_ledger(tmp_path / "releases.ledger") if with_ledger else nullcontext() as ledger:
        with pytest.raises(Stopped):
            run(source, tmp_path / "out", ledger=ledger, resume=True, on_progress=stop)
        more = write_source(tmp_path / "more.csv", [*TEXTS, ("waa", "wb", "wc")])
        begun = (tmp_path / "out.partial").read_bytes().splitlines()[1:]
        file = run(more, tmp_path / "out", ledger=ledger, resume=True)
    assert (tmp_path / "out").read_bytes().splitlines()[1:-1] == begun
    assert len(file.records) == len(ROWS) + 1
    assert file.manifest.tokens == sum(map(sum, ROWS)) + 3


def test_an_unfinished_file_of_pairs_is_not_continued_from_other_texts(source, tmp_path):
    class Stopped(Exception):
        pass

    def stop(records, tokens):
        raise Stopped

    with pytest.raises(Stopped):
        run(source, tmp_path / "out", resume=True, on_progress=stop)
    longer = [(a, b + " wa" if position == 7 else b, c) for position, (a, b, c) in enumerate(TEXTS)]
    with pytest.raises(CorpusError, match="got another text as record 8"):
        run(write_source(tmp_path / "longer.csv", longer), tmp_path / "out", resume=True)
    with pytest.raises(WireError, match="must be continued with the settings it was begun with"):
        run(source, tmp_path / "out", columns=PartColumns(second="b"), resume=True)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_an_empty_text_in_any_place_is_refused_by_its_position(tmp_path, part):
    texts = [list(row) for row in TEXTS]
    texts[4][part] = " "
    with pytest.raises(CorpusError, match="line 6 must have at least one token"):
        run(write_source(tmp_path / "empty.csv", texts), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pair_that_fits_nowhere_is_refused_before_it_is_paid_for(tmp_path):
    long = " ".join([toy_word(3)] * 40)
    source = write_source(tmp_path / "long.csv", [*TEXTS, (long, long, "wa")])
    with open_ledger(tmp_path / "releases.ledger") as ledger:
        with pytest.raises(CorpusError, match="line 32 must have at most 61 tokens in both texts, got 80; cut both"):
            run(source, tmp_path / "out", ledger=ledger)
    assert summarize_ledger(tmp_path / "releases.ledger").releases == 0
    cut = run(source, tmp_path / "cut", made=privatizer(truncate_to=30))
    assert lengths_of(cut.records)[-1] == (30, 30, 1)


@pytest.mark.parametrize(
    "columns", [PartColumns(second="a"), PartColumns(second="b", target="b"), PartColumns(target="label")]
)
def test_a_column_that_is_named_twice_is_refused(source, tmp_path, columns):
    with pytest.raises(UsageError, match="must stand in different columns"):
        run(source, tmp_path / "out", columns=columns)


def test_a_column_that_is_not_there_is_refused(source, tmp_path):
    with pytest.raises(CorpusError, match="the columns must have 'd' among them"):
        run(source, tmp_path / "out", columns=PartColumns(second="d"))


def test_nothing_of_an_item_shows_and_columns_must_be_of_one_length():
    item = SourceItem("zanzibarsecret", 1, {"second": "zanzibarsecret"})
    assert "zanzibarsecret" not in repr(item)


def test_a_seed_draws_a_pair_again(source, tmp_path):
    one = run(source, tmp_path / "one", stream=insecure_stream(5))
    assert one.records == run(source, tmp_path / "two", stream=insecure_stream(5)).records


def test_a_statement_says_what_pairs_and_targets_leave_open():
    def open_ends(**parts):
        stated = state_privacy(
            VOCABULARY, privatizer().mechanism.setting, plain_tokens=NO_PLAIN_TOKENS, labels_sent=True, **parts
        )
        return {exposure.what for exposure in stated.not_protected}

    assert open_ends(two_texts=True) - open_ends() == {"texts of one record"}
    assert open_ends(targets="privatized") - open_ends() == {"texts of one record"}
    assert open_ends(targets="public") - open_ends() == {"targets"}


FROZEN = [2, 6, 1, 5, 7, 4, 0, 3]


def orders(draw, *, count=12_000):
    """χ² of how often each order of three records is drawn, over keys of their own."""
    keys = (hashlib.sha256(f"{number}".encode()).digest() for number in range(count))
    seen = Counter(tuple(draw(3, key=key)) for key in keys)
    return sum((found - count / 6) ** 2 / (count / 6) for found in seen.values()) + (6 - len(seen)) * count / 6


def test_every_order_is_as_likely():
    # A false alarm once in a million builds; keys are fixed, so a build that passes goes on to pass.
    assert chi2.sf(orders(draw_order), 5) > ALPHA


def test_a_twin_that_only_turns_the_records_is_caught():
    def turned(count, *, key):
        return np.roll(np.arange(count), key[0] % count)

    assert chi2.sf(orders(turned), 5) < ALPHA


def test_an_order_is_a_permutation_and_follows_from_the_key_alone():
    key = make_order_key(Randomness(source="a cipher"))
    assert sorted(draw_order(1000, key=key).tolist()) == list(range(1000))
    assert (draw_order(1000, key=key) == draw_order(1000, key=key)).all()
    assert (draw_order(1000, key=key) != draw_order(1000, key=bytes(32))).any()
    assert draw_order(0, key=key).size == 0
    # Frozen, because a receipt of today must be read tomorrow: the first orders of ChaCha20 under a key of zeros.
    assert draw_order(8, key=bytes(32)).tolist() == FROZEN


@pytest.mark.parametrize("seed", [None, 7])
def test_a_key_is_fresh_unless_a_seed_says_that_nothing_is_protected(seed):
    randomness = Randomness(source="x", insecure_seed=seed)
    assert (make_order_key(randomness) == make_order_key(randomness)) == (seed is not None)
