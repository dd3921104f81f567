"""`rapt mechanisms --audit`: bounds for users, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from rapt.cli.mechanisms import audit_mechanism
from rapt.errors import MechanismError
from rapt.local.mechanisms.laplace import LaplaceMechanism
from rapt.local.vocabulary import load_vocabulary

TINY = ("--vocabulary", "bert-tiny", "--runs", 400)


@pytest.mark.parametrize("name", ["laplace", "exponential", "custext"])
def test_a_mechanism_is_audited_on_near_pairs(rapt, name):
    outcome = rapt("mechanisms", "--audit", name, "--eta", 5, "--allow-unproved", *TINY)
    assert outcome.code == 0, outcome.err
    assert "nothing speaks against eta = 5" in outcome.out
    assert "runs can show" in outcome.out
    assert "unchanged" in outcome.out
    assert "η spent, at least" in outcome.out


def test_the_json_says_what_was_found_and_how_sure(rapt):
    # At this eta tokens stay themselves, so a few hundred draws tell them apart.
    outcome = rapt("mechanisms", "--audit", "santext", "--eta", 200, "--pair", "good,bad", *TINY, "--json")
    found = json.loads(outcome.out)
    assert found["sound"] is True
    assert found["defects"] == []
    assert found["fit"]["p"] >= found["fit"]["alpha"] == 5e-7
    assert found["eta_spent_at_least"] <= found["largest_bound_possible"]
    assert found["alpha"] == 1e-6
    assert 0 < found["eta_spent_at_least"] <= 200
    assert [pair["runs"] for pair in found["pairs"]] == [200]


def test_a_program_that_sends_text_in_clear_is_shown_and_refused(capsys):
    vocabulary = load_vocabulary("bert-tiny")

    @dataclass(frozen=True)
    class SentInClear(LaplaceMechanism):
        def privatize(self, token_ids, *, rng):
            return token_ids.copy()

    broken = SentInClear(vocabulary=vocabulary, eta=75.0)
    with pytest.raises(MechanismError, match="do not follow the stated channel; release nothing with it"):
        audit_mechanism(broken, vocabulary, pairs=["good,bad"], runs=400, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["sound"] is False
    assert found["fit"]["unchanged"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--audit", "laplace"), "give --eta"),
        (("--eta", 3), "add --audit NAME"),
        (("--audit", "laplace", "--eta", 3, "--pair", "good,good", *TINY), "two different words"),
        (("--audit", "laplace", "--eta", 3, "--pair", "good,gastroenterologist", *TINY), "one token each"),
        (("--audit", "nobody", "--eta", 3, *TINY), "unknown mechanism='nobody'"),
        (("--audit", "custext", "--eta", 3, *TINY), "--allow-unproved"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(rapt, arguments, message):
    outcome = rapt("mechanisms", *arguments)
    assert outcome.code != 0
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
