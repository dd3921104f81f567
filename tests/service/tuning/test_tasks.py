"""Classes by a head or by words, and generated text: on every kind of backbone, alone and in mixed batches."""

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from closeness import assert_close
from rapt.errors import TuningError, UsageError
from rapt.local.label_privacy import RandomizedResponse
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.layout import encode_with_prompts
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tasks import DECODER_CUE, TASKS, label_word_ids, make_transition_matrix, task_loss
from rapt.service.tuning.tuner import Tuning, TuningConfig, tune
from rapt.wire.manifest import LabelPrivacy
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from tiny_backbones import TINY, WIDTH
from tuning_material import manifest_for, separable_file

# Words of the tiny tokenizers that begin differently in each of them.
WORDS = ("good", "bad")
RECORDS = [
    PrivatizedRecord(token_ids=(30, 31, 32, 33), label=0, second_token_ids=(34,), target_ids=(50, 51, 52)),
    PrivatizedRecord(token_ids=(35,), label=1, second_token_ids=(36, 37, 38), target_ids=(53,)),
    PrivatizedRecord(token_ids=(39, 40), label=1, second_token_ids=(41,), target_ids=(54, 55)),
]
SINGLES = [dataclasses.replace(record, second_token_ids=None) for record in RECORDS]
LENGTHS = [2, 0, 1]


@pytest.fixture(params=TINY)
def backbone(request, tiny):
    return tiny(request.param)


def head_of(backbone, task, *, words=WORDS):
    generator = torch.Generator().manual_seed(0)
    return TASKS[task].make_head(backbone, labels=("no", "yes"), label_words=words, pairs=False, generator=generator)


def prompts_of(lengths):
    return torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(1))


def outcome_of(backbone, task, records, head, *, lengths=LENGTHS, prompts=None, label_privacy=None):
    prompts = prompts_of(lengths) if prompts is None else prompts
    layout = TASKS[task].lay_out(backbone, records, prompt_lengths=lengths, plain=False)
    states = encode_with_prompts(backbone, layout, prompts)
    return TASKS[task].outcome(backbone, states, layout, records, head, label_privacy=label_privacy)


def vectors_of(backbone, task, records, *, lengths, prompts):
    layout = TASKS[task].lay_out(backbone, records, prompt_lengths=lengths, plain=False)
    return TASKS[task].vectors(backbone, encode_with_prompts(backbone, layout, prompts), layout)


@pytest.mark.parametrize("records", [RECORDS, SINGLES], ids=["pairs", "single"])
@pytest.mark.parametrize("task", ["classification", "label_words"])
def test_a_mixed_batch_reads_each_row_as_alone(backbone, task, records):
    prompts = prompts_of(LENGTHS)
    together = vectors_of(backbone, task, records, lengths=LENGTHS, prompts=prompts)
    for row, own in enumerate(prompts.split(LENGTHS)):
        alone = vectors_of(backbone, task, [records[row]], lengths=[len(own)], prompts=own)
        assert_close(together[row], alone[0], of=backbone)


def test_a_batch_of_targets_is_the_sum_of_its_rows(backbone):
    if backbone.kind == "encoder":
        return
    head, prompts = head_of(backbone, "generation"), prompts_of(LENGTHS)
    together = outcome_of(backbone, "generation", RECORDS, head, prompts=prompts)
    nats, right, total = 0.0, 0, 0
    for row, own in enumerate(prompts.split(LENGTHS)):
        alone = outcome_of(backbone, "generation", [RECORDS[row]], head, lengths=[len(own)], prompts=own)
        nats, right, total = nats + alone.loss * alone.total, right + alone.right, total + alone.total
    assert total == together.total == (3 + 1) + (1 + 1) + (2 + 1)  # each with its closing token
    assert right == together.right
    assert_close(together.loss, nats / total, of=backbone)


@pytest.mark.parametrize("task", TASKS)
def test_gradients_reach_the_prompt_and_never_the_backbone(backbone, task):
    if task == "generation" and backbone.kind == "encoder":
        return
    head, prompts = head_of(backbone, task), prompts_of([2]).requires_grad_()
    outcome_of(backbone, task, RECORDS[:1], head, lengths=[2], prompts=prompts).loss.backward()
    assert (prompts.grad.abs().sum(dim=1) > 0).all()
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    assert len(trained) == (2 if task == "classification" else 0)
    assert all(parameter.grad is not None for parameter in trained)
    for module in (backbone.encoder, backbone.decoder, backbone.language_head):
        assert all(parameter.grad is None for parameter in (module.parameters() if module is not None else ()))


def test_label_words_are_scored_by_the_model_s_own_head(backbone):
    ids = label_word_ids(backbone, WORDS, classes=2)
    layout = TASKS["label_words"].lay_out(backbone, SINGLES, prompt_lengths=[0, 0, 0], plain=False)
    states = encode_with_prompts(backbone, layout, None)
    vectors = TASKS["label_words"].vectors(backbone, states, layout)
    logits = head_of(backbone, "label_words")(vectors)
    if backbone.kind == "encoder-decoder":
        asked = torch.tensor([[*backbone.frame.decoder_start, backbone.frame.sentinel_id]] * 3)
        decoded = backbone.decode(asked, encoder_states=states, encoder_mask=layout.attention_mask)
        every = backbone.word_logits(decoded)[:, -1]
    else:
        every = torch.stack([row[column] for row, column in zip(states, layout.answer_column, strict=True)])
        every = backbone.word_logits(every)
    assert_close(logits, every[:, list(ids)], of=backbone)


def test_where_each_kind_reads_its_words(tiny):
    bert, t5, llama = tiny("bert"), tiny("t5"), tiny("llama")
    task = TASKS["label_words"]
    assert task.cue(bert) == (bert.frame.mask_id,)
    assert task.cue(t5) == (t5.frame.sentinel_id,)
    assert task.cue(llama) == llama.tokenize(DECODER_CUE)
    layout = task.lay_out(bert, SINGLES, prompt_lengths=[0, 0, 0], plain=False)
    assert layout.token_ids[torch.arange(3), layout.answer_column].tolist() == [bert.frame.mask_id] * 3
    layout = task.lay_out(llama, SINGLES, prompt_lengths=[0, 0, 0], plain=False)
    assert layout.token_ids[torch.arange(3), layout.answer_column].tolist() == [task.cue(llama)[-1]] * 3


def test_a_decoder_reads_a_class_where_everything_was_seen(tiny):
    llama = tiny("llama")
    layout = TASKS["classification"].lay_out(llama, RECORDS, prompt_lengths=LENGTHS, plain=False)
    assert layout.token_ids[torch.arange(3), layout.answer_column].tolist() == [34, 38, 41]


def test_randomized_labels_are_corrected_for(backbone):
    head, hidden = head_of(backbone, "classification"), LabelPrivacy(epsilon=1.0)
    vectors = vectors_of(backbone, "classification", RECORDS, lengths=LENGTHS, prompts=prompts_of(LENGTHS))
    expected = task_loss(head(vectors), torch.tensor([0, 1, 1]), label_privacy=hidden)
    outcome = outcome_of(backbone, "classification", RECORDS, head, label_privacy=hidden)
    assert_close(outcome.loss, expected, of=backbone)
    assert outcome.total == 3


def test_a_target_is_predicted_by_what_stands_before_it(tiny):
    for name in ("llama", "gpt2", "t5"):
        backbone = tiny(name)
        head = head_of(backbone, "generation")
        record = RECORDS[0]
        # Word by word, from rows that end where the word is missing: the naive twin of teacher forcing.
        nats = []
        for count, wanted in enumerate((*record.target_ids, backbone.frame.eos_id)):
            so_far = dataclasses.replace(record, target_ids=record.target_ids[:count])
            layout = TASKS["generation"].lay_out(backbone, [so_far], prompt_lengths=[0], plain=False)
            states = encode_with_prompts(backbone, layout, None)
            if name == "t5":
                words = torch.tensor([[*backbone.frame.decoder_start, *so_far.target_ids]])
                states = backbone.decode(words, encoder_states=states, encoder_mask=layout.attention_mask)
            logits = backbone.word_logits(states[0, -1])
            nats.append(nn.functional.cross_entropy(logits[None], torch.tensor([wanted])))
        outcome = outcome_of(backbone, "generation", [record], head, lengths=[0], prompts=torch.empty(0, WIDTH))
        assert_close(outcome.loss, torch.stack(nats).mean(), of=backbone)


@pytest.mark.parametrize("task", TASKS)
def test_a_soft_prompt_learns_the_task_on_every_backbone(backbone, task):
    if task == "generation" and backbone.kind == "encoder":
        return
    head = head_of(backbone, task)
    prompts = nn.Parameter(prompts_of([4]))
    trained = [prompts, *(parameter for parameter in head.parameters() if parameter.requires_grad)]
    optimizer = torch.optim.Adam(trained, lr=0.3)
    losses = []
    for _ in range(25):
        outcome = outcome_of(backbone, task, SINGLES, head, lengths=[4] * 3, prompts=prompts.repeat(3, 1))
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(outcome.loss.item())
    assert min(losses[-5:]) < 0.85 * losses[0]


def test_an_encoder_writes_no_text(tiny):
    manifest = dataclasses.replace(manifest_for(tiny("bert")), targets="privatized")
    with pytest.raises(UsageError, match="an encoder-decoder or a decoder, got"):
        TASKS["generation"].check(tiny("bert"), manifest)


def test_a_file_without_what_the_task_needs_is_refused(tiny):
    t5 = tiny("t5")
    with pytest.raises(TuningError, match="must have targets"):
        TASKS["generation"].check(t5, manifest_for(t5))
    with pytest.raises(TuningError, match="must have labels"):
        TASKS["classification"].check(t5, manifest_for(t5, labels=None))


@pytest.mark.parametrize(
    ("words", "message"),
    [(("good",), "one label word for each of 2 classes, got 1"), (("good", "good"), "got 0 different|got 1 different")],
)
def test_label_words_that_cannot_be_told_apart_are_refused(backbone, words, message):
    with pytest.raises(TuningError, match=message):
        label_word_ids(backbone, words, classes=2)


@pytest.mark.parametrize("task", TASKS)
def test_a_record_that_privatized_to_nothing_or_is_too_long_is_refused(backbone, task):
    def check(**changes):
        record = dataclasses.replace(RECORDS[0], **changes)
        TASKS[task].check_record(backbone, record, prompt_length=2, plain_tokens=0, position=9)

    check()
    for empty in ({"token_ids": ()}, {"second_token_ids": ()}):
        with pytest.raises(UsageError, match="record 10 must have at least one token"):
            check(**empty)
    with pytest.raises(UsageError, match="record 10 must fit into"):
        check(second_token_ids=(30,) * backbone.max_positions)
    if task == "generation":
        with pytest.raises(UsageError, match="record 10 must have a target"):
            check(target_ids=())
        if backbone.kind != "encoder":
            with pytest.raises(UsageError, match="record 10 must fit into"):
                check(target_ids=(30,) * backbone.max_positions)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_checked_is_what_is_laid_out(backbone, task):
    if task == "generation" and backbone.kind == "encoder":
        return
    record = dataclasses.replace(RECORDS[0], privatized_plain_tokens=(31, 32))
    layout = TASKS[task].lay_out(backbone, [record], prompt_lengths=[2], plain=True)
    exact = dataclasses.replace(backbone, max_positions=int(layout.lengths[0]))
    TASKS[task].check_record(exact, record, prompt_length=2, plain_tokens=2, position=0)
    short = dataclasses.replace(backbone, max_positions=int(layout.lengths[0]) - 1)
    with pytest.raises(UsageError, match="record 1 must fit into"):
        TASKS[task].check_record(short, record, prompt_length=2, plain_tokens=2, position=0)


# Training on labels from randomized response: the corrected loss by hand, in law, and at work.


ONE = LabelPrivacy(epsilon=1.0)


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 1.0), (2, 1e-6), (5, 3.0), (2, 40.0), (7, 700.0), (256, 2.0)])
def test_the_matrix_is_the_one_that_labels_are_drawn_from(classes, epsilon):
    keep = RandomizedResponse(classes=classes, epsilon=epsilon).keep_probability
    matrix = make_transition_matrix(classes=classes, epsilon=epsilon)
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
    mixed = torch.softmax(logits, dim=1) @ torch.as_tensor(make_transition_matrix(classes=4, epsilon=1.0))
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
    noisy = torch.tensor(truth, dtype=torch.float64) @ torch.as_tensor(make_transition_matrix(classes=2, epsilon=1.0))

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
def bert_tiny():
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
    return PrivatizedFile(manifest=seal_manifest(replace(file.manifest, label_privacy=ONE), records), records=records)


def true_loss(bert_tiny, adapter, file):
    """Mean -log of the probability that unseen texts get for their true label."""
    rows = [ClassificationRow(adapter=adapter, token_ids=record.token_ids) for record in file.records]
    answers = classify(bert_tiny, rows)
    return -np.mean([math.log(answer[record.label]) for answer, record in zip(answers, file.records, strict=True)])


@pytest.mark.parametrize("seed", range(2))
def test_correction_helps_on_separable_texts_at_epsilon_one(bert_tiny, seed):
    clean, unseen = separable_file(bert_tiny, records=96, seed=seed), separable_file(bert_tiny, records=64, seed=99)
    noisy = randomized(clean, seed=seed)
    ignored = PrivatizedFile(manifest=replace(noisy.manifest, label_privacy=None), records=noisy.records)
    corrected = true_loss(bert_tiny, tune(bert_tiny, noisy, config=SHORT), unseen)
    uncorrected = true_loss(bert_tiny, tune(bert_tiny, ignored, config=SHORT), unseen)
    # Whoever learns p(noisy | text) perfectly gives the true label 73 %, a loss of 0.31.
    assert corrected < 0.2 < uncorrected


def test_the_tuner_takes_the_corrected_loss_and_the_card_says_so(bert_tiny):
    noisy = randomized(separable_file(bert_tiny, records=32), seed=0)
    batch = list(noisy.records[:8])
    corrected = Tuning(bert_tiny, noisy.manifest, SHORT).losses(batch).task.item()
    plain = Tuning(bert_tiny, replace(noisy.manifest, label_privacy=None), SHORT).losses(batch).task.item()
    assert corrected != plain
    adapter = tune(bert_tiny, noisy, config=replace(SHORT, epochs=1))
    assert adapter.card.training["label_epsilon"] == 1.0
