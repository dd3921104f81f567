"""What attacks on a privatized file found, as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rapt.cli.demo import percent
from rapt.cli.output import table as columns

if TYPE_CHECKING:
    from rapt.audit.attributes import AttributeResult
    from rapt.audit.audit import AuditReport


def audit_table(found: AuditReport) -> str:
    """Every attack and the bound on all of their kind, for a terminal."""
    rows = [
        [result.title, *percent(result.score.all_tokens.first), f"{result.score.all_tokens.chance:.1%}"]
        for result in found.results
    ]
    if found.bound is not None:
        rows.append(["any attack without context", *percent(found.bound.success), ""])
    lines = [
        f"{found.records:,} of {found.of_records:,} {found.unit}, {found.tokens:,} tokens, {found.mechanism} at "
        f"eta = {found.eta:g}; {found.unchanged.value:.1%} of the tokens are unchanged",
        "",
        columns(["attack", "recovered", "95 % interval", "without the file"], rows),
        "",
        f"strongest: {found.strongest.title}; the attackers held {found.learned_from or 'no text of this kind'}",
        *(f"{what} it recovered: {line}" for what, line in _group_lines(found) if line),
        *(["not attacked: targets, which are public and were sent as they are"] if found.public_targets else []),
        *(f"not run: {skipped.attack}: {skipped.reason}" for skipped in found.skipped),
        *(f"warning: {warning}" for warning in found.warnings),
    ]
    return "\n".join(lines)


def attribute_table(result: AttributeResult) -> str:
    """How well one column is inferred, for a terminal."""
    several = "" if result.attackers[0].of_several is None else f"{result.attackers[0].of_several.value:.1%}"
    rows = [[f"{attacker.name} attacker", *percent(attacker.first)] for attacker in result.attackers]
    rows.append(["unprotected texts", *percent(result.unprotected.first)])
    rows.append(["without the file", f"{result.chance:.1%}", ""])
    head = f"{result.column}: {result.values} values, {result.texts:,} texts" + (
        f"; among five guesses {several}" if several else ""
    )
    return "\n".join([head, "", columns(["who", "right", "95 % interval"], rows)])


def _group_lines(found: AuditReport) -> list[tuple[str, str]]:
    """What the strongest attack recovered of each text of a record and of entities; empty where there is no such."""
    detail = found.strongest.detail
    return [
        (
            what,
            ", ".join(
                f"{group.name} {group.first.value:.0%} of {group.first.n:,} ({group.unchanged:.0%} as sent)"
                for group in groups
            ),
        )
        for what, groups in (("words of each text", detail.texts), ("entities", detail.entities))
    ]
