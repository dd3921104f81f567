"""The ledger: one release for one text, caps that hold, nothing of a text in the file, a key for its owner only."""

import json
import os
import sqlite3
import stat
from contextlib import closing

import numpy as np
import pytest

from rapt.errors import BudgetError, LedgerError, UsageError
from rapt.local.corpus import privatize_corpus
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger import open_ledger
from rapt.local.ledger_file import APPLICATION_ID, Cap, Caps, Release
from rapt.local.ledger_key import RUN, name_key, read_key
from rapt.local.ledger_place import find_ledger, make_folder, refuse_ledger_files
from rapt.local.ledger_releases import privatize_through
from rapt.local.ledger_report import summarize_ledger, verify_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, plan_plain_tokens
from rapt.local.randomness import insecure_stream, secure_stream
from rapt.local.records import Chunk, ChunkSetting
from rapt.wire.manifest import NO_PLAIN_TOKENS, LabelPrivacy
from rapt.wire.privatized_file import read_privatized_file
from toy_vocabularies import toy_vocabulary, toy_word

# 400 words on a ring that is small beside the noise: no word is drawn in place of another more often than once in 240
# times, so two draws of n words are equal with probability (1/240)^n at most. On a line the ends would draw the rest.
TURNS = 2 * np.pi * np.arange(400) / 400
VOCABULARY = toy_vocabulary(np.column_stack([np.cos(TURNS), np.sin(TURNS)]) / 10)
ETA = 5.0
TEXTS = [" ".join(toy_word((7 * i + j) % 400) for j in range(5 + i)) for i in range(6)]


def privatizer(*, eta=ETA, plain=NO_PLAIN_TOKENS, truncate_to=None):
    return Privatizer(VOCABULARY, make_mechanism("laplace", vocabulary=VOCABULARY, eta=eta), plain, truncate_to)


def through(
    ledger, texts=TEXTS, *, made=None, labels=None, response=None, stream=None, first=0, redraw=False, **others
):
    """The record of each text, through a ledger, with fresh randomness."""
    made, stream = made or privatizer(), stream or secure_stream()
    names = None if labels is None else tuple("abc"[: response.classes if response else 2])
    manifest = made.manifest(labels=names, randomness=stream.provenance, pairs="second" in others)
    chunk = Chunk(first, list(texts), labels, others)
    return privatize_through(ledger, chunk, ChunkSetting(made, response, manifest), stream=stream, redraw=redraw)


def released(ledger, texts=TEXTS, **arguments):
    """Token ids of each text, through a ledger."""
    return [record.token_ids for record in through(ledger, texts, **arguments)]


def capped(**metric):
    return Caps(metric=Cap(**metric))


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
    assert found.spent["metric"].in_all == pytest.approx(ETA * tokens)
    assert found.spent["metric"].most_on_one_text == ETA


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
    assert (found.texts, found.releases, found.spent["metric"].most_on_one_text) == (6, 12, 2 * ETA)


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
    assert found.spent["metric"].most_on_one_text == ETA + other.get("eta", ETA)
    assert sum(spending.releases for spending in found.settings) == 12


def test_other_plain_tokens_cost_nothing_and_are_drawn_anew(path, ledger, rng):
    first = released(ledger)
    plain = plan_plain_tokens(VOCABULARY, count=4, pool_size=50, drawn="record", rng=rng)
    records = through(ledger, made=privatizer(plain=plain))
    assert [record.token_ids for record in records] == first
    assert all(len(record.privatized_plain_tokens) == 4 for record in records)
    assert len({record.plain_tokens for record in records}) > 1
    assert summarize_ledger(path).releases == 6


def test_noise_from_a_seed_is_never_counted_because_it_protects_nothing(path, ledger):
    with pytest.raises(UsageError, match="noise from a seed protects nothing"):
        released(ledger, stream=insecure_stream(3))
    assert summarize_ledger(path).rows == 0


def test_labels_in_clear_are_not_counted_and_follow_the_file(path, ledger):
    for labels in ([0, 1] * 3, [1, 1] * 3):
        assert [record.label for record in through(ledger, labels=labels)] == labels
    assert summarize_ledger(path).releases == 6


RESPONSE = RandomizedResponse(classes=2, epsilon=0.5)
MANY = [f"{toy_word(i)} {toy_word(i + 1)}" for i in range(200)]


def drawn_labels(ledger, true, **arguments):
    records = through(ledger, MANY, labels=true, response=RESPONSE, **arguments)
    return [record.label for record in records]


def test_a_randomized_label_is_drawn_once_and_its_epsilon_is_counted(path, ledger):
    first = drawn_labels(ledger, [0] * 200)
    assert 0 < sum(first) < 200
    assert drawn_labels(ledger, [0] * 200) == first
    assert summarize_ledger(path).spent["label"].most_on_one_text == 0.5
    assert drawn_labels(ledger, [0] * 200, redraw=True) != first
    found = summarize_ledger(path)
    assert (found.spent["label"].most_on_one_text, found.spent["label"].in_all) == (1.0, 200.0)
    assert found.releases == 400


def test_a_label_that_was_corrected_does_not_show_that_it_was(ledger):
    # A fresh draw only where the label had changed would differ from the first one, and tell it, in half of the cases.
    first = drawn_labels(ledger, [0] * 200)
    assert drawn_labels(ledger, [1] * 200) == first


def test_a_label_keeps_its_name_when_the_classes_are_listed_in_another_order(tmp_path, path):
    source, files = write_corpus(tmp_path, TEXTS), []
    for name, labels in (("a", ("no", "yes")), ("b", ("yes", "no"))):
        with open_ledger(path) as ledger:
            settings = {"label_privacy": LabelPrivacy(epsilon=0.5), "labels": labels, "stream": secure_stream()}
            privatize_corpus(source, tmp_path / name, privatizer=privatizer(), ledger=ledger, **settings)
        file = read_privatized_file(tmp_path / name)
        files.append([file.manifest.labels[record.label] for record in file.records])
    assert files[0] == files[1]
    assert summarize_ledger(path).spent["label"].in_all == 0.5 * len(TEXTS)


def test_labels_have_a_cap_of_their_own(path, ledger):
    ledger.set_caps(Caps(label=Cap(on_text=0.75)))
    drawn_labels(ledger, [0] * 200)
    with pytest.raises(BudgetError, match=r"record 1 would spend more ε of labels on one text .* spent=0.5 limit=0.75"):
        drawn_labels(ledger, [0] * 200, redraw=True)
    ledger.set_caps(Caps(label=Cap(in_all=100.25)))
    with pytest.raises(BudgetError, match=r"more ε of labels in all .* asked=0.5 spent=100 limit=100.25"):
        drawn_labels(ledger, [0] * 200, redraw=True)


def test_a_text_that_was_released_gets_a_label_without_a_new_draw_of_the_text(path, ledger):
    first = released(ledger)
    response = RandomizedResponse(classes=3, epsilon=1.0)
    assert released(ledger, labels=[0, 1, 2] * 2, response=response) == first
    assert [(spending.kind, spending.releases) for spending in summarize_ledger(path).settings] == [
        ("metric", 6),
        ("label", 6),
    ]


def test_the_cap_on_one_text_refuses_with_asked_spent_and_limit(path, ledger):
    ledger.set_caps(capped(on_text=2 * ETA))
    released(ledger)
    released(ledger, redraw=True)
    with pytest.raises(BudgetError, match=r"record 1 .* on one text .* asked=5 spent=10 limit=10"):
        released(ledger, redraw=True)
    assert released(ledger) == released(ledger)
    assert summarize_ledger(path).releases == 12


def test_the_cap_in_all_refuses_the_whole_call(path, ledger):
    tokens = sum(len(text.split()) for text in TEXTS)
    ledger.set_caps(capped(in_all=ETA * (tokens - 1)))
    with pytest.raises(BudgetError, match=r"record 106 .* in all .* limit="):
        released(ledger, first=100)
    assert summarize_ledger(path).releases == 0
    assert released(ledger, TEXTS[:5])
    assert summarize_ledger(path).spent["metric"].in_all <= ETA * (tokens - 1)


def test_a_cap_that_is_met_exactly_in_decimals_is_not_missed_by_rounding(ledger):
    ledger.set_caps(capped(on_text=0.3))
    for _ in range(3):
        released(ledger, made=privatizer(eta=0.1), redraw=True)
    with pytest.raises(BudgetError):
        released(ledger, made=privatizer(eta=0.1), redraw=True)


def test_caps_stay_in_force_and_every_change_is_in_the_chain(path):
    with open_ledger(path) as ledger:
        assert ledger.caps() == Caps()
        ledger.set_caps(capped(on_text=7.0))
    with open_ledger(path) as ledger:
        assert ledger.caps() == capped(on_text=7.0)
        ledger.set_caps(capped(in_all=100.0))
        assert ledger.caps() == summarize_ledger(path).caps == capped(in_all=100.0)
    assert verify_ledger(path).rows == 2


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cap_that_is_no_number_above_zero_is_refused(ledger, cap):
    with pytest.raises(UsageError, match="a cap must be a finite number above 0, got metric on_text="):
        ledger.set_caps(capped(on_text=cap))


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
            hashes.append(ledger.key.text_hash([TEXTS[0]]))
    assert hashes[0] != hashes[1]


def test_what_is_hashed_does_not_run_into_each_other(ledger):
    key, here = ledger.key, {"vocabulary_hash": "sha256:1"}
    assert key.text_hash(["a b"]) != key.text_hash(["a", "b"])
    assert key.content_hash([[1, 2]], **here) != key.content_hash([[1], [2]], **here)
    assert key.content_hash([[1]], **here) != key.content_hash([[1]], vocabulary_hash="sha256:2")
    content = key.content_hash([[1]], **here)
    assert len({key.release_hash(content, setting=setting, copy=copy) for setting in "ab" for copy in (0, 1)}) == 4
    assert key.run_hashes(range(9), **here) != key.run_hashes(range(9), vocabulary_hash="sha256:2")


def test_the_key_is_for_its_owner_only_and_is_never_shown(path, ledger):
    secret = read_key(name_key(path)).secret
    assert stat.S_IMODE(name_key(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for shown in (repr(ledger), repr(ledger.key), repr(read_key(name_key(path)))):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def remake(path, content):
    name_key(path).unlink()
    name_key(path).write_text(content)
    name_key(path).chmod(0o600)


BROKEN_KEYS = {
    "missing": (lambda path: name_key(path).unlink(), "a ledger must have its key"),
    "readable by others": (lambda path: name_key(path).chmod(0o644), "got mode=644; run: chmod 600"),
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


@pytest.mark.parametrize("left", ["nothing", "an empty file", "no tables", "no tables, but a name"])
def test_a_ledger_is_not_begun_anew_beside_receipts(path, left):
    receipts = path.with_name(path.name + ".receipts")
    receipts.mkdir()
    (receipts / "a.json").write_text("{}")
    if left != "nothing":
        path.write_bytes(b"")
    if left.startswith("no tables"):
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(f"CREATE TABLE t (x); DROP TABLE t; PRAGMA application_id = {APPLICATION_ID};")
            if left == "no tables":
                connection.execute("PRAGMA application_id = 0")
    with pytest.raises(LedgerError, match="emptied or removed; restore it"), open_ledger(path):
        pass
    assert path.exists() == (left != "nothing")
    assert not name_key(path).exists()
    if left != "no tables, but a name":
        (receipts / "a.json").rename(path.with_name("kept.json"))
        with open_ledger(path):
            assert summarize_ledger(path).rows == 0


def test_a_ledger_that_is_its_own_key_is_refused_and_nothing_is_made(tmp_path, path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(LedgerError, match="two files"), open_ledger(path, key=tmp_path / "folder" / ".." / path.name):
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
    for statement in ("UPDATE entries SET on_text = 0", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            ledger._connection.execute(statement)


def test_the_release_that_was_asked_for_is_not_shown():
    row = Release(
        kind="metric", setting="", text_hash=b"", content_hash=b"", release_hash=b"", released="[1, 2]", position=0
    )
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
                labels=("no", "yes"),
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
        run(capped(in_all=600 * 2 * ETA))
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


def test_spellings_with_the_same_tokens_are_answered_by_the_first_release_at_no_cost(bert_tiny, path):
    made = Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=30.0), NO_PLAIN_TOKENS)
    spellings = [
        "the café was good\nand cheap",
        "the café was good\nand cheap ",
        "The CAFÉ was good\nand cheap",
        "the café was good\r\nand cheap",
        "the cafe\u0301 was good\nand cheap",
    ]
    with open_ledger(path) as ledger:
        ledger.set_caps(capped(on_text=30.0))
        first = [released(ledger, [text], made=made)[0] for text in spellings]
        assert ledger.tally.answered["metric"] == len(spellings) - 1
    assert len(set(first)) == 1
    found = summarize_ledger(path)
    assert (found.texts, found.releases, found.spent["metric"].most_on_one_text) == (1, 1, 30.0)


def test_a_text_is_the_same_text_for_its_cap_in_another_vocabulary_and_cut_elsewhere(path, ledger):
    other = toy_vocabulary([[i / 1000 + 1] for i in range(400)])
    cut = Privatizer(other, make_mechanism("laplace", vocabulary=other, eta=ETA), NO_PLAIN_TOKENS, truncate_to=2)
    ledger.set_caps(capped(on_text=1.5 * ETA))
    released(ledger)
    with pytest.raises(BudgetError, match=r"record 1 .* on one text .* asked=5 spent=5 limit=7.5"):
        released(ledger, [text.upper() + " " for text in TEXTS], made=cut)


def test_what_is_cut_off_does_not_make_another_text(path, ledger):
    first = released(ledger, [TEXTS[3]], made=privatizer(truncate_to=3))
    assert released(ledger, [TEXTS[3] + " " + TEXTS[0]], made=privatizer(truncate_to=3)) == first
    assert released(ledger, [" ".join(TEXTS[3].split()[:3])]) == first
    assert summarize_ledger(path).releases == 1


def test_two_texts_of_one_record_are_never_one_release(path, ledger):
    halves = [" ".join(toy_word(i + j) for j in range(4)) for i in range(20)]
    records = through(ledger, halves, second=[text + " " for text in halves])
    # Two draws of four words are the same in one of 240^4 cases: in one of 20 records with probability 6e-9.
    assert all(record.token_ids != record.second_token_ids for record in records)
    assert through(ledger, halves, second=halves) == records
    found = summarize_ledger(path)
    assert (found.texts, found.releases, found.spent["metric"].most_on_one_text) == (20, 40, 2 * ETA)


def test_texts_that_share_a_long_run_with_released_ones_are_counted_and_others_are_not(ledger):
    words = [toy_word(i) for i in range(200)]
    long, shared = words[:60], words[21 : 21 + 2 * RUN - 1]
    released(ledger, [" ".join(long)])
    assert ledger.tally.related == set()
    within = [*words[150:153], *shared, *words[160:166]]
    others = [long, words[100:120], within, shared[: RUN - 1]]
    released(ledger, [" ".join(text) for text in others], first=10)
    assert ledger.tally.related == {12}
    released(ledger, [" ".join(words[100:120])], redraw=True, first=20)
    assert ledger.tally.related == {12}, "a text is not related to itself"


def text_release(number, *, epsilon):
    hashes = {name: bytes([number]) * 32 for name in ("text_hash", "content_hash", "release_hash")}
    setting = json.dumps({"vocabulary_hash": "sha256:1", "mechanism": {"name": "subset", "parameters": {}}})
    spent = {"on_text": epsilon, "in_all": epsilon}
    return Release(kind="text", setting=setting, **hashes, released="{}", position=number, **spent)


def test_budgets_are_never_added_up_and_each_has_its_cap(path, ledger):
    ledger.set_caps(Caps(metric=Cap(on_text=ETA), text=Cap(on_text=4.0, in_all=10.0), label=Cap(on_text=0.5)))
    released(ledger, labels=[0, 1] * 3, response=RESPONSE)
    ledger.commit([text_release(1, epsilon=4.0), text_release(2, epsilon=4.0)])
    with pytest.raises(BudgetError, match=r"more ε of texts on one text .* asked=0.5 spent=4 limit=4"):
        ledger.commit([text_release(1, epsilon=0.5)], redraw=True)
    with pytest.raises(BudgetError, match=r"more ε of texts in all .* asked=4 spent=8 limit=10"):
        ledger.commit([text_release(3, epsilon=4.0)])
    tokens = sum(len(text.split()) for text in TEXTS)
    spent = {budget: found.in_all for budget, found in summarize_ledger(path).spent.items()}
    assert spent == {"metric": ETA * tokens, "text": 8.0, "label": 3.0}


def test_the_key_may_lie_elsewhere(tmp_path, path):
    key = tmp_path / "safe" / "key"
    key.parent.mkdir()
    for _ in range(2):
        with open_ledger(path, key=key) as ledger:
            released(ledger)
    assert not name_key(path).exists()
    assert summarize_ledger(path).releases == 6
    assert verify_ledger(path, key=key).rows == 6
    with pytest.raises(LedgerError, match="name the key with `key`"), open_ledger(path):
        pass


def test_a_ledger_of_a_project_is_found_upwards_and_else_made_beside_the_output(tmp_path):
    target = tmp_path / "a" / "b" / "out"
    target.parent.mkdir(parents=True)
    assert find_ledger(target) == tmp_path / "a" / "b" / ".rapt" / "ledger.sqlite"
    above = find_ledger(tmp_path / "out")
    make_folder(above)
    with open_ledger(above):
        pass
    assert find_ledger(target) == above
    assert (stat.S_IMODE(above.parent.stat().st_mode), (above.parent / ".gitignore").read_text()) == (0o700, "*\n")


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only root can give a file away")
def test_a_ledger_that_another_user_put_above_is_not_taken(tmp_path):
    found = find_ledger(tmp_path / "out")
    make_folder(found)
    found.touch()
    os.chown(found, 65534, 65534)
    with pytest.raises(LedgerError, match="must be your own"):
        find_ledger(tmp_path / "out")


def test_no_output_and_no_source_is_a_key_that_lies_elsewhere(tmp_path, path):
    key, other = tmp_path / "key", tmp_path / "other"
    key.touch()
    for target, source in ((key, other), (other, key)):
        with pytest.raises(UsageError, match="other files than the ledger and its key"):
            refuse_ledger_files(target, source, ledger=path, key=key)


def test_a_ledger_where_nothing_can_be_written_is_shown_and_verified(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    with open_ledger(folder / "ledger") as ledger:
        released(ledger)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "ledger").chmod(0o400)
    folder.chmod(0o500)
    try:
        assert summarize_ledger(folder / "ledger").releases == 6
        assert verify_ledger(folder / "ledger").rows == 6
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    finally:
        folder.chmod(0o700)
