"""The bench: trains the model of one cell and lets it answer, in this process.

Runs the cells that are not done yet, in this process or in several, and keeps each result as it comes.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rapt.cluster import Cluster
from rapt.compare.crowd import CrowdBench, check_crowds, open_crowd_bench
from rapt.compare.files import FileMaker
from rapt.compare.plan import ARMS, PROMPT, AttackCell, Cell, ComparisonPlan, order_texts
from rapt.compare.results import LINKED, AttackRow, ModelRow, Row, open_results
from rapt.compare.texts import LabelledTexts, Split, choose_crowd
from rapt.errors import CorpusError, UsageError
from rapt.local.records import Part
from rapt.local.vocabulary import load_vocabulary
from rapt.service.adapter.adapter import Adapter
from rapt.service.adapter.methods import LINEAR_PROBING, LORA
from rapt.service.answers.prediction import classify, row_of
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuner import tune
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.vocabulary_bundle import check_hash

if TYPE_CHECKING:
    from rapt.audit.truth import Truth
    from rapt.audit.view import AdversaryView


@dataclass(frozen=True, eq=False)
class Bench:
    """A backbone, its vocabulary and the texts, loaded once for many cells.

    Attributes:
        plan: Plan of the comparison.
        split: The texts, in clear.
        setting: Digest under which results are kept.
        denoised_setting: The same of arms that need the denoised backbone.
        policy_setting: The same of arms that need the policy.
        backbone: Frozen; every model here is tuned on it, but for those of the next.
        denoised: The backbone that expects noise, if the plan has one.
        files: Makes what the models read.
    """

    plan: ComparisonPlan
    split: Split
    setting: str
    denoised_setting: str
    policy_setting: str
    backbone: Backbone
    denoised: Backbone | None
    files: FileMaker
    _tuned: dict[Cell, Adapter] = field(default_factory=dict, repr=False)

    def train_and_judge(self, cell: Cell) -> ModelRow:
        """One line of the results, of an arm on tokens.

        Raises:
            TuningError: The model cannot be trained, or its loss is not finite.
        """
        arm, plan, split = ARMS[cell.arm], self.plan, self.split.turn_of(cell.seed)
        texts = split.training
        if cell.crowd:
            texts = choose_crowd(texts, order_texts(len(texts), seed=cell.seed), crowd=cell.crowd)
        file = self.files.training(texts, eta=cell.eta, seed=cell.seed, policy=arm.policy)
        file = arm.change_file(file, cell.seed)
        config = arm.configure(plan.make_config(seed=cell.seed), plan.weight, plan.plain_tokens)
        backbone = self.denoised if arm.denoised and self.denoised is not None else self.backbone
        start = time.perf_counter()
        key = replace(cell, arm=PROMPT if arm.asked_at_home else cell.arm)
        if key not in self._tuned:  # the arm that is asked at home comes after the one whose model it asks
            training = self.change_file(cell, texts, file, place=0)
            self._tuned.clear()
            self._tuned[key] = tune(backbone, training, config=config)
        adapter, seconds = self._tuned[key], time.perf_counter() - start
        asked = None if arm.asked_at_home else cell.eta
        judged = self.files.evaluation(split.evaluation, eta=asked, seed=cell.seed, policy=arm.policy)
        right = np.zeros(len(split.evaluation), dtype=np.int64)
        for place, queries in enumerate(judged, start=1):
            right += judge_answers(backbone, adapter, self.change_file(cell, split.evaluation, queries, place=place))
        return ModelRow(
            setting=self.denoised_setting if arm.denoised else self.policy_setting if arm.policy else self.setting,
            arm=cell.arm,
            eta=cell.eta,
            crowd=cell.crowd,
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
            file: Privatized file.
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

        assert cell.eta is not None, "codes have a bench of their own"
        seed = self.plan.seeds[0]
        texts = self.split.turn_of(seed).training
        file = self.files.training(texts, eta=cell.eta, seed=seed, policy=cell.policy)
        view = adversary_view(file, self.files.vocabulary.bundle)
        contents, *others = (self.files.list_contents(part, eta=cell.eta, policy=cell.policy) for part in texts.parts)
        seconds: dict[Part, list[list[int]]] = {"second": others[0]} if others else {}
        truth = match_truth(view, contents, others=seconds)
        unchanged = float((view.observed == truth.token_ids).mean())
        # Half of the texts are the attacker's own: without any in clear, those who use context could not begin.
        view, truth = lend_texts(view, truth, share=0.5, seed=seed)
        view, truth = sample_records(view, truth, tokens=cell.tokens, seed=seed)
        found = audit_view(view, truth, attacks=cell.attacks, seed=seed)
        recovered = found.strongest.score.all_tokens.first
        linked = link_among(view, truth, [np.array(ids, dtype=np.int64) for ids in contents])
        return AttackRow(
            setting=self.policy_setting if cell.policy else self.setting,
            eta=cell.eta,
            policy=cell.policy,
            attacks=cell.attacks,
            attack_tokens=cell.tokens,
            strongest=found.strongest.attack,
            recovered=recovered.value,
            low=recovered.low,
            high=recovered.high,
            tokens=found.tokens,
            unchanged=unchanged,
            blind=found.strongest.score.all_tokens.chance,
            **linked,
        )


def link_among(view: AdversaryView, truth: Truth, others: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
    """How often texts are recognized among others in clear, in fields of `AttackRow`; none where P(y|x) is not known.

    Args:
        view: Texts that are attacked.
        truth: Their tokens in clear.
        others: Further candidates; those of the first `LINKED` are taken that are not there yet.
    """
    from rapt.audit.attacks.desk import Desk
    from rapt.audit.attacks.questions import link_texts
    from rapt.audit.channels import explain_unknown_channel
    from rapt.audit.judge.questions import score_linkage
    from rapt.audit.view import Lineup

    if explain_unknown_channel(view.manifest.mechanism, view.bundle) is not None:
        return {}
    own = [tuple(text.tolist()) for text in np.split(truth.token_ids, np.cumsum(view.lengths)[:-1])]
    pool = list(dict.fromkeys([*filter(None, own), *(tuple(ids.tolist()) for ids in others if len(ids))]))[:LINKED]
    place = {text: number for number, text in enumerate(pool)}
    lineup = Lineup(contents=tuple(np.array(text, dtype=np.int64) for text in pool))
    guess = link_texts(Desk(view, seed=0), lineup)
    answers = np.array([place.get(text, -1) for text in own], dtype=np.int64)
    found = score_linkage(guess.places, guess.probabilities, lineup=lineup, answers=answers)
    return {
        "linked": found.first.value,
        "linked_low": found.first.low,
        "linked_high": found.first.high,
        "candidates": len(pool),
        "bits": float(np.log2(len(pool)) - guess.entropies[answers >= 0].mean()),
    }


def judge_answers(backbone: Backbone, adapter: Adapter, file: PrivatizedFile) -> NDArray[np.bool_]:
    """Whether each record is labelled rightly, (records,)."""
    answers = classify(backbone, [row_of(record, adapter=adapter) for record in file.records])
    labels = np.array([record.label for record in file.records])
    return np.asarray(np.argmax(answers, axis=1) == labels)


def _count_beside(plan: ComparisonPlan, *, pairs: bool) -> int:
    """Return the most positions that an arm on tokens has beside a text and special tokens."""
    taken = []
    for arm in (ARMS[name] for name in plan.arms if ARMS[name].unit == "token"):
        config = arm.configure(plan.make_config(seed=0), plan.weight, plan.plain_tokens)
        prompt = 0 if config.method in (LINEAR_PROBING, LORA) else config.prompt_length
        taken.append(prompt + plan.plain_tokens * arm.plain_tokens)
    return max(taken, default=0) + 2 * pairs  # what stands between two texts


def open_bench(plan: ComparisonPlan, split: Split, *, threads: int) -> Bench:
    """Load what all cells share.

    Args:
        plan: Plan of the comparison.
        split: Texts of training and evaluation.
        threads: Threads of torch, in this process.

    Raises:
        CorpusError: A text has no token, or an arm needs public texts that are not there.
        VocabularyError: The model's files are missing.
    """
    torch.set_num_threads(threads)
    vocabulary = load_vocabulary(plan.model)
    turns, beside = split.turns, _count_beside(plan, pairs=split.training.pairs)
    most = vocabulary.bundle.max_tokens - vocabulary.bundle.special_tokens - beside
    parts = [("training", turn.training) for turn in turns] + [("evaluation", turn.evaluation) for turn in turns]
    for name, part in parts:
        counts = np.array([[len(ids) for ids in vocabulary.encode(texts)] for texts in part.parts])
        if empty := int(np.sum(counts == 0)):
            raise CorpusError(f"every {name} text must have a token in the vocabulary, got {empty} without; drop them")
        if longer := int(np.sum(counts.sum(axis=0) > most)):
            each = f"`truncate={most // len(part.parts)}`"
            raise CorpusError(
                f"every {name} text, or both of a pair, must have at most {most} tokens beside prompts and plain "
                f"tokens, got {longer} longer; cut the texts of all arms alike with {each}"
            )
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
        policy_setting=plan.digest_setting(split, denoised=False, policy=True),
        backbone=backbone,
        denoised=denoised,
        files=files,
    )


Task = Cell | AttackCell


class Benches:
    """The benches of one process, each opened when its first cell is run."""

    def __init__(self, plan: ComparisonPlan, split: Split) -> None:
        """Take what all cells share."""
        self._plan, self._split = plan, split

    @cached_property
    def _tokens(self) -> Bench:
        return open_bench(self._plan, self._split, threads=1)

    @cached_property
    def _crowd(self) -> CrowdBench:
        torch.set_num_threads(1)
        return open_crowd_bench(self._plan, self._split)

    def run(self, task: Task) -> Row:
        """One line of the results."""
        if isinstance(task, AttackCell):
            return (self._tokens if task.epsilon is None else self._crowd).attack(task)
        return (self._tokens if ARMS[task.arm].unit == "token" else self._crowd).train_and_judge(task)


def run_task(benches: Benches, task: Task) -> Row:
    """One line of the results, in a task of a cluster, whose worker keeps the benches for the next."""
    return benches.run(task)


_benches: Benches | None = None  # of a worker process, set once when it starts


def run_comparison(
    plan: ComparisonPlan,
    split: Split,
    *,
    results: Path,
    processes: int = 1,
    cluster: Cluster | None = None,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Every result of the plan; what the file holds already is not run again.

    Args:
        plan: Plan of the comparison.
        split: Texts of training and evaluation.
        results: JSONL file that is appended to.
        processes: Number of cells at once, one thread each.
        cluster: Ray cluster whose tasks run the cells instead; its nodes must be trusted, and have the models' files.
        on_row: Called with the number of results and their total, first before any work.

    Raises:
        UsageError: The file holds results of another plan or of other texts, or a crowd is larger than all texts.
        RaptError: A cell cannot be run; those that were done are kept.
    """
    check_crowds(plan, split)
    settings = {plan.digest_setting(split, denoised=needed) for needed in (False, True)}
    settings |= {plan.digest_setting(split, denoised=False, **one) for one in ({"codes": True}, {"policy": True})}
    with open_results(results, settings=settings) as file:
        wanted: list[Task] = [*plan.list_attacks(), *plan.list_cells()]
        done = {row.cell for row in file.rows}
        left = [task for task in wanted if task not in done]
        on_row(len(wanted) - len(left), len(wanted))
        for count, row in enumerate(_iterate_rows(plan, split, left, processes=processes, cluster=cluster), start=1):
            file.add(row)
            on_row(len(wanted) - len(left) + count, len(wanted))
        return [row for row in file.rows if row.cell in wanted]


def _iterate_rows(
    plan: ComparisonPlan, split: Split, left: list[Task], *, processes: int, cluster: Cluster | None
) -> Iterator[Row]:
    if not left:
        return
    if cluster is not None:
        yield from (row for _, row in cluster.run(run_task, left, setting=Benches(plan, split)))
        return
    if processes == 1:
        benches = Benches(plan, split)
        yield from (benches.run(task) for task in left)
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
    global _benches
    _benches = Benches(plan, split)


def _work(task: Task) -> Row:
    assert _benches is not None
    return _benches.run(task)
