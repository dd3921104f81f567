"""Mechanisms at equal attack at a tiny size: the search by secants, and every arm from sentences to a table."""

import importlib
import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tiny_backbones import write_tiny_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORDS = "a film of the good bad story that is not it was slow long new old and".split()


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("equal_attack")


@pytest.fixture(scope="module")
def page(bench):
    return importlib.import_module("equal_attack_page")


@pytest.mark.parametrize("start", [40.0, 75.0, 120.0])
def test_the_search_ends_near_the_target(bench, start):
    def success(eta):
        return 0.05 + 0.95 / (1 + (70 / eta) ** 6)

    tries = bench.solve(success, target=0.57, start=start, known=[])
    assert abs(tries[-1][1] - 0.57) <= bench.CLOSE_ENOUGH
    assert tries[-1][1] == success(tries[-1][0])


def test_a_target_under_the_floor_ends_with_the_nearest_try(bench):
    tries = bench.solve(lambda eta: 0.6 + 0.4 / (1 + (70 / eta) ** 6), target=0.4, start=70.0, known=[])
    assert len(tries) == bench.TRIES
    assert tries[-1][1] == min(share for _, share in tries) > 0.6
    assert bench.solve(lambda eta: 0.6, target=0.4, start=0.05, known=[]) == [(0.05, 0.6)]  # a floor


def test_what_is_known_of_other_levels_gives_the_first_try(bench):
    def success(eta):
        return 1 / (1 + (70 / eta) ** 6)

    known = [(eta, success(eta)) for eta in (55.0, 75.0, 75.1)]
    ((eta, share),) = bench.solve(success, target=0.4, start=1.0, known=known)
    assert share == success(eta) == pytest.approx(0.4, abs=0.003)


def test_the_page_says_what_its_lines_say_and_would_not_if_one_changed(page):
    rows = page.read_lines(page.LINES)
    assert page.find_missing(rows) == []
    first = next(row for row in rows if row["kind"] == "eta")
    others = [row if row is not first else row | {"eta": 2 * row["eta"]} for row in rows]
    assert [first["arm"] in line for line in page.find_missing(others)] == [True]


def test_every_arm_goes_from_sentences_to_a_table(bench, page, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    rows = [f"{' '.join(rng.choice(WORDS, size=9))}\t{rng.integers(2)}" for _ in range(100)]
    for name, part in (("train", rows[:80]), ("dev", rows[80:])):
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *part]) + "\n", encoding="utf-8")
    model, out, cache = write_tiny_model("bert", tmp_path / "model"), tmp_path / "out.jsonl", tmp_path / "cache"
    given = ["run", "--data", tmp_path, "--model", model, "--cache", cache, "--out", out, "--precision", "float32"]
    sizes = ["--levels", 0.6, "--seeds", 2, "--train", 40, "--attacked", 10, "--public", 30]
    arms = ["--arms", "laplace", "exponential", "laplace, sorted", "erasure"]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["equal_attack.py", *map(str, arguments)])
        bench.main()
        return capsys.readouterr().out

    run(*given, *sizes, *arms)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in lines].count("eta") == 4
    assert [line["kind"] for line in lines].count("accuracy") == 8
    known = {line["arm"]: line for line in lines if line["kind"] == "eta"}
    assert set(known["laplace"]["read"]) == {"embedding_inversion", "bayes", "context"}
    assert set(known["laplace, sorted"]["read"]) == {"embedding_inversion", "bayes"}
    assert all(0 <= line["bits_read"][0] <= 1 and math.isfinite(line["bits_learned"]) for line in known.values())
    kept = out.read_text(encoding="utf-8")
    run(*given, *sizes, *arms)  # nothing is run again
    assert out.read_text(encoding="utf-8") == kept
    monkeypatch.setattr(bench, "HELD_OUT", 5)
    run(*given, *sizes, "--expecting", "--arms", "exponential")
    others = ["--data", tmp_path, *given[3:], *sizes[4:], *arms]
    run("axes", *others)
    run("privbench", *others, "--seeds", 2)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    kinds = [line["kind"] for line in lines]
    assert [kinds.count(kind) for kind in ("expecting", "axes", "privbench")] == [2, 4, 8]
    assert all(1 <= line["nearest"] <= 20 and line["cosine"] <= 1.0001 for line in lines if line["kind"] == "privbench")
    shown = "\n".join(page.make_tables(lines))
    assert all(shown.count(f"| {name} |") == 3 for name in known)
    (tmp_path / "shown.svg").write_text(page.draw(page.collect(lines)), encoding="utf-8")
    assert ElementTree.parse(tmp_path / "shown.svg").getroot().tag.endswith("svg")
