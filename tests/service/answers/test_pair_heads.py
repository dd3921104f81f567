"""The head of a pair: it is given how two texts differ, in training, on the disk, and in a batch with other heads."""

import dataclasses

import pytest
import torch

from closeness import assert_close
from rapt.errors import TuningError, UsageError, WireError
from rapt.service.adapter.adapter import adapter_from_files, adapter_to_files
from rapt.service.adapter.task_head import compare_texts
from rapt.service.answers.inference import ClassificationRow, classify, plan, row_of
from rapt.service.backbone.backbone import load_backbone
from rapt.service.tuning.tuner import TuningCancelled, TuningConfig, tune
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal
from tuning_material import manifest_for, separable_file

WORDS = ((2204, 2307, 6659, 3376), (2919, 6660, 9202, 10231))


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("bert-tiny", precision="float32", device="cpu")


def agreeing_file(backbone, *, records=64, seed=0):
    """A pair is of class 1 if both texts are of the same words: neither text alone says anything."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for position in range(records):
        first, second = (position // 2) % 2, (position + position // 2) % 2
        texts = [
            tuple(WORDS[kind][place] for place in torch.randint(4, (5,), generator=generator).tolist())
            for kind in (first, second)
        ]
        made.append(PrivatizedRecord(token_ids=texts[0], second_token_ids=texts[1], label=int(first == second)))
    manifest = dataclasses.replace(manifest_for(backbone), pairs=True)
    return PrivatizedFile(manifest=seal(manifest, made), records=tuple(made))


@pytest.fixture(scope="module")
def comparing(backbone):
    return tune(backbone, agreeing_file(backbone), config=TuningConfig(epochs=12, batch_size=16))


def states_of(*, rows, columns=9, width=6, seed=0):
    """States, a text mask and a mask of second texts; between the texts is a position that belongs to neither."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, columns, width, generator=generator)
    text, second = torch.zeros(rows, columns), torch.zeros(rows, columns)
    for row in range(rows):
        middle = 3 + row % 3
        text[row, 1 : columns - 1] = 1.0
        text[row, middle] = 0.0
        second[row, middle + 1 :] = 1.0
    return states, text, second


def one_by_one(states, text, second):
    """The same in numbers of one pair at a time."""
    found = []
    for own, is_text, is_second in zip(states, text.bool(), second.bool(), strict=True):
        m = own[is_text].mean(dim=0)
        u, v = own[is_text & ~is_second].mean(dim=0), own[is_text & is_second].mean(dim=0)
        u, v = u / u.norm(), v / v.norm()
        found.append(torch.cat([m, m.norm() * (u - v).abs(), m.norm() * len(m) ** 0.5 * u * v]))
    return torch.stack(found)


@pytest.mark.parametrize("seed", range(5))
def test_two_texts_are_compared_as_one_pair_at_a_time(seed):
    made = states_of(rows=7, seed=seed)
    assert_close(compare_texts(*made), one_by_one(*made), layers=4, width=9)
    states, text, second = made
    with pytest.raises(AssertionError):  # a twin that counts the mark between the texts among them
        assert_close(compare_texts(states, torch.ones_like(text), second), one_by_one(*made), layers=4, width=9)


def test_equal_texts_do_not_differ_and_their_likeness_is_their_cosine():
    states, text, second = states_of(rows=4)
    states[:] = states[:, :1]
    _, apart, alike = compare_texts(states, text, second).split(states.shape[2], dim=1)
    torch.testing.assert_close(apart, torch.zeros_like(apart))
    size = states[:, 0].norm(dim=1) * states.shape[2] ** 0.5
    torch.testing.assert_close(alike.sum(dim=1) / size, torch.ones(4))  # a cosine of 1


def test_which_text_comes_first_changes_nothing_but_the_states():
    states, text, second = states_of(rows=4)
    assert_close(compare_texts(states, text, second), compare_texts(states, text, 1 - second), layers=4, width=9)


def test_agreement_of_two_texts_is_learned(backbone, comparing):
    unseen = agreeing_file(backbone, records=40, seed=1)
    answers = torch.tensor(classify(backbone, [row_of(record, adapter=comparing) for record in unseen.records]))
    right = answers.argmax(dim=1) == torch.tensor([record.label for record in unseen.records])
    assert right.float().mean() > 0.95  # 0.9 is what a head on the common mean has here


def test_it_is_saved_and_loaded_with_its_comparison(backbone, comparing):
    assert comparing.compares
    assert comparing.head_weight.shape == (2, 3 * backbone.hidden_size)
    loaded = adapter_from_files(adapter_to_files(comparing), backbone=backbone)
    rows = [row_of(record, adapter=comparing) for record in agreeing_file(backbone, records=8).records]
    assert classify(backbone, rows) == classify(backbone, [dataclasses.replace(row, adapter=loaded) for row in rows])


def test_a_head_on_the_mean_of_both_texts_is_read_as_before(backbone, comparing):
    # As adapters of pairs were before heads compared.
    width = backbone.hidden_size
    first = dataclasses.replace(comparing, head_weight=comparing.head_weight[:, :width].clone(), compares=False)
    loaded = adapter_from_files(adapter_to_files(first), backbone=backbone)
    assert not loaded.compares
    records = agreeing_file(backbone, records=4).records
    assert classify(backbone, [row_of(record, adapter=loaded) for record in records]) == classify(
        backbone, [row_of(record, adapter=first) for record in records]
    )


def test_a_comparison_in_an_adapter_of_single_texts_is_refused(backbone, comparing):
    card = dataclasses.replace(comparing.card, training={**comparing.card.training, "pairs": False})
    with pytest.raises(WireError, match="an adapter's head must be of shape"):
        adapter_from_files(adapter_to_files(dataclasses.replace(comparing, card=card)), backbone=backbone)


def test_heads_that_compare_and_heads_that_do_not_are_asked_together(backbone, comparing):
    single = tune(backbone, separable_file(backbone), config=TuningConfig(epochs=1, batch_size=32))
    pairs = agreeing_file(backbone, records=6).records
    rows = [
        row
        for record in pairs
        for row in (
            row_of(record, adapter=comparing),
            row_of(record, adapter=single),
            ClassificationRow(token_ids=record.token_ids),
        )
    ]
    together = classify(backbone, rows)
    for row, answer in zip(rows, together, strict=True):
        assert_close(torch.tensor(answer), torch.tensor(classify(backbone, [row])[0]), of=backbone)
    assert len(plan(rows)) == 2


def test_a_single_text_is_refused(backbone, comparing):
    with pytest.raises(UsageError, match="record 1 must have two texts as in tuning, got one; privatize it with"):
        classify(backbone, [ClassificationRow(adapter=comparing, token_ids=(2001,))])


def test_a_checkpoint_with_another_head_is_refused(backbone):
    file, config, kept = agreeing_file(backbone, records=16), TuningConfig(epochs=2, batch_size=8), []
    with pytest.raises(TuningCancelled):
        tune(
            backbone,
            file,
            config=config,
            should_stop=lambda: True,
            on_checkpoint=lambda checkpoint, adapter: kept.append(checkpoint),
        )
    tensors = dict(kept[0].tensors)
    tensors["parameter/task_head.linear.weight"] = torch.zeros(2, backbone.hidden_size)
    with pytest.raises(TuningError, match="a checkpoint must hold what its run trains"):
        tune(backbone, file, config=config, resume_from=dataclasses.replace(kept[0], tensors=tensors))
