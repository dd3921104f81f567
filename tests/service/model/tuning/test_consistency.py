"""Two versions of each record in a step: the loss between the answers by hand, its gradient, and runs that stop."""

import dataclasses
import hashlib
import math

import pytest
import torch

from rapt.errors import TuningError
from rapt.service.model.backbone import load_backbone
from rapt.service.model.tuner import ReconstructionConfig, Tuning, TuningCancelled, TuningConfig, tune
from rapt.service.model.tuning.checkpoint import load_checkpoint, save_checkpoint
from rapt.service.model.tuning.consistency import consistency_loss
from rapt.service.model.tuning.run import Run
from rapt.service.model.tuning_config import card_settings
from rapt.wire.strict_json import dump
from tuning_material import separable_file

PLAIN = TuningConfig(prompt_length=4, epochs=2, batch_size=8, seed=1)
CONSISTENT = dataclasses.replace(PLAIN, consistency=0.7)
WITH_L_REC = dataclasses.replace(CONSISTENT, reconstruction=ReconstructionConfig(weight=0.5, head_size=8))


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("bert-tiny", precision="float32", device="cpu")


@pytest.fixture(scope="module")
def file(backbone):
    return separable_file(backbone, records=24, plain=4)


@pytest.fixture(scope="module")
def twin(file):
    """The same records with every second word another one."""
    records = tuple(
        dataclasses.replace(
            record,
            token_ids=tuple(9000 + token % 7 if place % 2 else token for place, token in enumerate(record.token_ids)),
        )
        for record in file.records
    )
    return dataclasses.replace(file, records=records)


def logits_of(*probabilities):
    """Logits of these classes, moved by a constant for each row, which changes no probability."""
    return torch.tensor(probabilities, dtype=torch.float64).log() + torch.arange(len(probabilities))[:, None]


P, Q = ((0.75, 0.25), (0.2, 0.8)), ((0.5, 0.5), (0.2, 0.8))
# KL(p||q) = 3/4 log 3/2 + 1/4 log 1/2 and KL(q||p) = 1/2 log 2/3 + 1/2 log 2; the second row adds nothing.
ONE_WAY = 0.75 * math.log(1.5) - 0.25 * math.log(2)
OTHER_WAY = -0.5 * math.log(1.5) + 0.5 * math.log(2)
BY_HAND = (ONE_WAY + OTHER_WAY) / 2 / 2


def test_the_loss_equals_its_formula_on_a_case_worked_by_hand():
    assert float(consistency_loss(logits_of(*P), logits_of(*Q))) == pytest.approx(BY_HAND, rel=1e-12)
    assert float(consistency_loss(logits_of(*Q), logits_of(*P))) == pytest.approx(BY_HAND, rel=1e-12)


@pytest.mark.parametrize("share", [(1, 0), (0, 1), (2, 2), (0.5, 0.25)])
def test_the_case_worked_by_hand_can_fail(share):
    """Twins: one direction alone, their sum for their mean, a wrong weight of one."""
    log_p, log_q = (logits.log_softmax(dim=1) for logits in (logits_of(*P), logits_of(*Q)))
    one = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    other = (log_q.exp() * (log_q - log_p)).sum(dim=1).mean()
    assert float(share[0] * one + share[1] * other) != pytest.approx(BY_HAND, rel=1e-3)
    assert float((one + other) / 2) == pytest.approx(BY_HAND, rel=1e-12)


def test_equal_answers_lose_nothing_and_pull_nowhere(rng):
    first = torch.from_numpy(rng.normal(size=(5, 3)) * 10).requires_grad_()
    loss = consistency_loss(first, first.detach().clone())
    (gradient,) = torch.autograd.grad(loss, first)
    assert loss.item() == 0.0
    assert float(gradient.abs().max()) < 1e-15
    assert consistency_loss(first, first.flip(0)).item() > 0


def test_a_certain_answer_against_its_opposite_stays_finite():
    """A probability that is rounded to 0 has a logarithm here."""
    sure = torch.tensor([[200.0, -200.0]])
    assert float(consistency_loss(sure, -sure)) == pytest.approx(400.0)


def test_the_losses_of_two_versions_are_means_over_both_and_what_lies_between(backbone, file, twin):
    """Naive twin: each version by itself."""
    tuning = Tuning(backbone, file.manifest, WITH_L_REC)
    records, twins = list(file.records[:8]), list(twin.records[:8])
    both, one, other = tuning.losses(records, twins=twins), tuning.losses(records), tuning.losses(twins)
    assert (both.rows, both.total) == (8, 16)
    assert int(both.right) == int(one.right) + int(other.right)
    assert both.task.item() == pytest.approx((one.task + other.task).item() / 2, rel=1e-5)
    assert both.reconstruction.item() == pytest.approx((one.reconstruction + other.reconstruction).item() / 2, rel=1e-5)
    assert one.consistency is None
    assert both.consistency.item() > 0
    expected = both.task + 0.5 * both.reconstruction + 0.7 * both.consistency
    assert both.combined(weight=0.5, consistency=0.7).item() == pytest.approx(expected.item(), rel=1e-6)
    shared = both.combined(weight=0.5, consistency=0.7, of_answers=0.5, of_rows=0.25)
    expected = 0.5 * both.task + 0.25 * (0.5 * both.reconstruction + 0.7 * both.consistency)
    assert shared.item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_lies_between_is_that_of_the_answers_to_each_records_own_twin(backbone, file, twin):
    """The broken twin is compared with the record before."""
    tuning = Tuning(backbone, file.manifest, CONSISTENT)
    records, twins = list(file.records[:6]), list(twin.records[:6])
    alone = [tuning.losses([one], twins=[other]).consistency.item() for one, other in zip(records, twins, strict=True)]
    broken = [twins[place - 1] for place in range(6)]
    assert tuning.losses(records, twins=twins).consistency.item() == pytest.approx(sum(alone) / 6, rel=1e-4)
    assert tuning.losses(records, twins=broken).consistency.item() != pytest.approx(sum(alone) / 6, rel=1e-2)


def test_a_gradient_of_what_lies_between_reaches_prompt_and_head_and_not_the_backbone(backbone, file, twin):
    tuning = Tuning(backbone, file.manifest, CONSISTENT)
    tuning.losses(list(file.records[:8]), twins=list(twin.records[:8])).consistency.backward()
    gradients = {name: parameter.grad for name, parameter in tuning.trained().items()}
    (prompt,) = [gradient for name, gradient in gradients.items() if name.startswith("method.")]
    assert bool((prompt.norm(dim=1) > 0).all())
    assert float(gradients["task_head.linear.weight"].norm()) > 0
    assert not [parameter for parameter in backbone.encoder.parameters() if parameter.grad is not None]


def first_step(backbone, file, twin, config):
    run = Run(backbone, file, twin=twin, validation=None, config=config, warn=print)
    step = run.make_step()
    return step, {name: value.grad.clone() for name, value in run._tuning.trained().items()}


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_parts_of_a_batch_keep_every_record_beside_its_twin(backbone, file, twin, micro):
    whole, expected = first_step(backbone, file, twin, WITH_L_REC)
    parts, found = first_step(backbone, file, twin, dataclasses.replace(WITH_L_REC, micro_batch_size=micro))
    for name in ("task_loss", "reconstruction_loss", "consistency_loss", "accuracy"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-4)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_twin_that_is_the_file_itself_changes_no_gradient(backbone, file):
    step, expected = first_step(backbone, file, None, PLAIN)
    twice, found = first_step(backbone, file, file, CONSISTENT)
    assert (step.consistency_loss, twice.consistency_loss) == (None, pytest.approx(0.0, abs=1e-9))
    assert twice.task_loss == pytest.approx(step.task_loss, rel=1e-5)
    assert twice.accuracy == step.accuracy
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


def test_answers_to_both_versions_come_together_where_that_is_weighed(backbone, file, twin):
    last = {}
    for weight in (0.0, 20.0):
        config = dataclasses.replace(PLAIN, epochs=8, batch_size=24, consistency=weight)
        tune(backbone, file, twin=twin, config=config, on_progress=lambda step, w=weight: last.update({w: step}))
    assert last[20.0].consistency_loss < last[0.0].consistency_loss / 2


def test_a_stopped_run_of_two_versions_ends_bit_for_bit_as_one_that_was_not(backbone, file, twin, tmp_path):
    undisturbed = tune(backbone, file, twin=twin, config=WITH_L_REC)
    made, kept = [], []
    with pytest.raises(TuningCancelled):
        tune(
            backbone,
            file,
            twin=twin,
            config=WITH_L_REC,
            on_progress=made.append,
            should_stop=lambda: len(made) == 4,
            on_checkpoint=lambda checkpoint, adapter: kept.append(checkpoint),
        )
    save_checkpoint(kept[-1], tmp_path / "checkpoint")
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    resumed = tune(backbone, file, twin=twin, config=WITH_L_REC, resume_from=checkpoint)
    assert torch.equal(resumed.prompt, undisturbed.prompt)
    assert torch.equal(resumed.head_weight, undisturbed.head_weight)
    assert resumed.card == undisturbed.card
    assert resumed.card.metrics["final_consistency_loss"] > 0
    other = dataclasses.replace(twin, manifest=dataclasses.replace(twin.manifest, records_sha256="0" * 64))
    with pytest.raises(TuningError, match="continued as it was begun, got another training"):
        tune(backbone, file, twin=other, config=WITH_L_REC, resume_from=checkpoint)


def test_two_versions_without_a_weight_are_read_and_not_compared(backbone, file, twin):
    """A control: it differs by the loss alone from a run with a weight, and from one of one file by what is read."""
    steps = []
    adapters = [
        tune(backbone, file, twin=second, config=config, on_progress=steps.append)
        for second, config in ((twin, PLAIN), (twin, CONSISTENT), (None, PLAIN))
    ]
    assert steps[0].consistency_loss == steps[6].consistency_loss > 0
    assert not torch.equal(adapters[0].prompt, adapters[1].prompt)
    assert not torch.equal(adapters[0].prompt, adapters[2].prompt)


def test_a_card_says_the_weight_and_a_run_without_is_described_as_it_always_was(backbone, file, twin):
    assert tune(backbone, file, twin=twin, config=CONSISTENT).card.training["consistency"] == 0.7
    settings = card_settings(TuningConfig())
    assert "consistency" not in settings
    # Of the version before there was any: sha256 of dump(card_settings(TuningConfig())). Its checkpoints must go on.
    before = "d189cac4448740713235480e65bab307ae8b96e0f154f4dde2fe36938b3c5160"
    assert hashlib.sha256(dump(settings).encode()).hexdigest() == before


def changed(file, **changes):
    return dataclasses.replace(file, records=(dataclasses.replace(file.records[0], **changes), *file.records[1:]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda twin: None, "consistency needs a second version of the training file, got consistency=0.7 and none"),
        (lambda twin: dataclasses.replace(twin, records=twin.records[1:]), "records, got 23 for 24; make both of one"),
        (lambda twin: changed(twin, label=1), "record 0 of a twin must differ from the training file's in its texts"),
        (lambda twin: changed(twin, plain_tokens=(2204,) * 4), "record 0 of a twin must differ"),
        (
            lambda twin: dataclasses.replace(twin, manifest=dataclasses.replace(twin.manifest, labels=("a", "b"))),
            "a twin must be made as the training file, got another labels",
        ),
    ],
)
def test_a_twin_of_something_else_is_refused_before_any_work(backbone, file, twin, make, message):
    with pytest.raises(TuningError, match=message) as error:
        tune(backbone, file, twin=make(twin), config=CONSISTENT)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"consistency": -0.1}, "consistency must be finite and >= 0, got consistency=-0.1; choose another"),
        ({"consistency": float("nan")}, "consistency must be finite and >= 0, got consistency=nan"),
        ({"consistency": float("inf")}, "consistency must be finite and >= 0, got consistency=inf"),
        ({"consistency": 1.0, "task": "generation"}, "for the task classification, got task='generation'; leave"),
        ({"consistency": 1.0, "task": "label_words"}, "for the task classification, got task='label_words'; leave"),
    ],
)
def test_a_weight_that_cannot_be_trained_with_is_refused_when_it_is_written_down(changes, message):
    with pytest.raises(TuningError, match=message):
        TuningConfig(**changes)
