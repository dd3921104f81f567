"""Runs the cells that are not done yet, in this process or in several, and keeps each result as it comes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rapt.compare.bench import Bench, open_bench
from rapt.compare.plan import AttackCell, Cell, ComparisonPlan
from rapt.compare.results import AttackRow, ModelRow, Row, open_results
from rapt.compare.texts import Split
from rapt.errors import RaptError, UsageError

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
        plan: What is compared.
        split: The texts.
        results: JSONL file that is appended to.
        processes: How many cells at once, one thread each.
        on_row: Called with the number of results and their total, first before any work.

    Raises:
        UsageError: The file holds results of another plan or of other texts.
        RaptError: A cell cannot be run; those that were done are kept.
    """
    settings = {plan.setting(split, denoised=needed) for needed in (False, True)}
    with open_results(results, settings=settings) as file:
        wanted: list[Task] = [*plan.attack_cells(), *plan.cells()]
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
