"""A comparison on a decoder: its classes are read off the state of the last token by a trained head."""

from dataclasses import replace

import pytest

from rapt.compare.arms import ARMS, DENOISED, DENOISED_RAPT, PROMPT, RAPT
from rapt.compare.crew import run_comparison
from rapt.compare.plan import ComparisonPlan
from rapt.compare.texts import LabelledTexts, Split
from rapt.service.model.backbone import load_backbone
from tiny_backbones import write_tiny_model

PUBLIC = ("a train left the town at noon", "nobody saw the old house again")


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
    parts = (pairs(16, start=0), pairs(12, start=100))
    training, evaluation = (part if seconds else replace(part, seconds=()) for part in parts)
    plan = ComparisonPlan(
        model=str(folder),
        etas=(5.0,),
        seeds=(0,),
        arms=tuple(ARMS),
        denoised=str(folder),  # the original itself: its arms must agree with those on the original
        privatizations=2,
        plain_tokens=2,
        plain_pool=10,
        epochs=1,
        batch_size=8,
        attacks=("embedding_inversion",),
        attack_tokens=100,
    )
    split = Split(training=training, evaluation=evaluation, public=PUBLIC)
    attack, *models = run_comparison(plan, split, results=tmp_path / "r.jsonl")
    answers = {row.arm: row.right for row in models}
    assert set(answers) == set(ARMS)
    assert all(len(right) == 12 for right in answers.values())
    assert answers[DENOISED] == answers[PROMPT]
    assert answers[DENOISED_RAPT] == answers[RAPT]
    assert 0 < attack.unchanged < 1
