"""The bench: trains the model of one cell and lets it answer, in this process.

Runs the cells that are not done yet, in this process or in several, and keeps each result as it comes.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rapt.compare.files import FileMaker
from rapt.compare.plan import ARMS, AttackCell, Cell, ComparisonPlan
from rapt.compare.results import AttackRow, ModelRow, Row, open_results
from rapt.compare.texts import LabelledTexts, Split
from rapt.errors import CorpusError, RaptError, UsageError
from rapt.local.records import Part
from rapt.local.vocabulary import load_vocabulary
from rapt.service.adapter.adapter import Adapter
from rapt.service.answers.prediction import classify, row_of
from rapt.service.backbone.backbone import Backbone, load_backbone
from rapt.service.tuning.tuner import tune
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.vocabulary_bundle import check_hash


@dataclass(frozen=True, eq=False)
class Bench:
    """A backbone, its vocabulary and the texts, loaded once for many cells.

    Attributes:
        plan: Plan of the comparison.
        split: The texts, in clear.
        setting: Digest under which results are kept.
        denoised_setting: The same of arms that need the denoised backbone.
        backbone: Frozen; every model here is tuned on it, but for those of the next.
        denoised: The backbone that expects noise, if the plan has one.
        files: Makes what the models read.
    """

    plan: ComparisonPlan
    split: Split
    setting: str
    denoised_setting: str
    backbone: Backbone
    denoised: Backbone | None
    files: FileMaker

    def train_and_judge(self, cell: Cell) -> ModelRow:
        """One line of the results.

        Raises:
            TuningError: The model cannot be trained, or its loss is not finite.
        """
        arm, plan, split = ARMS[cell.arm], self.plan, self.split.turn_of(cell.seed)
        file = arm.change_file(self.files.training(split.training, eta=cell.eta, seed=cell.seed), cell.seed)
        config = arm.configure(plan.make_config(seed=cell.seed), plan.weight, plan.plain_tokens)
        backbone = self.denoised if arm.denoised and self.denoised is not None else self.backbone
        training = self.change_file(cell, split.training, file, place=0)
        start = time.perf_counter()
        adapter = tune(backbone, training, config=config)
        seconds = time.perf_counter() - start
        judged = self.files.evaluation(split.evaluation, eta=cell.eta, seed=cell.seed)
        right = np.zeros(len(split.evaluation), dtype=np.int64)
        for place, queries in enumerate(judged, start=1):
            right += judge_answers(backbone, adapter, self.change_file(cell, split.evaluation, queries, place=place))
        return ModelRow(
            setting=self.denoised_setting if arm.denoised else self.setting,
            arm=cell.arm,
            eta=cell.eta,
            seed=cell.seed,
            privatizations=len(judged),
            right=tuple(int(count) for count in right),
            seconds=round(seconds, 1),
        )

    def change_file(self, cell: Cell, texts: LabelledTexts, file: PrivatizedFile, *, place: int) -> PrivatizedFile:
        """The file as the model of a cell is given it.

        Args:
            cell: Cell of the comparison, whose arm, η and seed say how the file is changed.
            texts: Texts that the file was made of; told to the oracle alone.
            file: Privatized.
            place: Place of the file among those of its seed, 0 for the training file.
        """
        arm = ARMS[cell.arm]
        if arm.sentences and cell.eta is not None:
            file = self.files.put_sentences(file, eta=cell.eta, seed=(cell.seed, place))
        if arm.unchanged_only:
            file = self.files.unchanged_only(texts, file)
        return file

    def attack(self, cell: AttackCell) -> AttackRow:
        """Measure what the strongest of the attacks recovers from the training file of the first seed at an η.

        Both texts of a pair are attacked, each by itself.
        """
        from rapt.audit.audit import audit_view
        from rapt.audit.truth import lend_texts, match_truth, sample_records
        from rapt.audit.view import adversary_view

        seed = self.plan.seeds[0]
        vocabulary, texts = self.files.vocabulary, self.split.turn_of(seed).training
        view = adversary_view(self.files.training(texts, eta=cell.eta, seed=seed), vocabulary.bundle)
        seconds: dict[Part, list[list[int]]] = {"second": vocabulary.encode(texts.seconds)} if texts.pairs else {}
        truth = match_truth(view, vocabulary.encode(texts.texts), others=seconds)
        unchanged = float((view.observed == truth.token_ids).mean())
        # Half of the texts are the attacker's own: without any in clear, those who use context could not begin.
        view, truth = lend_texts(view, truth, share=0.5, seed=seed)
        view, truth = sample_records(view, truth, tokens=cell.tokens, seed=seed)
        found = audit_view(view, truth, attacks=cell.attacks, seed=seed)
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


def judge_answers(backbone: Backbone, adapter: Adapter, file: PrivatizedFile) -> NDArray[np.bool_]:
    """Whether each record is labelled rightly, (records,)."""
    answers = classify(backbone, [row_of(record, adapter=adapter) for record in file.records])
    labels = np.array([record.label for record in file.records])
    return np.asarray(np.argmax(answers, axis=1) == labels)


def open_bench(plan: ComparisonPlan, split: Split, *, threads: int) -> Bench:
    """Load what all cells share.

    Args:
        plan: Plan of the comparison.
        split: The texts.
        threads: Threads of torch, in this process.

    Raises:
        CorpusError: A text has no token, or an arm needs public texts that are not there.
        VocabularyError: The model's files are missing.
    """
    torch.set_num_threads(threads)
    vocabulary = load_vocabulary(plan.model)
    turns = split.turns
    parts = [("training", turn.training) for turn in turns] + [("evaluation", turn.evaluation) for turn in turns]
    for name, part in parts:
        if empty := sum(not ids for texts in part.parts for ids in vocabulary.encode(texts)):
            raise CorpusError(f"every {name} text must have a token in the vocabulary, got {empty} without; drop them")
    backbone = load_backbone(plan.model, precision=plan.precision)
    denoised = None if plan.denoised is None else load_backbone(plan.denoised, precision=plan.precision)
    if denoised is not None:
        check_hash(denoised.bundle, expected=vocabulary.hash)
    files = FileMaker(plan, vocabulary, split.public)
    if any(ARMS[name].sentences for name in plan.arms):
        files.check_sentences()
    return Bench(
        plan=plan,
        split=split,
        setting=plan.digest_setting(split, denoised=False),
        denoised_setting=plan.digest_setting(split),
        backbone=backbone,
        denoised=denoised,
        files=files,
    )


Task = Cell | AttackCell

_bench: Bench | RaptError | None = None  # of a worker process, set once when it starts, or why there is none


def run_comparison(
    plan: ComparisonPlan,
    split: Split,
    *,
    results: Path,
    processes: int = 1,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Every result of the plan; what the file holds already is not run again.

    Args:
        plan: Plan of the comparison.
        split: The texts.
        results: JSONL file that is appended to.
        processes: How many cells at once, one thread each.
        on_row: Called with the number of results and their total, first before any work.

    Raises:
        UsageError: The file holds results of another plan or of other texts.
        RaptError: A cell cannot be run; those that were done are kept.
    """
    settings = {plan.digest_setting(split, denoised=needed) for needed in (False, True)}
    with open_results(results, settings=settings) as file:
        wanted: list[Task] = [*plan.list_attacks(), *plan.list_cells()]
        done = {row.cell for row in file.rows}
        left = [task for task in wanted if task not in done]
        on_row(len(wanted) - len(left), len(wanted))
        for count, row in enumerate(_rows(plan, split, left, processes=processes), start=1):
            file.add(row)
            on_row(len(wanted) - len(left) + count, len(wanted))
        return [row for row in file.rows if row.cell in wanted]


def _rows(plan: ComparisonPlan, split: Split, left: list[Task], *, processes: int) -> Iterator[Row]:
    if not left:
        return
    if processes == 1:
        bench = open_bench(plan, split, threads=1)
        yield from (_run(bench, task) for task in left)
        return
    # Forked workers would inherit locks of torch's threads in whatever state they were.
    pool = ProcessPoolExecutor(
        min(processes, len(left)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(plan, split),
    )
    failures: list[BaseException] = []
    try:
        futures = [pool.submit(_work, task) for task in left]
        for future in as_completed(futures):
            if future.cancelled():
                continue
            if (failure := future.exception()) is None:
                yield future.result()
            else:  # what other workers are busy with is still worth keeping
                failures.append(failure)
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        pool.shutdown(cancel_futures=True)
    if any(isinstance(failure, BrokenProcessPool) for failure in failures):
        raise UsageError(
            f"every worker must live to its end, got one that was killed, processes={processes}; "
            "most often memory is short: run the same command again with fewer"
        )
    if failures:
        raise failures[0]


def _start_worker(plan: ComparisonPlan, split: Split) -> None:
    global _bench
    try:
        _bench = open_bench(plan, split, threads=1)
    except RaptError as error:  # raised here it would break the pool, and nobody would read it
        _bench = error


def _work(task: Task) -> Row:
    assert _bench is not None
    if isinstance(_bench, RaptError):
        raise _bench
    return _run(_bench, task)


def _run(bench: Bench, task: Task) -> ModelRow | AttackRow:
    return bench.train_and_judge(task) if isinstance(task, Cell) else bench.attack(task)
