"""Comparisons of sentence pairs: both texts are privatized, judged, told to the oracle and attacked."""

import json
from dataclasses import replace

import numpy as np
import pytest

from denoised_material import write_denoised
from rapt.compare.bench import open_bench, run_comparison
from rapt.compare.files import FileMaker
from rapt.compare.plan import ARMS, CLEAN, PROMPT, AttackCell, ComparisonPlan
from rapt.compare.report import draw_conclusions, write_comparison
from rapt.compare.results import AttackRow, ModelRow
from rapt.compare.summary import summarize
from rapt.compare.texts import LabelledTexts, Split, read_split
from rapt.errors import CorpusError, UsageError
from rapt.local.codes.codebook import PublicStates, make_pair_codebook
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.text_statement import bound_guess
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.code_bundle import compare_pairs, write_code_bundle

WORDS = (("bad", "awful", "poor", "sad"), ("good", "great", "fine", "happy"))


def pairs(count, *, start):
    """One in four is of class 0, and only the second text says which."""
    places = range(start, start + count)
    labels = tuple(int(place % 4 != 0) for place in places)
    return LabelledTexts(
        texts=tuple(f"scene {place} of the film" for place in places),
        labels=labels,
        names=("no", "yes"),
        seconds=tuple(
            f"it was {WORDS[label][place % 3]} at {place}" for place, label in zip(places, labels, strict=True)
        ),
    )


SPLIT = Split(training=pairs(48, start=0), evaluation=pairs(16, start=100))
PLAN = ComparisonPlan(
    model="bert-tiny",
    etas=(80.0,),
    seeds=(0,),
    arms=(CLEAN, PROMPT),
    privatizations=2,
    plain_tokens=2,
    plain_pool=10,
    epochs=8,
    batch_size=8,
)


@pytest.fixture(scope="module")
def files():
    return FileMaker(PLAN, load_vocabulary("bert-tiny"))


def of_both(records):
    return [ids for record in records for ids in (record.token_ids, record.second_token_ids)]


def test_both_texts_are_privatized_and_the_first_as_if_it_stood_alone(files):
    file = files.training(SPLIT.training, eta=80.0, seed=0)
    alone = files.training(replace(SPLIT.training, seconds=()), eta=80.0, seed=0)
    assert [replace(record, second_token_ids=None) for record in file.records] == list(alone.records)
    clear = files.vocabulary.encode(SPLIT.training.seconds)
    noisy = [record.second_token_ids for record in file.records]
    assert [len(ids) for ids in noisy] == [len(ids) for ids in clear]
    kept = np.mean([a == b for x, y in zip(clear, noisy, strict=True) for a, b in zip(x, y, strict=True)])
    assert 0.1 < kept < 0.9
    assert file.manifest.pairs
    assert file.manifest.tokens == sum(map(len, of_both(file.records)))


def test_without_privacy_both_texts_are_as_they_were_written(files):
    file = files.training(SPLIT.training, eta=None, seed=0)
    written = [text for pair in zip(*SPLIT.training.parts, strict=True) for text in pair]
    assert of_both(file.records) == [tuple(ids) for ids in files.vocabulary.encode(written)]
    assert file.manifest.pairs


def test_the_oracle_is_told_of_both_texts(files):
    file = files.training(SPLIT.training, eta=80.0, seed=0)
    told = files.unchanged_only(SPLIT.training, file)
    clear = [ids for record in files.tokenize(SPLIT.training) for ids in record]
    shortened = 0
    for ids, before, after in zip(clear, of_both(file.records), of_both(told.records), strict=True):
        assert after == (tuple(a for a, b in zip(before, ids, strict=True) if a == b) or before[:1])
        shortened += len(after) < len(before)
    assert shortened > len(clear) / 2
    assert told.manifest.tokens == sum(map(len, of_both(told.records)))


def test_both_texts_of_a_pair_are_attacked(files):
    attacked = {}
    for texts in (SPLIT.training, replace(SPLIT.training, seconds=())):
        bench = open_bench(PLAN, replace(SPLIT, training=texts), threads=1)
        attacked[texts.pairs] = bench.attack(AttackCell(eta=80.0, attacks=("embedding_inversion",), tokens=10**6))
    lengths = [[len(ids) for ids in record] for record in files.tokenize(SPLIT.training)]
    seconds = attacked[True].tokens - attacked[False].tokens
    # The same half of the records is attacked in both: at least as many tokens as the shortest second texts have.
    assert seconds >= sum(sorted(second for _, second in lengths)[:24])
    assert attacked[False].tokens <= sum(sorted(first for first, _ in lengths)[24:])
    assert 0 < attacked[True].unchanged < 1


def test_results_of_heads_on_the_mean_of_both_texts_are_not_mixed_with_those_of_heads_that_compare():
    # Frozen: the setting of this plan and these texts before heads compared.
    assert PLAN.digest_setting(SPLIT) != "6200031bd53d7ac5"


def test_every_arm_runs_on_pairs(tmp_path):
    public = ("a train left the town at noon", "nobody saw the old house again")
    on_tokens = tuple(name for name, arm in ARMS.items() if arm.unit == "token" and not arm.policy)
    plan = replace(PLAN, arms=on_tokens, denoised=str(write_denoised(tmp_path / "expecting")), epochs=1)
    rows = run_comparison(plan, replace(SPLIT, public=public), results=tmp_path / "r.jsonl")
    assert {row.arm for row in rows} == set(on_tokens)
    assert all(len(row.right) == len(SPLIT.evaluation) for row in rows)


def test_a_class_that_only_the_second_text_tells_is_learned_and_reported(tmp_path):
    plan = replace(PLAN, etas=(500.0,), attacks=("embedding_inversion",), attack_tokens=200)
    rows = run_comparison(plan, SPLIT, results=tmp_path / "r.jsonl")
    summary = summarize(rows, most_frequent_label=[SPLIT.most_frequent_label_is_right])
    assert summary.most_frequent_label.value == 0.75
    assert all(item.accuracy.value > 0.9 for item in summary.accuracies)
    assert all(
        item.over_most_frequent.value == pytest.approx(100 * (item.accuracy.value - 0.75))
        for item in summary.accuracies
    )
    (attack,) = summary.attacks
    assert attack.unchanged > 0.99
    assert attack.recovered > 0.99
    page = write_comparison(plan, SPLIT, summary, tmp_path, title="t", created="2026-01-01", command="rapt compare")
    assert "48 pairs to train on" in page.read_text()
    values = json.loads((tmp_path / "comparison.json").read_text())
    assert values["pairs"] is True
    assert values["most_frequent_label"]["value"] == 0.75
    for name in ("comparison.html", "comparison.md", "comparison.tex"):
        assert "most frequent label" in (tmp_path / name).read_text()
        assert "75.0" in (tmp_path / name).read_text()
    for written in tmp_path.iterdir():
        assert "of the film" not in written.read_text()
    assert {len(row.right) for row in rows if isinstance(row, ModelRow)} == {16}


def test_a_model_that_is_no_better_than_the_most_frequent_label_is_named():
    right = SPLIT.most_frequent_label_is_right
    wrong_once = (1, *right[1:])  # the first record is of the rare class, and answered rightly
    rows = [
        ModelRow(setting="s", arm=arm, eta=eta, seed=seed, privatizations=1, right=answers, seconds=1.0)
        for seed in (0, 1)
        for arm, eta, answers in ((CLEAN, None, (1,) * 16), (PROMPT, 50.0, wrong_once), (PROMPT, 80.0, (1,) * 16))
    ]
    said = [line for line in draw_conclusions(summarize(rows, most_frequent_label=[right])) if "most frequent" in line]
    assert said == [
        "No better than always naming the most frequent label, as far as can be told: without reconstruction at η = 50."
    ]
    assert not [line for line in draw_conclusions(summarize(rows)) if "most frequent" in line]


def test_a_pair_with_an_empty_text_is_refused(tmp_path):
    judged = replace(SPLIT.evaluation, seconds=("\u200b", *SPLIT.evaluation.seconds[1:]))
    with pytest.raises(CorpusError, match="every evaluation text must have a token in the vocabulary, got 1 without"):
        run_comparison(PLAN, replace(SPLIT, evaluation=judged), results=tmp_path / "r.jsonl")


def write(path, rows):
    path.write_text("first,second,label\n" + "".join(f"{a},{b},{label}\n" for a, b, label in rows))
    return path


def read(path, **changes):
    columns = {"text_column": "first", "text_column_2": "second"}
    return read_split(
        path, **({"evaluation": None, "training_records": None, "evaluation_records": None} | columns | changes)
    )


ROWS = [(f"one number {place}", f"and number {place}", "ab"[place % 2]) for place in range(20)]


def test_pairs_are_read_side_by_side_in_an_order_of_their_own(tmp_path):
    found, turned = (read(write(tmp_path / f"{step}.csv", ROWS[::step])) for step in (1, -1))
    assert found == turned
    assert (len(found.training), len(found.evaluation)) == (16, 4)
    for part in (found.training, found.evaluation):
        for first, second, label in zip(part.texts, part.seconds, part.labels, strict=True):
            assert (first, second, "ab"[label]) in ROWS
    assert "number" not in repr(found)


def test_a_pair_that_shares_a_text_with_a_judged_one_is_not_trained_on(tmp_path):
    judged = write(tmp_path / "dev.csv", [("and number 3", "new", "b"), ("new", "one number 4", "a")])
    found = read(write(tmp_path / "train.csv", ROWS), evaluation=judged)
    assert len(found.training) == 18
    judged_texts = {text for part in found.evaluation.parts for text in part}
    assert judged_texts.isdisjoint(text for part in found.training.parts for text in part)


def test_a_pair_is_as_short_as_its_shorter_text(tmp_path):
    rows = [*ROWS, ("one", "and many more words", "a"), ("one word less and more", "two words", "b")]
    assert len(read(write(tmp_path / "t.csv", rows), min_words=3).training) == 16


def test_other_second_texts_have_another_digest(tmp_path):
    turned = [(a, b.replace("and", "or"), label) for a, b, label in ROWS]
    digests = {read(write(tmp_path / f"{place}.csv", rows)).digest for place, rows in enumerate((ROWS, turned))}
    assert len({*digests, read(tmp_path / "0.csv", text_column_2=None).digest}) == 3


@pytest.mark.parametrize("column", ["first", "label"])
def test_a_column_is_one_thing(tmp_path, column):
    with pytest.raises(UsageError, match="must stand in different columns"):
        read(write(tmp_path / "t.csv", ROWS), text_column_2=column)


def test_a_tie_of_labels_goes_to_the_first():
    tied = replace(SPLIT, training=LabelledTexts(texts=("a", "b"), labels=(1, 0), names=("no", "yes")))
    assert tied.most_frequent_label_is_right == tuple(label == 0 for label in SPLIT.evaluation.labels)


def test_one_code_for_both_texts_of_a_pair_is_compared_attacked_and_asked_in_both_ways(tmp_path):
    encoder, code = read_encoder("bert-tiny"), tmp_path / "code"
    same = [f"it was {word} at {place}" for place in range(40) for word in ("good", "bad")]
    both = (same, same[::2] + [f"a train left town {place}" for place in range(40)])
    states = PublicStates(texts=compare_pairs(*(encoder.encode(part) for part in both)))
    write_code_bundle(make_pair_codebook(encoder, states), code)
    alike = tuple(np.random.default_rng(0).permutation(same * 2).tolist())
    labels = tuple(place % 2 for place in range(len(alike)))
    seconds = tuple(text if label else "a train left town" for text, label in zip(alike, labels, strict=True))
    texts = LabelledTexts(texts=alike, labels=labels, names=("other", "same"), seconds=seconds)
    split = Split(training=texts.at(range(100)), evaluation=texts.at(range(100, 160)))
    arms = tuple(name for name, arm in ARMS.items() if arm.unit != "token")
    plan = replace(PLAN, etas=(), epsilons=(8.0,), arms=arms, codes=str(code), own_texts=20, privatizations=1)
    rows = run_comparison(plan, split, results=tmp_path / "r.jsonl")
    right = {row.arm: np.mean(np.array(row.right) / row.privatizations) for row in rows if isinstance(row, ModelRow)}
    assert set(right) == set(arms)
    assert right["codes asked at home"] > 0.95
    assert right["codes asked privately"] > 0.9
    (attack,) = (row for row in rows if isinstance(row, AttackRow))
    assert attack.linked_low <= bound_guess(8.0, among=attack.candidates)
    single = Split(training=replace(split.training, seconds=()), evaluation=replace(split.evaluation, seconds=()))
    with pytest.raises(UsageError, match="a code of pairs must be compared on pairs, got single texts"):
        run_comparison(plan, single, results=tmp_path / "other.jsonl")
