"""Training on labels from randomized response: the corrected loss by hand, in law, and at work."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rapt.local.label_privacy import RandomizedResponse
from rapt.service.answers.inference import ClassificationRow, classify
from rapt.service.backbone.backbone import load_backbone
from rapt.service.tuning.label_correction import task_loss, transition_matrix
from rapt.service.tuning.tuner import Tuning, TuningConfig, tune
from rapt.wire.manifest import LabelPrivacy
from rapt.wire.privatized_file import PrivatizedFile, seal
from tuning_material import separable_file

ONE = LabelPrivacy(epsilon=1.0)


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 1.0), (2, 1e-6), (5, 3.0), (2, 40.0), (7, 700.0), (256, 2.0)])
def test_the_matrix_is_the_one_that_labels_are_drawn_from(classes, epsilon):
    keep = RandomizedResponse(classes=classes, epsilon=epsilon).keep_probability
    matrix = transition_matrix(classes=classes, epsilon=epsilon)
    np.testing.assert_allclose(np.diag(matrix), keep, rtol=1e-15)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
    assert len(np.unique(matrix)) == 2


def test_a_case_worked_by_hand():
    # K = 2, e^ε = 3: T = [[3/4, 1/4], [1/4, 3/4]]. p = (4/5, 1/5): the label 0 has 3/4·4/5 + 1/4·1/5 = 13/20.
    logits = torch.tensor([[math.log(4.0), 0.0], [math.log(4.0), 0.0]], dtype=torch.float64)
    loss = task_loss(logits, torch.tensor([0, 1]), label_privacy=LabelPrivacy(epsilon=math.log(3)))
    assert loss.item() == pytest.approx(-(math.log(13 / 20) + math.log(7 / 20)) / 2, rel=1e-12)


def test_true_labels_have_plain_cross_entropy():
    logits, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    plain = nn.functional.cross_entropy(logits, labels)
    assert torch.equal(task_loss(logits, labels, label_privacy=None), plain)
    assert task_loss(logits, labels, label_privacy=LabelPrivacy(epsilon=200.0)).item() == pytest.approx(plain.item())


def test_the_loss_is_the_logarithm_of_the_mixed_probabilities():
    logits = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 4
    mixed = torch.softmax(logits, dim=1) @ torch.as_tensor(transition_matrix(classes=4, epsilon=1.0))
    expected = -mixed[torch.arange(16), labels].log().mean()
    assert task_loss(logits, labels, label_privacy=ONE).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("epsilon", [1e-6, 1.0, 50.0, 1e6])
def test_extreme_logits_and_epsilons_stay_finite(epsilon):
    logits = torch.tensor([[500.0, -500.0], [-500.0, 500.0]], requires_grad=True)
    loss = task_loss(logits, torch.tensor([1, 1]), label_privacy=LabelPrivacy(epsilon=epsilon))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("truth", [(0.9, 0.1), (0.6, 0.4)])
def test_the_expected_loss_is_least_at_the_true_probabilities_and_the_plain_one_is_not(truth):
    noisy = torch.tensor(truth, dtype=torch.float64) @ torch.as_tensor(transition_matrix(classes=2, epsilon=1.0))

    def best(label_privacy):
        grid = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
        losses = [
            sum(
                noisy[y]
                * task_loss(torch.stack([p, 1 - p]).log()[None], torch.tensor([y]), label_privacy=label_privacy)
                for y in (0, 1)
            )
            for p in grid
        ]
        return grid[int(torch.stack(losses).argmin())].item()

    assert best(ONE) == pytest.approx(truth[0], abs=0.006)
    assert abs(best(None) - truth[0]) > 0.05


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("bert-tiny", precision="float32", device="cpu")


# The corrected loss is flat where a model is sure and wrong, so a rate that rises too fast ends there and stays.
SHORT = TuningConfig(
    prompt_length=4, epochs=6, batch_size=16, learning_rate=0.01, head_learning_rate=0.01, warmup=0.3, seed=1
)


def randomized(file, *, seed):
    """The file with its labels from randomized response at ε = 1: 27 % are the other one."""
    true = [record.label for record in file.records]
    drawn = RandomizedResponse(classes=2, epsilon=1.0).randomize(true, rng=np.random.default_rng(seed))
    records = tuple(replace(record, label=label) for record, label in zip(file.records, drawn, strict=True))
    return PrivatizedFile(manifest=seal(replace(file.manifest, label_privacy=ONE), records), records=records)


def true_loss(backbone, adapter, file):
    """Mean -log of the probability that unseen texts get for their true label."""
    rows = [ClassificationRow(adapter=adapter, token_ids=record.token_ids) for record in file.records]
    answers = classify(backbone, rows)
    return -np.mean([math.log(answer[record.label]) for answer, record in zip(answers, file.records, strict=True)])


@pytest.mark.parametrize("seed", range(2))
def test_correction_helps_on_separable_texts_at_epsilon_one(backbone, seed):
    clean, unseen = separable_file(backbone, records=96, seed=seed), separable_file(backbone, records=64, seed=99)
    noisy = randomized(clean, seed=seed)
    ignored = PrivatizedFile(manifest=replace(noisy.manifest, label_privacy=None), records=noisy.records)
    corrected = true_loss(backbone, tune(backbone, noisy, config=SHORT), unseen)
    uncorrected = true_loss(backbone, tune(backbone, ignored, config=SHORT), unseen)
    # Whoever learns p(noisy | text) perfectly gives the true label 73 %, a loss of 0.31.
    assert corrected < 0.2 < uncorrected


def test_the_tuner_takes_the_corrected_loss_and_the_card_says_so(backbone):
    noisy = randomized(separable_file(backbone, records=32), seed=0)
    batch = list(noisy.records[:8])
    corrected = Tuning(backbone, noisy.manifest, SHORT).losses(batch).task.item()
    plain = Tuning(backbone, replace(noisy.manifest, label_privacy=None), SHORT).losses(batch).task.item()
    assert corrected != plain
    adapter = tune(backbone, noisy, config=replace(SHORT, epochs=1))
    assert adapter.card.training["label_epsilon"] == 1.0
