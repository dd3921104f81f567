import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from closeness import assert_close
from rapt.errors import TuningError, UsageError, VocabularyError, WireError
from rapt.service.adapter.adapter import (
    CARD,
    PEFT_CONFIG,
    WEIGHTS,
    adapter_from_files,
    adapter_to_files,
    load_adapter,
    save_adapter,
)
from rapt.service.adapter.task_head import compare_texts
from rapt.service.answers import prediction
from rapt.service.answers.prediction import ClassificationRow, classify, compute_class_probabilities, plan, row_of
from rapt.service.answers.rows import MAX_ROWS
from rapt.service.backbone.steering import Tuned
from rapt.service.tuning.tuner import ReconstructionConfig, TuningCancelled, TuningConfig, tune
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest
from tuning_material import manifest_for, separable_file


def tuned(backbone, *, seed, prompt_length, plain):
    config = TuningConfig(
        prompt_length=prompt_length,
        epochs=1,
        batch_size=16,
        seed=seed,
        reconstruction=ReconstructionConfig(head_size=8) if plain else None,
    )
    return tune(backbone, separable_file(backbone, plain=plain, seed=seed), config=config)


@pytest.fixture(scope="module")
def adapters(backbone):
    return [
        tuned(backbone, seed=0, prompt_length=3, plain=0),
        tuned(backbone, seed=1, prompt_length=7, plain=0),
        tuned(backbone, seed=2, prompt_length=5, plain=4),
    ]


def rows_of(backbone, adapters, count):
    records = separable_file(backbone, records=count, plain=4, seed=5).records
    return [
        ClassificationRow(
            adapter=adapters[position % len(adapters)],
            token_ids=record.token_ids,
            privatized_plain_tokens=record.privatized_plain_tokens,
        )
        for position, record in enumerate(records)
    ]


def test_a_mixed_batch_answers_as_one_by_one(backbone, adapters):
    rows = rows_of(backbone, adapters, 2 * MAX_ROWS + 3)
    together = classify(backbone, rows)
    alone = [classify(backbone, [row])[0] for row in rows]
    assert_close(torch.tensor(together), torch.tensor(alone), of=backbone)


def test_two_tenants_get_different_answers_to_the_same_text(backbone, adapters):
    # PEFT gives every row the active adapter's prompt: then these would be equal.
    text = rows_of(backbone, adapters, 1)[0].token_ids
    first, second = classify(backbone, [ClassificationRow(adapter=adapter, token_ids=text) for adapter in adapters[:2]])
    assert abs(first[0] - second[0]) > 1e-4


def test_the_order_of_rows_never_swaps_answers(backbone, adapters):
    rows = rows_of(backbone, adapters, 40)
    forward, backward = classify(backbone, rows), classify(backbone, rows[::-1])
    assert_close(torch.tensor(forward), torch.tensor(backward[::-1]), of=backbone)


def test_probabilities_sum_to_one(backbone, adapters):
    sums = [sum(answer) for answer in classify(backbone, rows_of(backbone, adapters, 6))]
    assert_close(sums, [1.0] * 6, width=2)


def test_a_query_without_its_plain_tokens_is_refused(backbone, adapters):
    row = ClassificationRow(adapter=adapters[2], token_ids=(2001,))
    with pytest.raises(UsageError, match="record 1 must have 4 privatized plain tokens as in tuning, got 0"):
        classify(backbone, [row])


def test_saved_and_loaded_it_answers_the_same(backbone, adapters, tmp_path):
    for position, adapter in enumerate(adapters):
        folder = tmp_path / str(position)
        save_adapter(adapter, folder)
        loaded = load_adapter(folder, backbone=backbone)
        rows = rows_of(backbone, [adapter], 8)
        again = [dataclasses.replace(row, adapter=loaded) for row in rows]
        assert classify(backbone, rows) == classify(backbone, again)
        assert dataclasses.replace(loaded.card, weights_sha256="") == adapter.card


def test_the_file_has_peft_s_names_and_no_reconstruction_head(backbone, adapters, tmp_path):
    save_adapter(adapters[2], tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert set(tensors) == {"prompt_embeddings", "classifier.weight", "classifier.bias"}
    assert tensors["prompt_embeddings"].shape == (5, backbone.hidden_size)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_edited_weights_are_refused(backbone, adapters, tmp_path):
    save_adapter(adapters[0], tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WireError, match="must match the digest"):
        load_adapter(tmp_path / "a", backbone=backbone)


def test_a_missing_file_is_refused(backbone, adapters, tmp_path):
    save_adapter(adapters[0], tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(WireError, match=r"must have rapt\.json and"):
        load_adapter(tmp_path / "a", backbone=backbone)


def test_an_unknown_version_is_refused(backbone, adapters, tmp_path):
    save_adapter(adapters[0], tmp_path / "a")
    card = tmp_path / "a" / "rapt.json"
    card.write_text(card.read_text().replace("rapt.adapter/1", "rapt.adapter/9"))
    with pytest.raises(WireError, match="must be of schema"):
        load_adapter(tmp_path / "a", backbone=backbone)


def test_an_adapter_of_another_backbone_is_refused(backbone, adapters, tmp_path):
    save_adapter(adapters[0], tmp_path / "a")
    other = dataclasses.replace(backbone, model="minilm")
    with pytest.raises(VocabularyError, match="must meet the backbone it was tuned on"):
        load_adapter(tmp_path / "a", backbone=other)


def test_clean_text_has_no_manifest_that_could_be_written(backbone, adapters, tmp_path):
    # The clean upper bound is held in memory with eta = infinity: saving it must fail, and leave nothing behind.
    card = adapters[0].card
    clean = dataclasses.replace(card, mechanism=dataclasses.replace(card.mechanism, parameters={"eta": float("inf")}))
    with pytest.raises(ValueError, match="Out of range float"):
        save_adapter(dataclasses.replace(adapters[0], card=clean), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def bare(backbone, count):
    return [ClassificationRow(token_ids=record.token_ids) for record in separable_file(backbone, records=count).records]


def answers_as_alone(classify_many, rows, backbone):
    """The law of a mixed batch: every row answers as if it were alone."""
    together = classify_many(rows)
    for row, answer in zip(rows, together, strict=True):
        assert_close(torch.tensor(answer), torch.tensor(classify_many([row])[0]), of=backbone)


def test_rows_without_an_adapter_share_the_batch_and_get_the_mean_state(backbone, adapters):
    rows = [row for pair in zip(rows_of(backbone, adapters, 12), bare(backbone, 12), strict=True) for row in pair]
    answers_as_alone(lambda many: classify(backbone, many), rows, backbone)
    assert len(classify(backbone, bare(backbone, 1))[0]) == backbone.hidden_size


@pytest.mark.parametrize("seed", range(5))
def test_an_active_adapter_for_every_row_would_be_caught(backbone, adapters, seed):
    # What PEFT does with soft prompts: the argument that names each row's adapter is accepted and ignored.
    def with_the_active_one(rows):
        return classify(backbone, [dataclasses.replace(row, adapter=rows[0].adapter) for row in rows])

    records = separable_file(backbone, records=4, seed=seed).records
    rows = [
        ClassificationRow(adapter=adapters[position % 2], token_ids=record.token_ids)
        for position, record in enumerate(records)
    ]
    answers_as_alone(lambda many: classify(backbone, many), rows, backbone)
    with pytest.raises(AssertionError, match="rounding explains"):
        answers_as_alone(with_the_active_one, rows, backbone)


KINDS = {
    "prompt of 3": {"method": "prompt_tuning", "prompt_length": 3},
    "prompt of 7": {"method": "prompt_tuning", "prompt_length": 7},
    "prefix of 4": {"method": "prefix_tuning", "prompt_length": 4},
    "prefix of 2": {"method": "prefix_tuning", "prompt_length": 2},
    "low rank": {"method": "lora"},
    "head alone": {"method": "linear_probing"},
    "label words": {"method": "prompt_tuning", "prompt_length": 2, "task": "label_words"},
}


@pytest.fixture(scope="module")
def every_kind(backbone):
    return [
        tune(
            backbone,
            separable_file(backbone, seed=seed),
            config=TuningConfig(epochs=1, batch_size=32, seed=seed, **kind),
        )
        for seed, kind in enumerate(KINDS.values())
    ]


def test_every_method_and_the_bare_backbone_share_one_batch(backbone, every_kind):
    adapters = [*every_kind, None]
    records = separable_file(backbone, records=6 * len(adapters), seed=3).records
    rows = [
        ClassificationRow(adapter=adapters[position % len(adapters)], token_ids=record.token_ids)
        for position, record in enumerate(records)
    ]
    answers_as_alone(lambda many: classify(backbone, many), rows, backbone)
    assert len(plan(rows)) == 3  # what is read elsewhere, and what costs every row, goes alone


def test_a_pair_and_a_single_text_share_one_batch(backbone, adapters):
    texts = [record.token_ids for record in separable_file(backbone, records=8).records]
    rows = [
        ClassificationRow(adapter=adapters[0], token_ids=one, second_token_ids=other)
        for one, other in zip(texts, [None, *texts[1:4], None, *texts[5:]], strict=True)
    ]
    answers_as_alone(lambda many: classify(backbone, many), rows, backbone)


def test_a_head_alone_has_nothing_that_peft_could_load(every_kind):
    written = {kind: set(adapter_to_files(adapter)) for kind, adapter in zip(KINDS, every_kind, strict=True)}
    assert written["head alone"] == {WEIGHTS, CARD}
    assert all(PEFT_CONFIG in names for kind, names in written.items() if kind != "head alone")


def test_the_cost_of_a_prefix_counts_and_a_long_one_is_in_a_pass_of_its_own(backbone, adapters):
    sites = backbone.sites.attention

    def with_prefix(length):
        keys = torch.zeros(len(sites), 2, sites[0].key_heads, length, sites[0].head_size)
        return ClassificationRow(
            adapter=dataclasses.replace(adapters[0], tuned=Tuned(prefix=keys)), token_ids=(2001, 2002)
        )

    plain = ClassificationRow(adapter=adapters[0], token_ids=(2001, 2002))
    assert with_prefix(400).positions - plain.positions == 400 - adapters[0].tuned.prompt_length
    rows = [plain] * 3 + [with_prefix(5), with_prefix(400), plain]
    assert sorted(map(sorted, plan(rows))) == [[0, 1, 2, 3, 5], [4]]


# The head of a pair: it is given how two texts differ, in training, on the disk, and in a batch with other heads.


WORDS = ((2204, 2307, 6659, 3376), (2919, 6660, 9202, 10231))


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
    return PrivatizedFile(manifest=seal_manifest(manifest, made), records=tuple(made))


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


def compare_one_by_one(states, text, second):
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
    assert_close(compare_texts(*made), compare_one_by_one(*made), layers=4, width=9)
    states, text, second = made
    with pytest.raises(AssertionError):  # a twin that counts the mark between the texts among them
        assert_close(compare_texts(states, torch.ones_like(text), second), compare_one_by_one(*made), layers=4, width=9)


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


def test_a_comparison_in_an_adapter_of_single_texts_is_refused(backbone, comparing):
    card = dataclasses.replace(comparing.card, pairs=False)
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


def test_a_run_state_with_another_head_is_refused(backbone):
    file, config, kept = agreeing_file(backbone, records=16), TuningConfig(epochs=2, batch_size=8), []
    with pytest.raises(TuningCancelled):
        tune(
            backbone,
            file,
            config=config,
            should_stop=lambda: True,
            on_run_state=lambda state, adapter: kept.append(state),
        )
    tensors = dict(kept[0].tensors)
    tensors["parameter/task_head.linear.weight"] = torch.zeros(2, backbone.hidden_size)
    with pytest.raises(TuningError, match="a run state must hold what its run trains"):
        tune(backbone, file, config=config, resume_from=dataclasses.replace(kept[0], tensors=tensors))


WIDTH = 16


def batch_of(seed, *, classes=(2, 5, 1, 40), rows=23):
    generator = torch.Generator().manual_seed(seed)
    adapters = [(torch.randn(c, WIDTH, generator=generator), torch.randn(c, generator=generator)) for c in classes]
    chosen = torch.randint(len(adapters), (rows,), generator=generator).tolist()
    return torch.randn(rows, WIDTH, generator=generator), [adapters[index] for index in chosen]


def apply_heads_one_by_one(pooled, heads):
    return [torch.softmax(weight @ vector + bias, dim=0) for vector, (weight, bias) in zip(pooled, heads, strict=True)]


def same(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert_close(torch.tensor(row), other, width=WIDTH)


@pytest.mark.parametrize("seed", range(5))
def test_heads_of_mixed_sizes_answer_as_apply_heads_one_by_one(seed):
    pooled, heads = batch_of(seed)
    same(compute_class_probabilities(pooled, heads), apply_heads_one_by_one(pooled, heads))


@pytest.mark.parametrize("seed", range(5))
def test_one_head_for_every_row_would_be_caught(seed):
    pooled, heads = batch_of(seed, classes=(3, 3, 3))
    with pytest.raises(AssertionError):
        same(compute_class_probabilities(pooled, [heads[0]] * len(heads)), apply_heads_one_by_one(pooled, heads))


def test_many_classes_are_computed_in_slices(monkeypatch):
    monkeypatch.setattr(prediction, "_SLICE", 3 * 40 * WIDTH)
    pooled, heads = batch_of(0)
    same(compute_class_probabilities(pooled, heads), apply_heads_one_by_one(pooled, heads))
