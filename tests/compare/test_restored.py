"""Arms that restore: what they read is the posterior of the identical files, and nothing else of a file moves."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from rapt.compare.arms import (
    ANSWERED_DRAWS,
    ARMS,
    CONSISTENCY,
    CONSISTENT,
    DENOISED,
    DENOISED_CONSISTENT,
    DENOISED_DRAWS,
    DENOISED_SOFT_MASKS,
    DIFFERENCES,
    DRAWS,
    MEANS,
    MOST_LIKELY,
    PROMPT,
    SOFT_MASKS,
    USUAL,
)
from rapt.compare.bench import lesson, open_bench, right_answers
from rapt.compare.crew import run_comparison
from rapt.compare.files import FileMaker
from rapt.compare.plan import ComparisonPlan, weights_digest
from rapt.compare.restored import (
    Reading,
    WordReader,
    most_likely_words,
    posterior_draws,
    posterior_means,
    soft_masks,
    texts_of,
    with_texts,
)
from rapt.compare.results import ModelRow
from rapt.compare.summary import summarize
from rapt.compare.texts import LabelledTexts, Split
from rapt.compare.verdict import verdict
from rapt.errors import UsageError, VocabularyError
from rapt.local.vocabulary import load_vocabulary
from rapt.service.model.backbone import load_backbone
from rapt.service.model.inference import classify, row_of
from rapt.service.model.layout import embed_with_prompts, lay_out
from rapt.service.model.posterior import Posterior
from rapt.service.model.tuner import tune
from rapt.service.model.word_head import WORD_HEAD, word_head_file
from significance import assert_probability
from word_head_material import untrained_head, write_denoised, write_reading

CONSISTENT_DRAWS = (CONSISTENT, DENOISED_CONSISTENT)
RESTORED = (MOST_LIKELY, DRAWS, MEANS, DENOISED_DRAWS, SOFT_MASKS, DENOISED_SOFT_MASKS, *CONSISTENT_DRAWS)
WORDS = (("bad", "awful", "poor", "sad"), ("good", "great", "fine", "happy"))


def texts(count, *, start, pairs=False):
    places = range(start, start + count)
    found = tuple(f"the film was {WORDS[place % 2][place // 2 % 4]} in scene {place}" for place in places)
    return LabelledTexts(
        texts=found,
        labels=tuple(place % 2 for place in places),
        names=("negative", "positive"),
        seconds=tuple(f"take {place}" for place in places) if pairs else (),
    )


SPLIT = Split(training=texts(32, start=0), evaluation=texts(16, start=100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_reading(tmp_path_factory.mktemp("reads") / "reads")


@pytest.fixture(scope="module")
def plan(folder):
    return ComparisonPlan(
        model="bert-tiny",
        etas=(90.0,),
        seeds=(0,),
        arms=(PROMPT, DENOISED, *RESTORED),
        denoised=str(folder),
        privatizations=2,
        plain_tokens=2,
        plain_pool=10,
        epochs=2,
        batch_size=8,
    )


@pytest.fixture(scope="module")
def reader():
    return WordReader(
        backbone=load_backbone("bert-tiny", precision="float32"),
        head=untrained_head("bert-tiny", doubtful=True),
        keeps=2,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["texts", "pairs"])
def file(request, plan):
    made = FileMaker(plan, load_vocabulary("bert-tiny"))
    return made.training(texts(12, start=0, pairs=request.param), eta=90.0, seed=0)


@pytest.fixture
def posterior(file, reader):
    """Half of the probability on what arrived, and half on a word of its own for each position."""
    arrived = torch.tensor([word for text in texts_of(file) for word in text])
    words = torch.stack([arrived, 3000 + torch.arange(len(arrived))], dim=1)
    lengths = tuple(len(text) for text in texts_of(file))
    halves = torch.full(words.shape, 0.5)
    return Posterior(words=words, probabilities=halves, arrived=halves[:, 0], lengths=lengths)


def same_but_for_texts(before, after):
    return [replace(record, token_ids=(), second_token_ids=None) for record in before.records] == [
        replace(record, token_ids=(), second_token_ids=None) for record in after.records
    ]


def test_texts_are_taken_out_and_put_back(file):
    assert with_texts(file, texts_of(file)) == file
    both = [ids for record in file.records for ids in (record.token_ids, record.second_token_ids) if ids is not None]
    assert sorted(texts_of(file)) == sorted(both)


def test_every_version_keeps_labels_plain_tokens_and_lengths(file, posterior, reader):
    reading = Reading(backbone=reader.backbone, files=(file,))
    for restore, versions in ((most_likely_words, 1), (posterior_draws, 3), (posterior_means, 1), (soft_masks, 1)):
        found = restore(reading, posterior, 3, np.random.default_rng(0))
        assert len(found.files) == versions
        for version in found.files:
            assert version.manifest == file.manifest
            assert same_but_for_texts(file, version)
            assert list(map(len, texts_of(version))) == list(map(len, texts_of(file)))


def test_the_most_likely_words_stand_where_they_were_read(file, posterior, reader):
    turned = replace(posterior, words=posterior.words.flip(1))
    found = most_likely_words(Reading(backbone=reader.backbone, files=(file,)), turned, 1, np.random.default_rng(0))
    flat = [word for text in texts_of(found.files[0]) for word in text]
    assert flat == list(range(3000, 3000 + len(flat)))
    assert found.backbone is reader.backbone


def test_versions_are_drawn_afresh_and_joined_one_after_the_other(file, posterior, reader):
    found = posterior_draws(Reading(backbone=reader.backbone, files=(file,)), posterior, 8, np.random.default_rng(0))
    flat = np.array([[word for text in texts_of(version) for word in text] for version in found.files])
    kept = flat == np.array([word for text in texts_of(file) for word in text])
    assert_probability(int(kept.sum()), kept.size, 0.5)
    assert len({tuple(version) for version in flat}) == 8
    assert found.joined.records == tuple(record for version in found.files for record in version.records)
    assert found.joined.manifest.records == 8 * len(file.records)
    assert found.joined.manifest.tokens == 8 * file.manifest.tokens


def test_mean_vectors_are_what_the_backbone_is_shown(file, posterior, reader):
    """Naive twin: the mean of the two rows of the table, at every position of a text."""
    found = posterior_means(Reading(backbone=reader.backbone, files=(file,)), posterior, 1, np.random.default_rng(0))
    table, start = reader.backbone.word_embeddings, 0
    assert torch.equal(found.backbone.word_embeddings[: len(table)], table)
    for before, after in zip(texts_of(file), texts_of(found.files[0]), strict=True):
        layout = lay_out(found.backbone, prompt_lengths=[0], privatized_plain_tokens=[()], texts=[after])
        shown = embed_with_prompts(found.backbone, layout, None)[layout.text_mask > 0]
        own = table[3000 + start : 3000 + start + len(before)]
        assert torch.allclose(shown, (table[list(before)] + own) / 2, atol=1e-6)
        start += len(before)


def shown_vectors(reading):
    """What the backbone is shown of every text, (N, h), in the order of `texts_of`."""
    found = []
    for text in texts_of(reading.files[0]):
        layout = lay_out(reading.backbone, prompt_lengths=[0], privatized_plain_tokens=[()], texts=[text])
        found.append(embed_with_prompts(reading.backbone, layout, None)[layout.text_mask > 0])
    return torch.cat(found)


def masked(file, posterior, reader):
    return soft_masks(Reading(backbone=reader.backbone, files=(file,)), posterior, 1, np.random.default_rng(0))


def vectors_that_arrived(file, reader):
    return reader.backbone.word_embeddings[[word for text in texts_of(file) for word in text]]


def test_a_sure_word_is_shown_as_it_came_and_one_that_is_surely_wrong_as_a_mask(file, posterior, reader):
    """To the last bit, and each at its own place."""
    sure = torch.arange(len(posterior.arrived)) % 3 != 0
    found = shown_vectors(masked(file, replace(posterior, arrived=sure.float()), reader))
    arrived = vectors_that_arrived(file, reader)
    mask = reader.backbone.word_embeddings[reader.backbone.frame.mask_id]
    assert torch.equal(found, torch.where(sure[:, None], arrived, mask))
    assert not torch.equal(found, torch.where(sure[:, None], mask, arrived))  # what a probability of error would do


def test_between_them_a_word_is_moved_towards_the_mask_by_its_doubt(file, posterior, reader, rng):
    """Naive twin, word by word."""
    chances = rng.random(len(posterior.arrived)).astype(np.float32)
    found = shown_vectors(masked(file, replace(posterior, arrived=torch.from_numpy(chances)), reader)).numpy()
    table = reader.backbone.word_embeddings.numpy()
    mask = table[reader.backbone.frame.mask_id]
    for vector, chance, arrived in zip(found, chances, vectors_that_arrived(file, reader).numpy(), strict=True):
        assert vector == pytest.approx(chance * arrived + (1 - chance) * mask, abs=1e-6)


def test_soft_masks_need_a_mask(reader, file, posterior):
    bare = replace(reader.backbone, frame=replace(reader.backbone.frame, mask_id=None))
    with pytest.raises(UsageError, match=r"need a backbone with a \[MASK\] token, got model='bert-tiny' without"):
        soft_masks(Reading(backbone=bare, files=(file,)), posterior, 1, np.random.default_rng(0))


def test_a_file_is_read_once_however_many_arms_ask(file, reader):
    assert reader.posterior(file) is reader.posterior(replace(file))
    assert sum(reader.posterior(file).lengths) == sum(map(len, texts_of(file)))


def test_an_answer_is_the_mean_over_all_versions(plan, reader):
    """Naive twin: probabilities of each version, averaged by hand."""
    bench = open_bench(plan, SPLIT, threads=1)
    training, queries = (bench.files.training(SPLIT.training, eta=90.0, seed=seed) for seed in (0, 1))
    adapter = tune(bench.backbone, training, config=plan.config(seed=0))
    posterior = Posterior(
        words=torch.tensor([[word, 3000] for text in texts_of(queries) for word in text]),
        probabilities=torch.full((sum(map(len, texts_of(queries))), 2), 0.5),
        arrived=torch.full((sum(map(len, texts_of(queries))),), 0.5),
        lengths=tuple(map(len, texts_of(queries))),
    )
    asked = posterior_draws(Reading(bench.backbone, (queries,)), posterior, 5, np.random.default_rng(0))
    answers = [
        np.array(classify(bench.backbone, [row_of(record, adapter=adapter) for record in version.records]))
        for version in asked.files
    ]
    expected = [
        int(sum(answer[place] for answer in answers).argmax()) == record.label
        for place, record in enumerate(queries.records)
    ]
    assert right_answers(bench.backbone, adapter, *asked.files).tolist() == expected


def test_epochs_of_draws_are_as_many_steps_as_of_any_other_arm(plan):
    bench = open_bench(plan, SPLIT, threads=1)
    cells = {cell.arm: cell for cell in plan.cells()}
    file = bench.files.training(SPLIT.training, eta=90.0, seed=0)
    read, again = (
        bench.reading(cells[arm], SPLIT.training, file, place=0, draws=plan.epochs) for arm in (DRAWS, DENOISED_DRAWS)
    )
    assert len(read.joined.records) == plan.epochs * len(file.records)
    assert read.files[0] != read.files[1]
    assert again.files == read.files  # the same draws, so that the two differ by the backbone alone
    assert again.backbone is bench.denoised
    assert read.backbone is bench.backbone


def drawn(file, posterior, reader, versions):
    rng = np.random.default_rng(0)
    return posterior_draws(Reading(backbone=reader.backbone, files=(file,)), posterior, versions, rng)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5])
def test_consistent_draws_are_the_draws_of_the_other_arm_two_at_a_time(file, posterior, reader, plan, epochs):
    """As many sequences and steps; where epochs are odd, a half of the records is in the last pair."""
    common = replace(plan, epochs=epochs).config(seed=3)
    config = ARMS[CONSISTENT].configure(common, plan.weight, plan.plain_tokens)
    assert config == replace(common, consistency=CONSISTENCY)
    usual, nothing, plain = lesson(drawn(file, posterior, reader, epochs), common, twins=False)
    read = drawn(file, posterior, reader, epochs + epochs % 2)
    training, twin, run = lesson(read, config, twins=True)
    assert (nothing, plain.epochs, run.epochs) == (None, 1, 1)
    assert run == replace(config, epochs=1, batch_size=plain.batch_size // 2)
    count, sequences = len(file.records), epochs if epochs > 1 else 2
    assert len(usual.records) == epochs * count
    assert len(training.records) == len(twin.records) == sequences * count // 2
    for joined in (training, twin):
        assert joined.manifest.records == len(joined.records)
        assert joined.manifest.tokens == sum(map(len, texts_of(joined)))
    assert set(read.files[0].records) <= set(training.records)  # every text is read
    assert same_but_for_texts(training, twin)
    assert list(map(len, texts_of(training))) == list(map(len, texts_of(twin)))
    # Another draw of the same text, and not the same one twice: a pair of that kind would never disagree.
    assert sum(one != other for one, other in zip(training.records, twin.records, strict=True)) > len(twin.records) / 2
    assert read.files[:epochs] == drawn(file, posterior, reader, epochs).files


def test_the_half_of_an_odd_epoch_is_drawn_from_the_seed(file, posterior, reader, plan):
    read = drawn(file, posterior, reader, 4)
    halves = []
    for seed in (0, 0, 1):
        training, twin, _ = lesson(read, replace(plan, epochs=3).config(seed=seed), twins=True)
        halves.append(training.records[len(file.records) :])
        places = [read.files[2].records.index(record) for record in halves[-1]]
        assert twin.records[len(file.records) :] == tuple(read.files[3].records[place] for place in places)
        assert places == sorted(set(places))
    assert halves[0] == halves[1] != halves[2]


@pytest.fixture(scope="module")
def results(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison") / "results.jsonl"
    return path, run_comparison(plan, SPLIT, results=path)


def test_every_arm_is_run_and_its_differences_are_stated(results, plan):
    summary = summarize(results[1])
    assert {item.arm for item in summary.accuracies} == set(plan.arms)
    stated = {(item.arm, item.other) for item in summary.differences}
    assert stated == {pair for pair in DIFFERENCES if set(pair) <= set(plan.arms)}
    assert {(arm, other) for arm in RESTORED for other in (PROMPT, DENOISED)} <= stated
    said = list(verdict(summary))
    assert all(any(f"{arm}, against {DENOISED}" in line for line in said) for arm in RESTORED)


def test_a_comparison_goes_on_to_the_same_numbers_in_another_process(results, plan, tmp_path):
    path, rows = results
    lines = path.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "results.jsonl"
    cut.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    again = run_comparison(plan, SPLIT, results=cut, processes=2)
    assert {row.cell: row.right for row in again} == {row.cell: row.right for row in rows}
    assert all(isinstance(row, ModelRow) for row in again)


def test_words_that_are_surely_what_arrived_change_nothing(plan, folder, tmp_path):
    """A head that never doubts makes files and means of what is there, so every arm must answer as the plain one."""
    sure = untrained_head("bert-tiny")
    with torch.no_grad():
        sure.copying.bias.fill_(1e4)
    copied = tmp_path / "sure"
    shutil.copytree(folder, copied)
    (copied / WORD_HEAD).write_bytes(word_head_file(sure))
    chosen = replace(plan, arms=(PROMPT, MOST_LIKELY, MEANS, SOFT_MASKS), denoised=str(copied))
    rows = {row.arm: row.right for row in run_comparison(chosen, SPLIT, results=tmp_path / "r.jsonl")}
    assert rows[PROMPT] == rows[MOST_LIKELY] == rows[MEANS] == rows[SOFT_MASKS]


def test_a_folder_without_a_head_or_with_a_damaged_one_is_refused_whoever_works(plan, folder, tmp_path):
    bare = write_denoised(tmp_path / "bare")
    without = replace(plan, arms=(MEANS,), denoised=str(bare))
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / WORD_HEAD).write_bytes(b"damaged")
    for processes in (1, 2):
        with pytest.raises(UsageError, match="got a folder without; add one with rapt word-head"):
            run_comparison(without, SPLIT, results=tmp_path / f"without{processes}.jsonl", processes=processes)
    with pytest.raises(VocabularyError, match="must hold the finite weights of a head"):
        run_comparison(replace(plan, denoised=str(damaged)), SPLIT, results=tmp_path / "damaged.jsonl")
    # Arms that read no words ask for no head.
    assert open_bench(replace(plan, arms=(DENOISED,), denoised=str(bare)), SPLIT, threads=1).reader is None


def test_results_of_another_head_are_not_mixed(plan, folder, tmp_path):
    copied = tmp_path / "other"
    shutil.copytree(folder, copied)
    assert weights_digest(str(copied)) == weights_digest(str(folder))
    (copied / WORD_HEAD).write_bytes((folder / WORD_HEAD).read_bytes() + b" ")
    assert weights_digest(str(copied)) != weights_digest(str(folder))
    assert replace(plan, denoised=str(copied)).setting(SPLIT) != plan.setting(SPLIT)


def test_arms_that_restore_are_left_out_where_nothing_is_said():
    assert not set(RESTORED) & set(USUAL)
    assert ANSWERED_DRAWS == 8
    for arm in RESTORED:
        with pytest.raises(UsageError, match=f"the arm '{arm}' needs a backbone that expects noise; give --denoised"):
            ComparisonPlan(model="bert-tiny", etas=(75.0,), arms=(arm,))


def test_a_results_file_holds_no_word(results):
    for line in results[0].read_text().splitlines():
        assert set(json.loads(line)) <= {"schema", "kind", *ModelRow.__dataclass_fields__}
