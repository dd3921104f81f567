"""The ledger: one release for one text, caps that hold, nothing of a text in the file, a key for its owner only."""

import json
import os
import sqlite3
import stat

import pytest

from rapt.errors import BudgetError, LedgerError, UsageError
from rapt.local.corpus import privatize_corpus
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger import open_ledger, privatize_through
from rapt.local.ledger_file import Caps, Release, key_path, read_key
from rapt.local.ledger_report import summarize_ledger, verify_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, plan_plain_tokens
from rapt.local.randomness import insecure_stream, secure_stream
from rapt.wire.manifest import NO_PLAIN_TOKENS, LabelPrivacy
from rapt.wire.privatized_file import read_privatized_file
from toy_vocabularies import toy_vocabulary, toy_word

# 400 words on a line, so close together that a draw hardly ever repeats another one.
VOCABULARY = toy_vocabulary([[i / 1000] for i in range(400)])
ETA = 5.0
TEXTS = [" ".join(toy_word((7 * i + j) % 400) for j in range(5 + i)) for i in range(6)]


def privatizer(*, eta=ETA, plain=NO_PLAIN_TOKENS, truncate_to=None):
    return Privatizer(VOCABULARY, make_mechanism("laplace", vocabulary=VOCABULARY, eta=eta), plain, truncate_to)


def released(ledger, texts=TEXTS, *, made=None, **arguments):
    """Token ids of each text, through a ledger, with fresh randomness."""
    settings = {"labels": None, "response": None, "stream": secure_stream()} | arguments
    return [record.token_ids for record in privatize_through(ledger, made or privatizer(), texts, **settings)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "releases.ledger"


@pytest.fixture
def ledger(path):
    with open_ledger(path) as opened:
        yield opened


def test_the_same_text_is_answered_from_the_stored_release_and_costs_once(path):
    with open_ledger(path) as ledger:
        first = released(ledger)
    with open_ledger(path) as ledger:
        assert released(ledger) == first
        assert released(ledger, TEXTS[::-1]) == first[::-1]
    found = summarize_ledger(path)
    tokens = sum(len(ids) for ids in first)
    assert (found.texts, found.releases, found.tokens) == (6, 6, tokens)
    assert found.budget == pytest.approx(ETA * tokens)
    assert found.most_on_one_text == ETA


def test_without_a_ledger_draws_differ():
    records = [privatizer().privatize(TEXTS, labels=None, stream=secure_stream()) for _ in range(2)]
    assert records[0] != records[1]


def test_a_text_that_comes_twice_in_one_call_is_one_release(path, ledger):
    first, second = released(ledger, [TEXTS[0], TEXTS[0]])
    assert first == second
    assert summarize_ledger(path).releases == 1


def test_a_new_draw_is_made_when_asked_and_adds_up(path, ledger):
    first = released(ledger)
    assert released(ledger, redraw=True) != first
    found = summarize_ledger(path)
    assert (found.texts, found.releases, found.most_on_one_text) == (6, 12, 2 * ETA)


def test_after_a_new_draw_the_latest_release_answers(ledger):
    released(ledger)
    latest = released(ledger, redraw=True)
    assert released(ledger) == latest


@pytest.mark.parametrize("other", [{"eta": 6.0}, {"truncate_to": 3}], ids=["another eta", "another length"])
def test_another_setting_is_another_release_and_adds_up(path, ledger, other):
    released(ledger)
    released(ledger, made=privatizer(**other))
    found = summarize_ledger(path)
    assert (found.texts, found.releases) == (6, 12)
    assert found.most_on_one_text == ETA + other.get("eta", ETA)
    assert [spending.releases for spending in found.settings] == [6, 6]


def test_other_plain_tokens_cost_nothing_and_are_drawn_anew(path, ledger, rng):
    first = released(ledger)
    plain = plan_plain_tokens(VOCABULARY, count=4, pool_size=50, drawn="record", rng=rng)
    records = privatize_through(
        ledger, privatizer(plain=plain), TEXTS, labels=None, response=None, stream=secure_stream()
    )
    assert [record.token_ids for record in records] == first
    assert all(len(record.privatized_plain_tokens) == 4 for record in records)
    assert len({record.plain_tokens for record in records}) > 1
    assert summarize_ledger(path).releases == 6


def test_a_release_from_a_seed_never_answers_for_a_secure_one(path, ledger):
    seeded = released(ledger, stream=insecure_stream(3))
    assert released(ledger) != seeded
    assert released(ledger, stream=insecure_stream(3)) == seeded
    assert summarize_ledger(path).releases == 12


def test_labels_in_clear_are_not_counted_and_follow_the_file(path, ledger):
    for labels in ([0, 1] * 3, [1, 1] * 3):
        records = privatize_through(ledger, privatizer(), TEXTS, labels=labels, response=None, stream=secure_stream())
        assert [record.label for record in records] == labels
    assert summarize_ledger(path).releases == 6


def test_a_randomized_label_is_drawn_once_and_its_epsilon_is_counted(path, ledger):
    response = RandomizedResponse(classes=2, epsilon=0.5)
    texts = [f"{toy_word(i)} {toy_word(i + 1)}" for i in range(200)]

    def labels(true, **arguments):
        records = privatize_through(
            ledger, privatizer(), texts, labels=true, response=response, stream=secure_stream(), **arguments
        )
        return [record.label for record in records]

    first = labels([0] * 200)
    assert 0 < sum(first) < 200
    assert labels([0] * 200) == first
    assert summarize_ledger(path).most_label_epsilon == 0.5
    # A corrected label is another secret: it needs a draw of its own. Two draws agree 53 % of the time.
    assert labels([1] * 200) != [1 - label for label in first]
    assert summarize_ledger(path).most_label_epsilon == 1.0
    assert labels([0] * 200, redraw=True) != first
    assert summarize_ledger(path).most_label_epsilon == 1.5
    assert summarize_ledger(path).releases == 400


def test_a_text_that_was_released_gets_a_label_without_a_new_draw_of_the_text(path, ledger):
    first = released(ledger)
    response = RandomizedResponse(classes=3, epsilon=1.0)
    assert released(ledger, labels=[0, 1, 2] * 2, response=response) == first
    assert [(spending.kind, spending.releases) for spending in summarize_ledger(path).settings] == [
        ("text", 6),
        ("label", 6),
    ]


def test_the_cap_on_one_text_refuses_with_asked_spent_and_limit(path, ledger):
    ledger.set_caps(Caps(per_text=2 * ETA))
    released(ledger)
    released(ledger, redraw=True)
    with pytest.raises(BudgetError, match=r"record 1 .* on one text .* asked=5 spent=10 limit=10"):
        released(ledger, redraw=True)
    assert released(ledger) == released(ledger)
    assert summarize_ledger(path).releases == 12


def test_the_cap_in_all_refuses_the_whole_call(path, ledger):
    tokens = sum(len(text.split()) for text in TEXTS)
    ledger.set_caps(Caps(in_all=ETA * (tokens - 1)))
    with pytest.raises(BudgetError, match=r"record 106 .* in all .* limit="):
        released(ledger, first_position=100)
    assert summarize_ledger(path).releases == 0
    assert released(ledger, TEXTS[:5])
    assert summarize_ledger(path).budget <= ETA * (tokens - 1)


def test_a_cap_that_is_met_exactly_in_decimals_is_not_missed_by_rounding(ledger):
    ledger.set_caps(Caps(per_text=0.3))
    for _ in range(3):
        released(ledger, made=privatizer(eta=0.1), redraw=True)
    with pytest.raises(BudgetError):
        released(ledger, made=privatizer(eta=0.1), redraw=True)


def test_caps_stay_in_force_and_every_change_is_in_the_chain(path):
    with open_ledger(path) as ledger:
        assert ledger.caps() == Caps()
        ledger.set_caps(Caps(per_text=7.0))
    with open_ledger(path) as ledger:
        assert ledger.caps() == Caps(per_text=7.0)
        ledger.set_caps(Caps(in_all=100.0))
        assert ledger.caps() == summarize_ledger(path).caps == Caps(in_all=100.0)
    assert verify_ledger(path).rows == 2


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cap_that_is_no_number_above_zero_is_refused(ledger, cap):
    with pytest.raises(UsageError, match="a cap must be a finite number above 0, got per_text="):
        ledger.set_caps(Caps(per_text=cap))


def test_nothing_of_a_text_is_in_the_ledger(path):
    with open_ledger(path) as ledger:
        drawn = released(ledger)
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for text, ids in zip(TEXTS, drawn, strict=True):
        plain = json.dumps(VOCABULARY.encode([text])[0], separators=(",", ":")).encode()
        assert text.encode() not in content
        assert plain not in content or json.dumps(ids, separators=(",", ":")).encode() == plain


def test_hashes_of_one_text_differ_from_ledger_to_ledger(tmp_path):
    hashes = []
    for name in ("a", "b"):
        with open_ledger(tmp_path / name) as ledger:
            hashes.append(ledger.key.text_hash(TEXTS[0]))
    assert hashes[0] != hashes[1]


def test_text_and_setting_do_not_run_into_each_other(ledger):
    key = ledger.key
    assert key.release_hash("b c", setting="a") != key.release_hash("c", setting="a b")
    assert key.release_hash("text", setting="") != key.text_hash("text")


def test_the_key_is_for_its_owner_only_and_is_never_shown(path, ledger):
    secret = read_key(path).secret
    assert stat.S_IMODE(key_path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for shown in (repr(ledger), repr(ledger.key), repr(read_key(path))):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def remake(path, content):
    key_path(path).unlink()
    key_path(path).write_text(content)
    key_path(path).chmod(0o600)


BROKEN_KEYS = {
    "missing": (lambda path: key_path(path).unlink(), "must have its key beside it"),
    "readable by others": (lambda path: key_path(path).chmod(0o644), "got mode=644; run: chmod 600"),
    "another ledger's": (lambda path: remake(path, "ab" * 32), "must be its own, got another"),
    "cut off": (lambda path: remake(path, "ab" * 31), "must be 64 hex digits"),
    "no key": (lambda path: remake(path, "zanzibarsecret"), "must be 64 hex digits"),
}


@pytest.mark.parametrize("case", BROKEN_KEYS)
def test_a_ledger_without_its_own_key_is_refused(path, case):
    with open_ledger(path) as ledger:
        released(ledger)
    damage, message = BROKEN_KEYS[case]
    damage(path)
    with pytest.raises(LedgerError, match=message) as caught, open_ledger(path):
        pass
    assert "zanzibar" not in str(caught.value)
    assert summarize_ledger(path).releases == 6


def test_a_key_without_its_ledger_is_not_used_for_a_new_one(path):
    with open_ledger(path):
        pass
    path.unlink()
    with pytest.raises(LedgerError, match="got an older one"), open_ledger(path):
        pass
    assert not path.exists()


def test_a_file_of_another_kind_is_refused_and_left_as_it_is(path):
    path.write_text("text,label\nmine,yes\n" * 100)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="must be a file that rapt wrote"), open_ledger(path):
        pass
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_another_programs_database_is_refused_and_left_as_it_is(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program's"), open_ledger(path):
        pass
    with pytest.raises(LedgerError, match="must be a file that rapt wrote"):
        summarize_ledger(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["nowhere/releases", "."])
def test_a_place_that_cannot_hold_a_ledger_is_refused(tmp_path, place):
    with pytest.raises(LedgerError), open_ledger(tmp_path / place):
        pass
    with pytest.raises(LedgerError, match="must be a file, got none"):
        verify_ledger(tmp_path / place)


def test_a_full_disk_spends_nothing_and_releases_nothing(path):
    with open_ledger(path) as ledger:
        released(ledger)
        connection = ledger._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerError, match="the disk is full"):
            released(ledger, [f"{toy_word(i)} {toy_word(i + 1)}" for i in range(300)])
    assert summarize_ledger(path).releases == 6
    assert verify_ledger(path).rows == 6


def test_a_ledger_is_not_used_from_a_copied_process(ledger, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UsageError, match="in the process that opened it"):
        ledger.commit([])


def test_rows_cannot_be_changed_or_removed_by_accident(ledger):
    released(ledger)
    for statement in ("UPDATE entries SET eta = 0", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            ledger._connection.execute(statement)


def test_the_release_that_was_asked_for_is_not_shown():
    row = Release(kind="text", setting="", text_hash=b"", release_hash=b"", released="[1, 2]", position=0)
    assert "[1, 2]" not in repr(row)


def write_corpus(folder, texts):
    source = folder / "source.csv"
    source.write_text("text,label\n" + "".join(f"{text},{'yes' if i % 2 else 'no'}\n" for i, text in enumerate(texts)))
    return source


def test_a_file_is_privatized_through_a_ledger_and_again_at_no_cost(tmp_path, path):
    source, files = write_corpus(tmp_path, TEXTS), []
    for name in ("a", "b"):
        with open_ledger(path) as ledger:
            privatize_corpus(
                source,
                tmp_path / name,
                privatizer=privatizer(),
                label_privacy=LabelPrivacy(epsilon=1.0),
                stream=secure_stream(),
                ledger=ledger,
            )
        files.append(read_privatized_file(tmp_path / name).records)
    assert files[0] == files[1]
    assert summarize_ledger(path).releases == len(TEXTS)


def test_a_run_that_a_cap_stops_leaves_no_file_and_the_next_one_pays_for_the_rest_only(tmp_path, path):
    # Two chunks of 512 texts: the cap allows the first and not the second.
    texts = [f"{toy_word(i % 400)} {toy_word(i // 400)}" for i in range(700)]
    source, target = write_corpus(tmp_path, texts), tmp_path / "out"

    def run(caps):
        with open_ledger(path) as ledger:
            ledger.set_caps(caps)
            privatize_corpus(source, target, privatizer=privatizer(), stream=secure_stream(), ledger=ledger)

    with pytest.raises(BudgetError, match="record 601"):
        run(Caps(in_all=600 * 2 * ETA))
    assert list(tmp_path.glob("out*")) == []
    assert summarize_ledger(path).releases == 512
    run(Caps())
    assert summarize_ledger(path).releases == 700
    assert len(read_privatized_file(target).records) == 700


def test_what_stands_in_a_file_stands_in_the_ledger(tmp_path, path):
    source = write_corpus(tmp_path, TEXTS)
    with open_ledger(path) as ledger:
        privatize_corpus(source, tmp_path / "out", privatizer=privatizer(), stream=secure_stream(), ledger=ledger)
    with sqlite3.connect(path) as connection:
        stored = {tuple(json.loads(row[0])["token_ids"]) for row in connection.execute("SELECT released FROM entries")}
    connection.close()
    assert {record.token_ids for record in read_privatized_file(tmp_path / "out").records} == stored
