"""A comparison on a decoder: its classes are read off the state of the last token by a trained head."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources

import pytest

from comparison_material import BAD, GOOD, texts
from denoised_material import write_denoised
from rapt.cli.output import name_options
from rapt.compare.bench import run_comparison
from rapt.compare.files import FileMaker
from rapt.compare.plan import (
    ARMS,
    CLEAN,
    DENOISED,
    DENOISED_RAPT,
    POLICY,
    PROMPT,
    RAPT,
    SENTENCES,
    SENTENCES_NO_LOSS,
    TOKENS_AT_HOME,
    ComparisonPlan,
)
from rapt.compare.report import STYLES, write_comparison
from rapt.compare.results import AttackRow, ModelRow
from rapt.compare.summary import summarize
from rapt.compare.tables import list_attacks, weigh_exposure
from rapt.compare.texts import LabelledTexts, Split, cut_texts
from rapt.errors import CorpusError, UsageError
from rapt.local.vocabulary import load_vocabulary
from rapt.public_models import find_model_folder
from rapt.service.backbone.noise_expected import SOFT_EMBEDDINGS
from rapt.service.backbone.opening import load_backbone
from rapt.severity import Severity
from tiny_backbones import write_tiny_model

ON_TOKENS = tuple(name for name, arm in ARMS.items() if arm.unit == "token")
SPLIT = Split(training=texts(48, start=0), evaluation=texts(24, start=100))
PLAN = ComparisonPlan(
    model="few-words",
    etas=(20.0, 500.0),
    seeds=(0, 1),
    arms=(CLEAN, PROMPT, RAPT),
    privatizations=2,
    plain_tokens=2,
    plain_pool=10,
    epochs=8,
    batch_size=8,
    attacks=("embedding_inversion",),
    attack_tokens=200,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison") / "results.jsonl"
    return path, run_comparison(PLAN, SPLIT, results=path)


def test_every_cell_is_run_once(results):
    path, rows = results
    models = [row for row in rows if isinstance(row, ModelRow)]
    assert len(models) == len(set(PLAN.list_cells())) == 10
    assert {row.cell for row in models} == set(PLAN.list_cells())
    assert len(path.read_text().splitlines()) == len(rows) == 12


def test_privacy_costs_what_the_noise_takes(results):
    summary = summarize(results[1])
    clean, weak, strong = (
        summary.accuracy(*key).accuracy.value for key in ((CLEAN, None), (PROMPT, 500), (PROMPT, 20))
    )
    assert clean > 0.8
    assert weak > 0.8
    assert strong < 0.75  # at eta = 20 every token is replaced by a random one
    assert summary.attacks[0].recovered < 0.2 < 0.99 < summary.attacks[1].recovered
    assert summary.attacks[1].unchanged > 0.99


def test_a_comparison_that_was_cut_off_goes_on_with_the_same_numbers(results, tmp_path):
    path, rows = results
    lines = path.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "results.jsonl"
    cut.write_bytes(b"".join(lines[:9]) + lines[9][:40])
    seen = []
    again = run_comparison(PLAN, SPLIT, results=cut, on_row=lambda done, total: seen.append((done, total)))
    assert seen == [(9, 12), (10, 12), (11, 12), (12, 12)]
    assert {row.cell: row.right for row in again if isinstance(row, ModelRow)} == {
        row.cell: row.right for row in rows if isinstance(row, ModelRow)
    }


def test_other_attacks_are_run_and_not_taken_from_those_before(results, tmp_path):
    path, rows = results
    copy = tmp_path / "results.jsonl"
    copy.write_bytes(path.read_bytes())
    fewer = replace(PLAN, etas=(500.0,), attack_tokens=50)
    again = run_comparison(fewer, SPLIT, results=copy)
    (attack,) = [row for row in again if not isinstance(row, ModelRow)]
    assert 50 <= attack.tokens < 100
    assert len(copy.read_bytes().splitlines()) == len(rows) + 1
    assert run_comparison(PLAN, SPLIT, results=copy) == rows


def test_results_of_other_texts_or_another_plan_are_not_mixed(results, tmp_path):
    path, _ = results
    other = Split(training=texts(48, start=2), evaluation=SPLIT.evaluation)
    with pytest.raises(UsageError, match="results of one file must be of one setting"):
        run_comparison(PLAN, other, results=path)
    (tmp_path / "notes.txt").write_text("shopping list\n")
    with pytest.raises(UsageError, match="results must be lines of schema"):
        run_comparison(PLAN, SPLIT, results=tmp_path / "notes.txt")


def test_comparisons_of_single_texts_begun_before_there_were_pairs_go_on():
    # Frozen: `SPLIT.digest` and `PLAN.digest_setting(SPLIT)` before there was `--text-column-2`.
    assert SPLIT.digest == "2738822a963d6903ab42dd12ed2aeaaf00cb49c0ec0a065e581581d1d8dbb52d"
    assert replace(PLAN, model="bert-tiny").digest_setting(SPLIT) == "3ea168747985888c"


def test_processes_give_the_numbers_of_one(results, tmp_path):
    few = ComparisonPlan(
        **{name: getattr(PLAN, name) for name in PLAN.__dataclass_fields__} | {"etas": (500.0,), "seeds": (0,)}
    )
    rows = run_comparison(few, SPLIT, results=tmp_path / "r.jsonl", processes=2)
    expected = {row.cell: row.right for row in results[1] if isinstance(row, ModelRow)}
    found = {row.cell: row.right for row in rows if isinstance(row, ModelRow)}
    assert found
    assert all(expected[cell] == right for cell, right in found.items())


def test_the_oracle_sees_the_unchanged_tokens_and_nothing_else():
    plan = replace(PLAN, etas=(80.0,))
    vocabulary = load_vocabulary("few-words")
    files = FileMaker(plan, vocabulary)
    file = files.training(SPLIT.training, eta=80.0, seed=0)
    told = files.unchanged_only(SPLIT.training, file)
    lengths = [0, 0]
    for ids, before, after in zip(
        vocabulary.encode(list(SPLIT.training.texts)), file.records, told.records, strict=True
    ):
        kept = tuple(a for a, b in zip(before.token_ids, ids, strict=True) if a == b)
        assert after.token_ids == (kept or before.token_ids[:1])
        assert (after.label, after.plain_tokens) == (before.label, before.plain_tokens)
        lengths[bool(kept)] += 1
    assert lengths[True]
    assert told.manifest.tokens < file.manifest.tokens


PUBLIC = ("a train left the town at noon", "too short", "nobody saw the old house again")


def test_public_sentences_take_the_place_of_plain_tokens_and_of_nothing_else():
    plan = replace(PLAN, plain_tokens=4)
    vocabulary = load_vocabulary("few-words")
    files = FileMaker(plan, vocabulary, PUBLIC)
    file = files.training(SPLIT.training, eta=80.0, seed=0)
    changed, other = (files.put_sentences(file, eta=80.0, seed=(0, draw)) for draw in (0, 1))
    beginnings = {tuple(ids[:4]) for ids in vocabulary.encode([PUBLIC[0], PUBLIC[2]])}
    assert {record.plain_tokens for record in changed.records} == beginnings
    assert set(changed.manifest.plain_tokens.pool) == {token for words in beginnings for token in words}
    assert [r.token_ids for r in changed.records] == [r.token_ids for r in file.records]
    assert [r.label for r in changed.records] == [r.label for r in file.records]
    noisy = [record.privatized_plain_tokens for record in changed.records]
    assert noisy != [record.plain_tokens for record in changed.records]
    assert noisy != [record.privatized_plain_tokens for record in other.records]
    quiet = files.put_sentences(file, eta=10_000.0, seed=(0, 0))
    assert all(record.privatized_plain_tokens == record.plain_tokens for record in quiet.records)


def test_arms_on_sentences_run_and_need_public_text(tmp_path):
    plan = replace(PLAN, etas=(500.0,), seeds=(0,), arms=(SENTENCES, SENTENCES_NO_LOSS), attacks=(), epochs=2)
    rows = run_comparison(plan, replace(SPLIT, public=PUBLIC), results=tmp_path / "r.jsonl")
    assert [row.cell.arm for row in rows] == [SENTENCES, SENTENCES_NO_LOSS]
    with pytest.raises(CorpusError, match="public texts of plain_tokens=2 tokens, got 0; give `public`"):
        run_comparison(plan, SPLIT, results=tmp_path / "other.jsonl")
    assert replace(SPLIT, public=PUBLIC).digest != SPLIT.digest


def test_a_policy_that_finds_nothing_changes_no_answer_and_one_that_masks_every_telling_word_leaves_chance(tmp_path):
    pytest.importorskip("regex")
    rights = []
    for name, pattern in (("nothing", "zanzibar"), ("all", "|".join((*GOOD, *BAD)))):
        (tmp_path / name).write_text(f"[kinds]\nword = {{mask = 'some thing'}}\n[patterns]\nword = '{pattern}'\n")
        plan = replace(PLAN, etas=(500.0,), seeds=(0,), arms=(PROMPT, POLICY), attacks=(), policy=str(tmp_path / name))
        rows = run_comparison(plan, SPLIT, results=tmp_path / "r.jsonl" if name == "nothing" else tmp_path / "s.jsonl")
        rights.append([row.right for row in rows])
        assert plan.digest_setting(SPLIT) == replace(plan, policy=None, arms=(PROMPT,)).digest_setting(SPLIT)
    assert rights[0][0] == rights[0][1]
    assert sum(rights[1][1]) <= sum(rights[1][0])
    attacked = replace(plan, arms=(POLICY,), attacks=("embedding_inversion",), attack_tokens=10**6)
    rows = run_comparison(attacked, SPLIT, results=tmp_path / "t.jsonl")
    plain, under = (row for row in rows if isinstance(row, AttackRow))
    assert (plain.policy, under.policy) == (False, True)
    assert under.tokens > plain.tokens  # a mask has two words in the place of one
    assert ["500, policy"] == [line[0] for line in list_attacks(summarize(rows))[2:]]
    texts = [
        list(
            FileMaker(plan, load_vocabulary("few-words"))
            .training(SPLIT.training, eta=1e4, seed=0, policy=under)
            .records
        )
        for under in (False, True)
    ]
    assert len({record.token_ids[3] for record in texts[1]}) == 1 < len({record.token_ids[3] for record in texts[0]})


def test_a_denoised_backbone_is_compared_by_its_weights(tmp_path):
    source = find_model_folder("few-words")
    folders = []
    for name in ("one", "two"):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        for path in source.glob("*.json"):
            (folders[-1] / path.name).write_bytes(path.read_bytes())
        (folders[-1] / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    # The original itself as the denoised one: the two arms must then agree to the last answer.
    plan = replace(PLAN, etas=(80.0,), seeds=(0,), arms=(PROMPT, DENOISED), attacks=(), denoised=str(folders[0]))
    rows = run_comparison(plan, SPLIT, results=tmp_path / "r.jsonl")
    assert len(rows) == 2
    assert rows[0].right == rows[1].right
    moved = replace(plan, denoised=str(folders[1]))
    assert moved.digest_setting(SPLIT) == plan.digest_setting(SPLIT)
    assert replace(plan, denoised=None, arms=(PROMPT,)).digest_setting(SPLIT) != plan.digest_setting(SPLIT)
    with pytest.raises(UsageError, match="`denoised` must be a folder that rapt denoise made"):
        replace(plan, denoised=str(tmp_path)).digest_setting(SPLIT)


def test_arms_that_need_no_denoised_backbone_are_not_run_again_for_one(results, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(results[0].read_bytes())
    plan = replace(
        PLAN,
        arms=(*PLAN.arms, DENOISED),
        denoised=str(write_denoised(tmp_path / "one", model=PLAN.model, etas=(60.0,))),
    )
    seen = []
    rows = run_comparison(plan, SPLIT, results=path, on_row=lambda done, total: seen.append((done, total)))
    assert seen[0] == (12, 16)
    assert rows[:12] == results[1]
    run_comparison(plan, SPLIT, results=path, on_row=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16)
    # Not so those that need it, and files of when every result of a plan with one was kept under its name go on.
    folder = write_denoised(tmp_path / "two", model=PLAN.model)
    (folder / SOFT_EMBEDDINGS).write_bytes(b"another backbone, by a file beside its weights")
    other = replace(plan, denoised=str(folder))
    with pytest.raises(UsageError, match="results of one file must be of one setting"):
        run_comparison(other, SPLIT, results=path)
    path.write_text(path.read_text().replace(plan.digest_setting(SPLIT, denoised=False), plan.digest_setting(SPLIT)))
    run_comparison(plan, SPLIT, results=path, on_row=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16)


def test_the_report_says_what_noise_a_denoised_backbone_was_made_for(results, tmp_path):
    expecting = str(write_denoised(tmp_path / "expecting", model=PLAN.model, etas=(60.0, 90.0)))
    summary = summarize(results[1])
    for etas, mechanism, said in (
        ((65.0, 80.0), "laplace", "laplace at η = 60, 90<"),
        ((50.0, 80.0, 120.0), "laplace", "laplace at η = 60, 90; not for η = 50, 120<"),
        ((80.0,), "mahalanobis", "laplace at η = 60, 90; not for η = 80<"),
    ):
        plan = replace(PLAN, etas=etas, mechanism=mechanism, denoised=expecting)
        page = write_comparison(plan, SPLIT, summary, tmp_path, title="t", created="2026-01-01", command="rapt compare")
        assert said in page.read_text()


def test_a_text_without_a_token_is_refused(tmp_path):
    empty = LabelledTexts(texts=("good", "\u200b"), labels=(1, 0), names=("negative", "positive"))
    with pytest.raises(CorpusError, match="every evaluation text must have a token in the vocabulary, got 1 without"):
        run_comparison(PLAN, Split(training=SPLIT.training, evaluation=empty), results=tmp_path / "r.jsonl")


def test_a_text_longer_than_the_backbone_takes_is_refused_before_any_training(tmp_path):
    vocabulary = load_vocabulary("few-words")
    long = LabelledTexts(texts=("good " * 600, "bad"), labels=(1, 0), names=("negative", "positive"))
    split, most = (
        Split(training=SPLIT.training, evaluation=long),
        vocabulary.bundle.max_tokens - 2 - 12,
    )  # P = 10, m = 2
    with pytest.raises(CorpusError, match=rf"at most {most} tokens .* got 1 longer; .* `truncate={most}`") as refused:
        run_comparison(PLAN, split, results=tmp_path / "r.jsonl")
    assert "good" not in str(refused.value)
    assert "--truncate" in name_options(str(refused.value))
    cut = cut_texts(split, vocabulary=vocabulary, most=most)
    run_comparison(
        replace(PLAN, arms=(RAPT,), etas=(500.0,), seeds=(0,), attacks=(), epochs=1), cut, results=tmp_path / "c.jsonl"
    )


def test_seeds_that_take_turns_are_judged_on_their_own_texts(tmp_path):
    turns = [Split(training=texts(48, start=0), evaluation=texts(size, start=100)) for size in (24, 24)]
    wrong = replace(turns[1].evaluation, labels=tuple(1 - label for label in turns[1].evaluation.labels))
    split = replace(turns[0], further=(replace(turns[1], evaluation=wrong),))
    plan = replace(PLAN, etas=(500.0,), arms=(PROMPT,), attacks=())
    rows = run_comparison(plan, split, results=tmp_path / "r.jsonl")
    named = [turn.most_frequent_label_is_right for turn in split.turns]
    (found,) = summarize(rows, most_frequent_label=named, turns=2).accuracies
    # What the first seed's model says is right, and what the second's says is turned round.
    assert found.accuracy.each_seed[0] > 0.75
    assert found.accuracy.each_seed[1] < 0.25
    assert found.over_most_frequent.each_seed == pytest.approx([100 * (own - 0.5) for own in found.accuracy.each_seed])


def test_every_arm_has_a_line_of_its_own_in_the_curves():
    style = resources.files("rapt.compare").joinpath("templates/comparison.css").read_text()
    drawn = [re.search(rf"\.{name} \{{ (stroke: [^}}]*)\}}", style)[1] for name in STYLES.values()]
    assert len(set(drawn)) == len(ARMS)


def test_the_report_says_what_the_results_say_and_no_text(results, tmp_path):
    summary = summarize(results[1])
    plan = replace(PLAN, model=str(find_model_folder("few-words")))
    page = write_comparison(plan, SPLIT, summary, tmp_path, title="t", created="2026-01-01", command="rapt compare")
    assert all(str(find_model_folder("few-words").parent) not in written.read_text() for written in tmp_path.iterdir())
    values = json.loads((tmp_path / "comparison.json").read_text())
    assert [item["arm"] for item in values["accuracies"] if item["eta"] is None] == [CLEAN]
    assert len(values["differences"]) == 6  # RAPT and plain tuning, each against clear text, and each other, at two eta
    content = page.read_text()
    for name in PLAN.arms:
        assert ARMS[name].says.replace("'", "&#39;") in content
    assert content.count('class="plot"') == 3
    assert "below 5, an interval understates" in content
    (attack,) = (item for item in summary.attacks if item.eta == max(summary.etas))
    assert weigh_exposure(replace(attack, recovered=0.57, blind=0.04, linked=None)) is Severity.BAD
    assert f'class="toned {weigh_exposure(attack)}"' in content
    assert "<script" not in content
    assert "http" not in content.replace("http-equiv", "")
    for written in tmp_path.iterdir():
        assert "the film was" not in written.read_text()
    latex = (tmp_path / "comparison.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    assert not {"η", "ε"} & set(latex)


PUBLIC_PAIRS = ("a train left the town at noon", "nobody saw the old house again")


def pairs(count, *, start):
    places = range(start, start + count)
    return LabelledTexts(
        texts=tuple(f"the film was shown in town {place}" for place in places),
        labels=tuple(place % 2 for place in places),
        names=("no", "yes"),
        seconds=tuple(f"{('nobody', 'everybody')[place % 2]} saw film {place}" for place in places),
    )


@pytest.mark.parametrize("seconds", [False, True], ids=["texts", "pairs"])
def test_every_arm_trains_and_judges_a_decoder(tmp_path, seconds):
    folder = tmp_path / "llama"
    folder.mkdir()
    write_tiny_model("llama", folder)
    assert load_backbone(str(folder)).kind == "decoder"
    (tmp_path / "policy.toml").write_text("[kinds]\nemail = 'mask'\n")
    parts = (pairs(16, start=0), pairs(12, start=100))
    training, evaluation = (part if seconds else replace(part, seconds=()) for part in parts)
    plan = ComparisonPlan(
        model=str(folder),
        etas=(5.0,),
        seeds=(0,),
        arms=ON_TOKENS,
        policy=str(tmp_path / "policy.toml"),
        denoised=str(folder),  # the original itself: its arms must agree with those on the original
        privatizations=2,
        plain_tokens=2,
        plain_pool=10,
        epochs=1,
        batch_size=8,
        attacks=("embedding_inversion",),
        attack_tokens=100,
    )
    split = Split(training=training, evaluation=evaluation, public=PUBLIC_PAIRS)
    rows = run_comparison(plan, split, results=tmp_path / "r.jsonl")
    attacks = [row for row in rows if isinstance(row, AttackRow)]
    answers = {row.arm: row.right for row in rows if isinstance(row, ModelRow)}
    assert set(answers) == set(ON_TOKENS)
    assert all(len(right) == 12 for right in answers.values())
    assert answers[DENOISED] == answers[PROMPT]
    assert answers[DENOISED_RAPT] == answers[RAPT]
    assert {row.policy for row in attacks} == {False, True}
    assert all(0 < row.unchanged < 1 for row in attacks)


def test_tokens_asked_at_home_are_answered_by_the_model_that_is_asked_privately(tmp_path):
    plan = replace(PLAN, etas=(45.0, 10_000.0), seeds=(0,), arms=(PROMPT, TOKENS_AT_HOME, CLEAN), attacks=())
    rows = {(row.arm, row.eta): row for row in run_comparison(plan, SPLIT, results=tmp_path / "r.jsonl")}
    assert rows[TOKENS_AT_HOME, 45.0].privatizations == 1
    asked, noisy = rows[PROMPT, 10_000.0], rows[PROMPT, 45.0]
    # Where nothing is noise both ways are one.
    assert tuple(plan.privatizations * one for one in rows[TOKENS_AT_HOME, 10_000.0].right) == asked.right
    assert tuple(plan.privatizations * one for one in rows[TOKENS_AT_HOME, 45.0].right) != noisy.right
