"""The bench: trains the model of one cell and lets it answer, in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rapt.compare.arms import ANSWERED_DRAWS, ARMS
from rapt.compare.files import FileMaker
from rapt.compare.plan import AttackCell, Cell, ComparisonPlan
from rapt.compare.restored import Reading, WordReader, require_mask, two_at_a_time
from rapt.compare.results import AttackRow, ModelRow
from rapt.compare.texts import LabelledTexts, Split
from rapt.errors import CorpusError
from rapt.local.record_parts import Part
from rapt.local.vocabulary import load_vocabulary
from rapt.service.model.adapter import Adapter
from rapt.service.model.backbone import Backbone, load_backbone
from rapt.service.model.inference import classify, row_of
from rapt.service.model.tuner import tune
from rapt.service.model.tuning_config import TuningConfig
from rapt.service.model.word_head import read_word_head
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.vocabulary_bundle import check_hash

# Apart from the seeds of files and of sentences.
_DRAWN: Final = 4
_HALVED: Final = 5


@dataclass(frozen=True, eq=False)
class Bench:
    """A backbone, its vocabulary and the texts, loaded once for many cells.

    Attributes:
        plan: What is compared.
        split: The texts, in clear.
        setting: Digest under which results are kept.
        denoised_setting: The same of arms that need the denoised backbone.
        backbone: Frozen; every model here is tuned on it, but for those of the next.
        denoised: The backbone that expects noise, if the plan has one.
        reader: Reads words off that backbone, if an arm of the plan needs it.
        files: Makes what the models read.
    """

    plan: ComparisonPlan
    split: Split
    setting: str
    denoised_setting: str
    backbone: Backbone
    denoised: Backbone | None
    reader: WordReader | None
    files: FileMaker

    def train_and_judge(self, cell: Cell) -> ModelRow:
        """One line of the results.

        Raises:
            TuningError: The model cannot be trained, or its loss is not finite.
        """
        arm, plan, split = ARMS[cell.arm], self.plan, self.split.of(cell.seed)
        file = arm.change_file(self.files.training(split.training, eta=cell.eta, seed=cell.seed), cell.seed)
        config = arm.configure(plan.config(seed=cell.seed), plan.weight, plan.plain_tokens)
        # Two are read at a time, and the last one needs another beside it.
        draws = plan.epochs + plan.epochs % 2 if arm.twins else plan.epochs
        read = self.reading(cell, split.training, file, place=0, draws=draws)
        training, twin, config = lesson(read, config, twins=arm.twins)
        start = time.perf_counter()
        adapter = tune(read.backbone, training, twin=twin, config=config)
        seconds = time.perf_counter() - start
        judged = self.files.evaluation(split.evaluation, eta=cell.eta, seed=cell.seed)
        right = np.zeros(len(split.evaluation), dtype=np.int64)
        for place, queries in enumerate(judged, start=1):
            asked = self.reading(cell, split.evaluation, queries, place=place, draws=ANSWERED_DRAWS)
            right += right_answers(asked.backbone, adapter, *asked.files)
        return ModelRow(
            setting=self.denoised_setting if arm.needs_denoised else self.setting,
            arm=cell.arm,
            eta=cell.eta,
            seed=cell.seed,
            privatizations=len(judged),
            right=tuple(int(count) for count in right),
            seconds=round(seconds, 1),
        )

    def reading(self, cell: Cell, texts: LabelledTexts, file: PrivatizedFile, *, place: int, draws: int) -> Reading:
        """What the model of a cell is given of a file.

        Args:
            cell: Whose arm and seed it is.
            texts: That the file was made of; told to the oracle alone.
            file: Privatized.
            place: Of the file among those of its seed, 0 for the training file.
            draws: Versions, where words are drawn.
        """
        arm = ARMS[cell.arm]
        if arm.sentences and cell.eta is not None:
            file = self.files.with_sentences(file, eta=cell.eta, seed=(cell.seed, place))
        if arm.unchanged_only:
            file = self.files.unchanged_only(texts, file)
        own = self.denoised if arm.denoised and self.denoised is not None else self.backbone
        reading = Reading(backbone=own, files=(file,))
        if arm.restore is None:
            return reading
        assert self.reader is not None, "a bench whose plan has such an arm is opened with one"
        rng = np.random.default_rng([_DRAWN, cell.seed, place])
        return arm.restore(reading, self.reader.posterior(file), draws, rng)

    def attack(self, cell: AttackCell) -> AttackRow:
        """What the strongest of the attacks recovers from the training file of the first seed at an η.

        Both texts of a pair are attacked, each by itself.
        """
        from rapt.audit.audit import audit
        from rapt.audit.matching import match_truth
        from rapt.audit.portions import lend_texts, sample_records
        from rapt.audit.view import adversary_view

        seed = self.plan.seeds[0]
        vocabulary, texts = self.files.vocabulary, self.split.of(seed).training
        view = adversary_view(self.files.training(texts, eta=cell.eta, seed=seed), vocabulary.bundle)
        seconds: dict[Part, list[list[int]]] = {"second": vocabulary.encode(texts.seconds)} if texts.pairs else {}
        truth = match_truth(view, vocabulary.encode(texts.texts), others=seconds)
        unchanged = float((view.observed == truth.token_ids).mean())
        # Half of the texts are the attacker's own: without any in clear, those who use context could not begin.
        view, truth = lend_texts(view, truth, share=0.5, seed=seed)
        view, truth = sample_records(view, truth, tokens=cell.tokens, seed=seed)
        found = audit(view, truth, attacks=cell.attacks, seed=seed)
        recovered = found.strongest.score.all_tokens.first
        return AttackRow(
            setting=self.setting,
            eta=cell.eta,
            attacks=cell.attacks,
            attack_tokens=cell.tokens,
            strongest=found.strongest.attack,
            recovered=recovered.value,
            low=recovered.low,
            high=recovered.high,
            tokens=found.tokens,
            unchanged=unchanged,
        )


def lesson(
    read: Reading, config: TuningConfig, *, twins: bool
) -> tuple[PrivatizedFile, PrivatizedFile | None, TuningConfig]:
    """What a model is tuned on: a file, its twin if there is one, and the run, with as many sequences for every arm.

    Fresh versions for each epoch stand one after the other, in one pass over all of them.

    Args:
        read: Of the training file, in all of its versions.
        config: The arm's run, as if there were one version.
        twins: Whether two versions are read at a time.
    """
    if not twins:
        return read.joined, None, replace(config, epochs=config.epochs // len(read.files))
    rng = np.random.default_rng([_HALVED, config.seed])
    training, twin = two_at_a_time(read, sequences=config.epochs, rng=rng)
    # As many sequences in a step as elsewhere, and so as many steps.
    return training, twin, replace(config, epochs=1, batch_size=max(1, config.batch_size // 2))


def right_answers(backbone: Backbone, adapter: Adapter, *versions: PrivatizedFile) -> NDArray[np.bool_]:
    """Whether each record is labelled rightly, (records,); of several versions, by the mean of the answers."""
    answers = [classify(backbone, [row_of(record, adapter=adapter) for record in file.records]) for file in versions]
    labels = np.array([record.label for record in versions[0].records])
    return np.asarray(np.mean(answers, axis=0).argmax(axis=1) == labels)


def open_bench(plan: ComparisonPlan, split: Split, *, threads: int) -> Bench:
    """Load what all cells share.

    Args:
        plan: What is compared.
        split: The texts.
        threads: Of torch, in this process.

    Raises:
        CorpusError: A text has no token, or an arm needs public texts that are not there.
        UsageError: An arm needs a word head or a [MASK] that is not there.
        VocabularyError: The model's files are missing, or a word head is damaged.
    """
    torch.set_num_threads(threads)
    vocabulary = load_vocabulary(plan.model)
    turns = split.turns
    parts = [("training", turn.training) for turn in turns] + [("evaluation", turn.evaluation) for turn in turns]
    for name, part in parts:
        if empty := sum(not ids for texts in part.parts for ids in vocabulary.encode(texts)):
            raise CorpusError(f"every {name} text must have a token in the vocabulary, got {empty} without; drop them")
    backbone = load_backbone(plan.model, precision=plan.precision)
    if any(ARMS[name].masks for name in plan.arms):
        require_mask(backbone)
    denoised = None if plan.denoised is None else load_backbone(plan.denoised, precision=plan.precision)
    if denoised is not None:
        check_hash(denoised.bundle, expected=vocabulary.hash)
    reader = None
    if denoised is not None and plan.denoised is not None and any(ARMS[name].restore for name in plan.arms):
        table = torch.from_numpy(denoised.bundle.embeddings.copy()).to(denoised.device)
        head = read_word_head(Path(plan.denoised), table=table)
        reader = WordReader(backbone=denoised, head=head, keeps=1 + plan.privatizations)
    files = FileMaker(plan, vocabulary, split.public)
    if any(ARMS[name].sentences for name in plan.arms):
        files.check_sentences()
    return Bench(
        plan=plan,
        split=split,
        setting=plan.setting(split, denoised=False),
        denoised_setting=plan.setting(split),
        backbone=backbone,
        denoised=denoised,
        reader=reader,
        files=files,
    )
