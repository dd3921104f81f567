"""The demo's report: the values of one run on the page that the audit room draws."""

from __future__ import annotations

import platform
import resource
from collections.abc import Sequence
from datetime import UTC, datetime

from rapt.audit.audit import AuditReport
from rapt.audit.report.values import Example, Fact, Figure, Line, Report, Utility, UtilityRow
from rapt.demo.leak_check import LeakCheck
from rapt.demo.plan import DemoPlan
from rapt.demo.results import Arm
from rapt.demo.trusted_side import TrustedSide
from rapt.version import __version__


def demo_report(
    plan: DemoPlan,
    side: TrustedSide,
    *,
    arms: Sequence[Arm],
    audit: AuditReport,
    losses: Sequence[Line],
    leak: LeakCheck,
    seconds: float,
) -> Report:
    """Everything that a reader of the demo's result needs.

    Args:
        plan: What was done.
        side: Its first sentences are shown: they are public tweets.
        arms: Clear text, prompt tuning, RAPT.
        audit: The attacks.
        losses: Of the service's runs.
        leak: The search through what the service kept.
        seconds: The whole of it.
    """
    notes = ("tuned on this machine; the service never sees it", "the same file without its plain tokens", "")
    return Report(
        title="rapt demo: tweets, privatized, tuned on, predicted, attacked",
        created=datetime.now(UTC).date().isoformat(),
        created_by=f"rapt {__version__}",
        audit=audit,
        statement=side.statement.to_text(),
        commands=(f"rapt demo --eta {plan.eta:g}",),
        facts=_facts(plan, leak=leak, seconds=seconds),
        utility=Utility(
            task=f"Whether a tweet is positive or negative: tuned on {plan.training:,} tweets, asked about "
            f"{plan.queries:,} others, at eta = {plan.eta:g}.",
            rows=tuple(
                UtilityRow(name=arm.name, accuracy=arm.accuracy, seeds=(plan.seed,), note=note)
                for arm, note in zip(arms, notes, strict=True)
            ),
            chance=0.5,
        ),
        figures=(Figure(title="Loss of tuning", across="step", up="nats", lines=tuple(losses)),),
        examples=tuple(Example(before=before, after=after) for before, after in side.before_and_after(plan.shown)),
    )


def _facts(plan: DemoPlan, *, leak: LeakCheck, seconds: float) -> tuple[Fact, ...]:
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
