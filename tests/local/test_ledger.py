"""The ledger: one release for one text, caps that hold, and budgets that are not added up."""

import json
import sqlite3

import pytest

from ledger_material import ETA, TEXTS, VOCABULARY, capped, privatizer, released, through
from rapt.errors import BudgetError, UsageError
from rapt.local.corpus import privatize_corpus
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger import open_ledger
from rapt.local.ledger_file import Cap, Caps, Release
from rapt.local.ledger_key import RUN
from rapt.local.ledger_report import summarize_ledger, verify_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, plan_plain_tokens
from rapt.local.randomness import insecure_stream, secure_stream
from rapt.wire.manifest import NO_PLAIN_TOKENS, LabelPrivacy
from rapt.wire.privatized_file import read_privatized_file
from toy_vocabularies import toy_vocabulary, toy_word


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
