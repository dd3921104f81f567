"""Codes and home beside each other: who sends nothing is a number of the same table, and stands first where it wins."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace

import numpy as np
import pytest

from comparison_material import texts
from rapt.compare.bench import Benches, run_comparison
from rapt.compare.comparison import list_possible_arms, read_comparison
from rapt.compare.crowd import PENALTIES, WAYS, fit_ridge
from rapt.compare.plan import (
    ARMS,
    CODES_AT_HOME,
    CODES_PRIVATELY,
    FUSED,
    HEAD_AT_HOME,
    PROMPT,
    USUAL,
    WORDS_AT_HOME,
    Cell,
    ComparisonPlan,
    order_texts,
)
from rapt.compare.report import draw_conclusions, write_comparison
from rapt.compare.results import AttackRow, ModelRow, read_row
from rapt.compare.summary import HomeWin, Mean, Summary, summarize
from rapt.compare.tables import list_exposures
from rapt.compare.texts import LabelledTexts, Split, choose_crowd
from rapt.errors import UsageError
from rapt.local.codes.codebook import PublicStates, make_codebook
from rapt.local.codes.encoder import read_encoder
from rapt.local.distances import TableDistances
from rapt.wire.code_bundle import write_code_bundle

NEW = (WORDS_AT_HOME, HEAD_AT_HOME, CODES_PRIVATELY, CODES_AT_HOME, FUSED)
SPLIT = Split(training=texts(120, start=0), evaluation=texts(40, start=200))


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    encoder, folder = read_encoder("bert-tiny"), tmp_path_factory.mktemp("code")
    public = texts(80, start=400)
    states = PublicStates(
        texts=encoder.encode(public.texts), tasks=((encoder.encode(public.texts), np.array(public.labels)),)
    )
    write_code_bundle(make_codebook(encoder, states, dimensions=4, codewords=64), folder)
    return str(folder)


@pytest.fixture(scope="module")
def plan(codes):
    return ComparisonPlan(
        model="bert-tiny",
        codes=codes,
        etas=(60.0,),
        epsilons=(0.01, 12.0),
        crowds=(40, 0),
        own_texts=30,
        seeds=(0,),
        arms=(PROMPT, *NEW),
        privatizations=2,
        plain_tokens=0,
        epochs=1,
    )


@pytest.fixture(scope="module")
def results(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison") / "results.jsonl"
    return path, run_comparison(plan, SPLIT, results=path)


def test_every_arm_that_is_not_on_tokens_has_a_way_to_answer():
    assert set(WAYS) == {name for name, arm in ARMS.items() if arm.unit != "token"} == set(NEW)
    assert not set(NEW) & set(USUAL)
    assert set(NEW) <= set(list_possible_arms(denoised=False, public=False, method="lora", codes=True, epsilons=True))
    assert set(list_possible_arms(denoised=False, public=False, method="lora", etas=False, codes=True)) == {
        "clean", WORDS_AT_HOME, HEAD_AT_HOME,
    }  # fmt: skip


def test_codes_answer_by_their_epsilon_and_home_by_its_texts(plan, results):
    _, rows = results
    assert {row.cell for row in rows if isinstance(row, ModelRow)} == set(plan.list_cells())
    summary = summarize(rows)
    found = {(item.arm, item.epsilon, item.crowd): item.accuracy.value for item in summary.accuracies}
    assert found[HEAD_AT_HOME, None, 0] > 0.9
    assert found[WORDS_AT_HOME, None, 0] > 0.9
    assert found[CODES_AT_HOME, 12.0, 0] > 0.8
    assert found[CODES_PRIVATELY, 12.0, 0] > 0.8
    assert found[FUSED, 12.0, 0] > 0.9
    assert found[CODES_PRIVATELY, 0.01, 0] < 0.7
    assert {row.privatizations for row in rows if isinstance(row, ModelRow) and row.arm == HEAD_AT_HOME} == {1, 3}


def test_a_comparison_of_codes_that_was_cut_off_goes_on_and_old_lines_are_read(plan, results, tmp_path):
    path, rows = results
    lines = path.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "results.jsonl"
    cut.write_bytes(b"".join(line for line in lines if b"codes asked" not in line))
    again = run_comparison(plan, SPLIT, results=cut)
    answers = [{row.cell: row.right for row in those if isinstance(row, ModelRow)} for those in (again, rows)]
    assert answers[0] == answers[1]
    old = json.loads(next(line for line in lines if b'"without reconstruction"' in line))
    for name in ("epsilon", "crowd"):
        del old[name]
    assert read_row(json.dumps(old).encode()).cell == Cell(arm=PROMPT, eta=60.0, seed=0)
    with pytest.raises(UsageError, match="one setting"):
        run_comparison(replace(plan, own_texts=40), SPLIT, results=path)


def test_what_is_given_away_stands_beside_what_is_gained(results):
    path, rows = results
    few, much = sorted((row for row in rows if isinstance(row, AttackRow)), key=lambda row: row.epsilon)
    assert (few.candidates, few.bits < 0.01 < much.bits) == (120, True)
    assert few.linked_low <= 1 / 120 < much.linked
    table = list_exposures(summarize(rows), distances=None)
    assert [line[0] for line in table] == ["setting", "ε = 0.01", "ε = 12"]
    tokens = replace(few, eta=75.0, epsilon=None)
    far = TableDistances(**dict.fromkeys((item.name for item in fields(TableDistances)), 2.3601))
    assert list_exposures(summarize([tokens]), distances=far)[1][-1] == "177.1, one word"
    assert "film" not in path.read_text()


def test_home_stands_first_where_it_wins(plan, results, tmp_path):
    _, rows = results
    first = next(iter(draw_conclusions(summarize(rows))))
    assert first.startswith("Home ")
    assert "labelled texts of one's own, " in first
    assert "which sends nothing, is " in first
    page = write_comparison(plan, SPLIT, summarize(rows), tmp_path, title="t", created="2026-01-01", command="rapt")
    html = page.read_text()
    assert html.index("Home ") < html.index("At ε = ")
    assert "Accuracy over ε of a whole text" in html
    assert plan.codes not in html + (tmp_path / "comparison.json").read_text()
    worse = [
        replace(row, right=(0,) * 40) if isinstance(row, ModelRow) and ARMS[row.arm].unit == "home" else row
        for row in rows
    ]
    said = list(draw_conclusions(summarize(worse)))
    assert not any(sentence.startswith("Home ") for sentence in said)
    assert "is worse than the best way that sends something" in said[0]


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (0.1, 2.0, 4.0, "Home wins: with 50 labelled texts of one's own, .* is better than the best way"),
        (0.0, 0.4, 1.0, "Home may be as good: .* is above, by less than can be told from chance, the best way"),
        (-1.0, -0.4, 0.0, "Home may be as good: .* is below, by less than can be told from chance, the best way"),
        (-1.0, 0.0, 1.0, "Home may be as good: .* is as good as the best way"),
        (-4.0, -2.0, -0.1, "With 50 texts of one's own, .* is worse than the best way"),
    ],
)
def test_home_wins_only_where_that_can_be_told_from_chance(low, value, high, said):
    win = HomeWin(
        home=WORDS_AT_HOME,
        texts=50,
        accuracy=0.8,
        other=CODES_AT_HOME,
        other_eta=None,
        other_epsilon=4.0,
        other_crowd=0,
        other_accuracy=0.8,
        points=Mean(value=value, low=low, high=high, each_seed=(value,)),
    )
    (first, *_) = draw_conclusions(Summary(accuracies=(), differences=(), attacks=(), home_wins=(win,)))
    assert re.match(said, first)


def test_crowds_are_nested_and_own_texts_are_in_none(plan):
    benches = Benches(plan, SPLIT)
    cell = Cell(arm=FUSED, eta=None, epsilon=1.0, crowd=20, seed=3)
    (small, own), (large, _) = (
        benches._crowd._set_apart(replace(cell, crowd=crowd), SPLIT.training) for crowd in (20, 0)
    )
    assert small.texts == large.texts[:20]
    assert len(own) == 30
    assert not set(own.texts) & set(large.texts)
    assert small.texts == SPLIT.training.at(order_texts(120, seed=3)[:20]).texts


def test_pairs_are_compared_by_the_same_arms(plan, tmp_path):
    def pair(part):
        return replace(part, seconds=tuple(reversed(part.texts)))

    split = Split(training=pair(SPLIT.training), evaluation=pair(SPLIT.evaluation))
    few = replace(plan, arms=NEW, epsilons=(12.0,), crowds=(40,))
    benches = Benches(few, split)
    for cell in few.list_cells():
        row = benches.run(cell)
        assert 0 <= min(row.right) <= max(row.right) <= row.privatizations


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codes": None}, "needs a code of whole texts; give `codes`"),
        ({"epsilons": ()}, "must have an epsilon; give `epsilons`"),
        ({"epsilons": (1.0, 1.0)}, "every epsilon must be named once"),
        ({"crowds": (5, 5)}, "crowds must be named once each"),
        ({"crowds": (-1,)}, "crowds must be at least 0"),
        ({"own_texts": 3}, "own texts 20"),
    ],
)
def test_a_plan_of_codes_that_cannot_be_run_is_refused(plan, change, said):
    with pytest.raises(UsageError, match=said):
        replace(plan, **change)


def test_too_few_texts_for_own_ones_are_refused(plan):
    few = Split(training=texts(30, start=0), evaluation=SPLIT.evaluation)
    with pytest.raises(UsageError, match="needs 40 training texts, got 30"):
        Benches(plan, few).run(Cell(arm=FUSED, eta=None, epsilon=1.0, seed=0))


@pytest.mark.parametrize(("arms", "most"), [((WORDS_AT_HOME,), 120), ((WORDS_AT_HOME, CODES_AT_HOME), 90)])
def test_a_crowd_of_more_texts_than_there_are_is_refused_before_any_work(plan, tmp_path, arms, most):
    asked = replace(plan, arms=arms, crowds=(40, most + 1))
    with pytest.raises(UsageError, match=f"at most the {most} texts that there are .* got crowd={most + 1}; take"):
        run_comparison(asked, SPLIT, results=tmp_path / "results.jsonl")
    assert not (tmp_path / "results.jsonl").exists()
    assert len(run_comparison(replace(asked, arms=(WORDS_AT_HOME,), crowds=(most,)), SPLIT, results=tmp_path / "r")) > 0


def test_a_file_describes_a_comparison_of_codes(codes, tmp_path):
    (tmp_path / "plan.toml").write_text(
        f'model = "bert-tiny"\ncodes = "{codes}"\nepsilons = [2, 4]\ncrowds = [100, 0]\nseeds = 3\n'
        '[texts]\ntraining = "a.csv"\n'
    )
    found = read_comparison(tmp_path / "plan.toml", out=tmp_path / "out").plan
    assert (found.epsilons, found.crowds, found.etas) == ((2.0, 4.0), (100, 0), ())
    assert found.arms == ("clean", *NEW)


def test_the_ridge_of_a_head_at_home_is_the_one_that_is_best_on_texts_left_out():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((40, 6))
    wanted = np.eye(2)[(states[:, 0] + rng.standard_normal(40) > 0).astype(int)]

    def fit(part, penalty):
        middle, means = states[part].mean(axis=0), wanted[part].mean(axis=0)
        around = states[part] - middle
        weight = np.linalg.solve(around.T @ around + penalty * np.eye(6), around.T @ (wanted[part] - means))
        return weight, means - middle @ weight

    def error(penalty):
        without = [fit(np.arange(40) != place, penalty) for place in range(40)]
        return sum(((states[i] @ w + b - wanted[i]) ** 2).sum() for i, (w, b) in enumerate(without))

    sizes = np.linalg.svd(states - states.mean(axis=0), compute_uv=False)
    penalties = np.mean(sizes**2) * PENALTIES
    weight, bias = fit_ridge(states, wanted)
    errors = [error(penalty) for penalty in penalties]
    # Leaving out in closed form differs by the mean of the states, which is that of all.
    near = [penalty for penalty, said in zip(penalties, errors, strict=True) if said < 1.01 * min(errors)]
    assert min(np.abs(weight - fit(np.arange(40), penalty)[0]).max() for penalty in near) < 1e-9
    assert any(np.allclose(bias, fit(np.arange(40), penalty)[1]) for penalty in near)


def test_a_crowd_has_a_text_of_every_class_however_rare():
    labels = (0,) * 97 + (1, 2, 2)
    all_texts = LabelledTexts(texts=tuple(map(str, range(100))), labels=labels, names=("a", "b", "c"))
    for seed in range(20):
        order = order_texts(100, seed=seed)
        small, large = (choose_crowd(all_texts, order, crowd=size) for size in (5, 60))
        assert (len(small), set(small.labels), len(set(small.texts))) == (5, {0, 1, 2}, 5)
        first = all_texts.at(order[:60])
        assert len(set(first.texts) - set(large.texts)) == len({0, 1, 2} - set(first.labels))
    assert choose_crowd(all_texts, order, crowd=1).texts == (all_texts.texts[order[0]],)
