"""The demo's story, step by step: a trusted side, a service in another process, and a look at what came out of it.

The trusted side works in a thread while the service works, because it shares the texts. The report is the page that
the audit room draws.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Final, Generic, TypeVar

import numpy as np

from rapt.audit.audit import AuditReport
from rapt.audit.code_audit import CodeAudit
from rapt.audit.intervals import compute_independent_share
from rapt.audit.report import HTML, JSON, write_report
from rapt.audit.report.values import Example, Fact, Report, Utility, UtilityRow
from rapt.command_line import rebuild_command
from rapt.demo.codes_side import ASKED, AT_HOME, MODEL, make_public_code, tune_on_codes
from rapt.demo.leak_check import LeakCheck, search_folder
from rapt.demo.plan import DemoPlan, DemoResult
from rapt.demo.service_side import (
    PROMPT_TUNING,
    RAPT,
    follow,
    predict_queries,
    read_losses,
    running_service,
    start_jobs,
)
from rapt.demo.trusted_side import TrustedSide, attack_own_file, prepare_trusted_side, upper_bound
from rapt.drawing import Figure, Line
from rapt.errors import ServiceError, UsageError
from rapt.local.client import ServiceClient
from rapt.local.text_page import ceil_percent
from rapt.narration import Narrator
from rapt.version import __version__

T = TypeVar("T")


class Background(Generic[T]):
    """One piece of work in a thread that can be asked to stop, and its result or error."""

    def __init__(self, work: Callable[[Callable[[], bool]], T]) -> None:
        """Start it; `work` gets a function that says whether it should stop."""
        self._stop = Event()
        self._result: list[T] = []
        self._error: BaseException | None = None
        # A daemon: an interrupted demo does not wait for an attack that nobody will read.
        self._thread = Thread(target=self._run, args=(work,), name="rapt-demo", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Callable[[], bool]], T]) -> None:
        try:
            self._result.append(work(self._stop.is_set))
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        self._thread.join(seconds)

    def result(self) -> T:
        """The result of the work, once it has ended; an error of the work is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def stop(self) -> None:
        """Ask it to stop, and give it a moment."""
        self._stop.set()
        self._thread.join(timeout=5)


def write_demo_report(
    plan: DemoPlan,
    side: TrustedSide,
    *,
    rows: tuple[UtilityRow, ...],
    audit: AuditReport,
    codes: CodeAudit,
    losses: Sequence[Line],
    leak: LeakCheck,
    seconds: float,
) -> Report:
    """Everything that a reader of the demo's result needs.

    Args:
        plan: Plan of the demo.
        side: The trusted side, whose first sentences are shown: they are public tweets.
        rows: Clear text, prompt tuning, RAPT, codes.
        audit: Results of the attacks.
        codes: Audit of the codes.
        losses: Losses of the service's runs.
        leak: The search through what the service kept.
        seconds: The whole of it.
    """
    return Report(
        title="rapt demo: tweets, privatized, tuned on, predicted, attacked",
        created=datetime.now(UTC).date().isoformat(),
        created_by=f"rapt {__version__}",
        audit=audit,
        statement=side.statement.to_text(),
        commands=(rebuild_command("demo", eta=plan.eta),),
        facts=(*_list_facts(plan, leak=leak, seconds=seconds), _describe_codes(codes)),
        utility=Utility(
            task=f"Whether a tweet is positive or negative: tuned on {plan.training:,} tweets, asked about "
            f"{plan.queries:,} others; tokens at eta = {plan.eta:g}, or codes at epsilon = {plan.epsilon:g} a tweet.",
            rows=rows,
            chance=0.5,
        ),
        figures=(Figure(title="Loss of tuning", across="step", up="nats", lines=tuple(losses)),),
        examples=tuple(Example(before=before, after=after) for before, after in side.before_and_after(plan.shown)),
    )


def _list_facts(plan: DemoPlan, *, leak: LeakCheck, seconds: float) -> tuple[Fact, ...]:
    # Kilobytes on Linux.
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    service = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return (
        Fact(name="plain tokens", value=f"{plan.plain_tokens} before each text, out of {plan.plain_token_pool} words"),
        Fact(name="soft prompt", value=f"{plan.prompt_length} vectors, {plan.epochs} epochs"),
        Fact(
            name="search for plain text in what the service kept",
            value=f"{leak.files} files, {leak.bytes / 1e6:.0f} MB, {leak.runs:,} runs of five words: "
            f"found in {len(leak.leaked)} files",
        ),
        Fact(name="time", value=f"{seconds:.0f} s"),
        Fact(name="largest memory", value=f"{here:.1f} GB here, {service:.1f} GB in the service"),
        Fact(name="machine", value=f"Python {platform.python_version()}, {platform.machine()}"),
    )


def _describe_codes(codes: CodeAudit) -> Fact:
    most = max(codes.naming, key=lambda item: item.candidates)
    return Fact(
        name=f"the right tweet named among {most.candidates:,}, by its code",
        value=f"{most.first.value:.1%} of the time; no attack can more than {ceil_percent(most.bound)}, "
        f"blind {most.chance:.2%}",
    )


TRUSTED: Final = "trusted"
SERVICE: Final = "service"
CLEAR: Final = "clear text (upper bound)"
_NOTES: Final = {
    CLEAR: "tuned on this machine; the service never sees it",
    PROMPT_TUNING: "the same file without its plain tokens",
    AT_HOME: "one epsilon for a whole tweet; the question stays here",
    ASKED: "one epsilon for a whole tweet, the question's as well",
}


def run_demo(
    plan: DemoPlan,
    *,
    out: Path,
    narrator: Narrator,
    through: Callable[[str], AbstractContextManager[str]] = nullcontext,
) -> DemoResult:
    """Run the main job on real text, from a file of tweets to a report.

    Args:
        plan: Sizes and settings.
        out: Folder to write; one that an earlier demo wrote is replaced.
        narrator: Takes what there is to say while it runs.
        through: Context manager of a recorder between client and service, from the service's URL to the client's.

    Raises:
        UsageError: `out` holds something else.
        RaptError: A step failed; no report is written then.
    """
    started = time.monotonic()
    make_room(out)
    # Half of the cores each: the service and the trusted side compute at the same time.
    threads = max(1, (os.cpu_count() or 1) // 2)
    with ExitStack() as stack:
        narrator.say(f"1/8 Privatizing {plan.training:,} tweets and {plan.queries:,} queries at eta = {plan.eta:g}")
        side = prepare_trusted_side(plan, out / TRUSTED, narrator=narrator)
        for before, after in side.before_and_after(plan.shown):
            narrator.say(f"    before: {before}")
            narrator.say(f"    after:  {after}")
        basis = side.statement.unchanged
        assert basis is not None
        narrator.say(
            f"    {side.unchanged():.1%} of these tokens happen to be unchanged; of running public text, which "
            f"`rapt statement` speaks of, {basis.share:.1%} are"
        )
        narrator.say("2/8 What that promises")
        for line in summarize_promise(side):
            narrator.say(f"    {line}")
        narrator.say("3/8 Starting the service: another process, with a folder of its own and no path to any text")
        code = make_public_code(plan, out / SERVICE / MODEL, apart_from=side, narrator=narrator)
        service = stack.enter_context(running_service(out / SERVICE, models=(plan.model, MODEL), threads=threads))
        narrator.say(f"    process {service.pid}, folder {out / SERVICE}, with a code of public tweets")
        client = stack.enter_context(ServiceClient(stack.enter_context(through(service.url()))))
        narrator.say(
            f"4/8 The same tweets as codes of whole texts at epsilon = {plan.epsilon:g}; a head is tuned on them, and "
            "asked here in clear and there privately"
        )
        codes = tune_on_codes(plan, side, code, client, narrator=narrator)
        narrator.say(
            "5/8 Uploading the privatized file; the service tunes on it twice, with and without reconstruction"
        )
        jobs = start_jobs(client, side, plan)
        narrator.say(
            "    meanwhile, here: the upper bound on clear text, which the service never sees, and the attacks"
        )
        here = Background(lambda should_stop: work_here(plan, side, threads=threads, should_stop=should_stop))
        stack.callback(here.stop)
        models = {name: follow(client, job, name=name, narrator=narrator) for name, job in jobs.items()}
        losses = [read_losses(client, job, name=name) for name, job in jobs.items()]
        narrator.say("6/8 Sending privatized queries, without labels")
        answers = {name: predict_queries(client, model, side) for name, model in models.items()}
        narrator.say("7/8 Waiting for the upper bound and the attacks")
        clear, found = here.result()
        named = {CLEAR: clear, PROMPT_TUNING: answers[PROMPT_TUNING], RAPT: answers[RAPT], **codes.answers}
        rows = tuple(score_answers(plan, name, found, side.queries.labels) for name, found in named.items())
    narrator.say("8/8 The service has stopped; searching everything that it kept for the plain text")
    leak = search_folder(out / SERVICE, [*side.training.texts, *side.queries.texts])
    if leak.leaked:
        raise ServiceError(f"the service must keep no plain text, got it in {len(leak.leaked)} files; report this")
    seconds = time.monotonic() - started
    report = write_demo_report(
        plan, side, rows=rows, audit=found, codes=codes.audit, losses=losses, leak=leak, seconds=seconds
    )
    write_report(report, out)
    return DemoResult(plan=plan, rows=rows, codes=codes.audit, leak=leak, report=report, seconds=seconds)


def score_answers(plan: DemoPlan, name: str, answers: Sequence[str], truth: Sequence[str]) -> UtilityRow:
    """The accuracy of one way to tune, with Wilson's interval over the queries."""
    accuracy = compute_independent_share(np.array(answers) == np.array(truth))
    return UtilityRow(name=name, accuracy=accuracy, seeds=(plan.seed,), note=_NOTES.get(name, ""))


def work_here(
    plan: DemoPlan, side: TrustedSide, *, threads: int, should_stop: Callable[[], bool]
) -> tuple[list[str], AuditReport]:
    """The upper bound's answers and the attacks' success, one after the other."""
    answers = upper_bound(plan, side, threads=threads, on_progress=lambda step: None, should_stop=should_stop)
    return answers, attack_own_file(plan, side, on_progress=lambda stage, share: None)


def make_room(out: Path) -> None:
    """An empty folder, where an earlier demo may have been (`UsageError` if something else is there)."""
    if out.exists():
        known = {TRUSTED, SERVICE, HTML, JSON}
        if out.is_symlink() or not out.is_dir() or not {item.name for item in out.iterdir()} <= known:
            raise UsageError(
                "the folder of a demo must be new, or hold an earlier demo only; choose another with --out"
            )
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"the folder of a demo must be one that can be made, got {error.strerror}; choose another with --out"
        ) from None


def summarize_promise(side: TrustedSide) -> list[str]:
    """Three lines out of the privacy statement."""
    statement = side.statement
    nearest = statement.pairs[0]
    return [
        f"eta = {statement.mechanism.eta:g} per unit of distance in the table of {statement.model}; "
        f"{statement.mechanism.name}, {statement.status}",
        f"{nearest.meaning}: ε = {nearest.epsilon:.1f} pure, {nearest.epsilon_at_delta:.1f} at δ = "
        f"{statement.delta:g}; whoever guesses which of the two it was is right in at most {nearest.right_guess:.1%}",
        "not protected: " + ", ".join(exposure.what for exposure in statement.not_protected),
        f"the whole statement: rapt statement {side.training_path}",
    ]
