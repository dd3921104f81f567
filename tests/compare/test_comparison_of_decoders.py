"""A comparison on a decoder: its classes are read off the state of the last token by a trained head."""

from dataclasses import replace

import pytest

from rapt.compare.arms import ARMS, DENOISED, DENOISED_RAPT, DENOISED_SOFT_MASKS, PROMPT, RAPT, SOFT_MASKS
from rapt.compare.crew import run_comparison
from rapt.compare.plan import ComparisonPlan
from rapt.compare.texts import LabelledTexts, Split
from rapt.errors import UsageError
from rapt.service.model.backbone import load_backbone
from rapt.service.model.word_head import WORD_HEAD, word_head_file
from tiny_backbones import write_tiny_model
from word_head_material import untrained_head

# A decoder has no [MASK].
POSSIBLE = tuple(name for name, arm in ARMS.items() if not arm.masks)
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
    (folder / WORD_HEAD).write_bytes(word_head_file(untrained_head(str(folder))))
    assert load_backbone(str(folder)).kind == "decoder"
    parts = (pairs(16, start=0), pairs(12, start=100))
    training, evaluation = (part if seconds else replace(part, seconds=()) for part in parts)
    plan = ComparisonPlan(
        model=str(folder),
        etas=(5.0,),
        seeds=(0,),
        arms=POSSIBLE,
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
    assert set(answers) == set(POSSIBLE)
    assert all(len(right) == 12 for right in answers.values())
    assert answers[DENOISED] == answers[PROMPT]
    assert answers[DENOISED_RAPT] == answers[RAPT]
    assert 0 < attack.unchanged < 1


@pytest.mark.parametrize("processes", [1, 2])
def test_soft_masks_are_refused_before_any_work_where_there_is_no_mask(tmp_path, processes):
    folder = tmp_path / "llama"
    folder.mkdir()
    write_tiny_model("llama", folder)
    arms = (PROMPT, SOFT_MASKS, DENOISED_SOFT_MASKS)
    plan = ComparisonPlan(model=str(folder), etas=(5.0,), seeds=(0,), arms=arms, denoised=str(folder))
    split = Split(training=replace(pairs(16, start=0), seconds=()), evaluation=replace(pairs(4, start=50), seconds=()))
    with pytest.raises(
        UsageError, match=r"need a backbone with a \[MASK\] token, got model='llama' without; choose a BERT"
    ):
        run_comparison(plan, split, results=tmp_path / "r.jsonl", processes=processes)
    assert not (tmp_path / "r.jsonl").read_bytes()
