"""The audit of a privatized file from beginning to end: read, attack, score, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from rapt.audit.attacks import ATTACKS, DEFAULT_ATTACKS, LINKAGE
from rapt.audit.attributes import AttributeResult, infer_attribute
from rapt.audit.audit import audit_view
from rapt.audit.formal import measure_formal_side
from rapt.audit.judge.detail import add_entities, explain_missing_entities
from rapt.audit.kept_results import keep_results
from rapt.audit.known_plaintext import known_plaintext
from rapt.audit.report import write_report
from rapt.audit.report.values import Report
from rapt.audit.truth import Truth, check_parts, lend_texts, read_others, read_truth, sample_records
from rapt.audit.view import AdversaryView, adversary_view, read_public_text
from rapt.command_line import rebuild_command
from rapt.local.corpus import read_corpus
from rapt.local.guarantee import state_privacy
from rapt.local.mechanisms import find_promise
from rapt.local.records import PartColumns
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.narration import SILENT, Narrator, show_stages
from rapt.version import __version__
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import read_privatized_file

# Tokens of a quick look: half a minute on one core with MiniLM's table.
QUICK_TOKENS: Final = 1500
# A file with fewer records is attacked whole, by attackers who have no text of its kind.
LEAST_TO_LEND: Final = 20
# Time of the bound, in the unit of `Attack.weight`.
_BOUND_WEIGHT: Final = 40.0
_LINKAGE_WEIGHT: Final = 20.0


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """Plan of an audit: the file to attack, the attacks, and the folder of the report.

    Attributes:
        file: Privatized file that is attacked.
        original: Texts that it was made from; only the score reads them.
        text_column: Column of `original` that holds the text.
        text_column_2: Column that holds the second text of a pair; None for single texts.
        target_column: Column that holds the text to be generated, where it was privatized.
        label_column: Column that holds the label, to check that both files belong together.
        public_text: Public texts like the private ones, for the attackers to learn from; None lends them a part.
        public_text_column: Column of the public texts that holds the text.
        lend: Share of the records that the attackers hold in clear where there is no public text; 0 lends none.
        attacks: Names in `rapt.audit.attacks.ATTACKS`; None takes the usual ones.
        attributes: Columns of `original` to infer from each text.
        entities: Whether names, places and dates are counted by kind.
        vocabulary: Known model, model folder or fetched bundle; None takes the file's model.
        truncate: Tokens that each text was cut to when it was privatized; None where nothing was cut.
        limit: About how many tokens are attacked, in whole records; None attacks all.
        quick: Whether a small part is attacked, with the fast attacks alone.
        seed: Seed of everything that the audit draws.
        out: Folder for the report, where an interrupted audit goes on; None writes nothing.
    """

    file: Path
    original: Path
    text_column: str = "text"
    text_column_2: str | None = None
    target_column: str | None = None
    label_column: str = "label"
    public_text: Path | None = None
    public_text_column: str = "text"
    lend: float = 0.5
    attacks: tuple[str, ...] | None = None
    attributes: tuple[str, ...] = ()
    entities: bool = False
    vocabulary: str | None = None
    truncate: int | None = None
    limit: int | None = None
    quick: bool = False
    seed: int = 0
    out: Path | None = None

    @property
    def attacks_to_run(self) -> tuple[str, ...]:
        """The attacks that are asked for."""
        if self.attacks is not None:
            return self.attacks
        fast = (*(name for name, attack in ATTACKS.items() if attack.fast), LINKAGE)
        return fast if self.quick else DEFAULT_ATTACKS

    @property
    def tokens(self) -> int | None:
        """About how many tokens are attacked; None for all."""
        return QUICK_TOKENS if self.quick and self.limit is None else self.limit

    @property
    def other_texts(self) -> PartColumns:
        """The columns of a record's texts beside the first."""
        return PartColumns(second=self.text_column_2, target=self.target_column)

    @property
    def command(self) -> str:
        """The line that makes the numbers again."""
        public = self.public_text is not None
        return rebuild_command(
            "audit",
            self.file,
            original=self.original,
            text_column=self.text_column,
            label_column=self.label_column,
            attacks=",".join(self.attacks_to_run),
            text_column_2=self.text_column_2,
            target_column=self.target_column,
            vocabulary=None if self.vocabulary is None else Path(self.vocabulary),
            truncate=self.truncate,
            entities=self.entities,
            seed=self.seed,
            limit=self.tokens,
            lend=None if public else self.lend,
            public_text=self.public_text,
            public_text_column=self.public_text_column if public else None,
            attribute=self.attributes,
        )


def audit_file(plan: AuditPlan, *, narrator: Narrator = SILENT) -> Report:
    """The report on a privatized file: what attackers recover, with everything that a reader needs beside it.

    Each attack sees what the service sees and nothing else; its guesses are then scored against the original.

    Args:
        plan: Plan of the audit.
        narrator: Takes the progress and remarks.

    Raises:
        AuditError: The files do not belong together, no attack can run, or the report cannot be written.
        CorpusError: A file of texts cannot be read.
        WireError: The privatized file is damaged.
        VocabularyError: The model's files are missing.
    """
    private = read_privatized_file(plan.file)
    check_parts(private.manifest, plan.other_texts.by_part)
    vocabulary = load_vocabulary(plan.vocabulary or private.manifest.model)
    public = None
    if plan.public_text is not None:
        public = read_public_text(plan.public_text, vocabulary.bundle, text_column=plan.public_text_column)
    view = adversary_view(private, vocabulary.bundle, public=public)
    truth = read_truth(
        view,
        plan.original,
        text_column=plan.text_column,
        label_column=plan.label_column,
        other_texts=plan.other_texts,
        truncate_to=plan.truncate,
    )
    inferred = _infer_columns(plan, view, truth, narrator=narrator)
    if public is None and plan.lend > 0 and len(view.records) >= LEAST_TO_LEND:
        view, truth = lend_texts(view, truth, share=plan.lend, seed=plan.seed)
    if plan.tokens is not None:
        view, truth = sample_records(view, truth, tokens=plan.tokens, seed=plan.seed)
    if plan.entities:
        truth = _find_entities(plan, view, truth, narrator=narrator)
    kept = None if plan.out is None else keep_results(plan.out / "unfinished", view, truth, seed=plan.seed)
    weights = {name: ATTACKS[name].weight for name in plan.attacks_to_run if name in ATTACKS}
    weights["bound"] = _BOUND_WEIGHT
    if LINKAGE in plan.attacks_to_run:
        weights[LINKAGE] = _LINKAGE_WEIGHT
    with narrator.meter("attacking", total=100, unit="%") as meter:
        found = audit_view(
            view,
            truth,
            attacks=plan.attacks_to_run,
            seed=plan.seed,
            kept=kept,
            on_progress=show_stages(meter, weights),
        )
    report = Report(
        title=f"Audit of {plan.file.name}",
        created=datetime.now(UTC).date().isoformat(),
        created_by=f"rapt {__version__}",
        audit=found,
        statement=_write_statement(vocabulary, private.manifest),
        formal=measure_formal_side(vocabulary, private.manifest.mechanism, seed=plan.seed),
        known_plaintext=known_plaintext(adversary_view(private, vocabulary.bundle)),
        commands=(plan.command,),
        attributes=inferred,
    )
    if plan.out is not None:
        page, _ = write_report(report, plan.out)
        narrator.say(f"report: {page}")
    if kept is not None:
        kept.remove()
    return report


def _infer_columns(
    plan: AuditPlan, view: AdversaryView, truth: Truth, *, narrator: Narrator
) -> tuple[AttributeResult, ...]:
    """Every column that was named, inferred from the whole file."""
    columns = [(column, _read_column(plan, column)) for column in dict.fromkeys(plan.attributes)]
    found = []
    for column, values in columns:
        with narrator.meter(f"inferring {column}", total=100, unit="%") as meter:
            show = partial(show_stages(meter, {column: 1.0}), column)
            found.append(infer_attribute(view, truth, values, column=column, seed=plan.seed, on_progress=show))
    return tuple(found)


def _read_column(plan: AuditPlan, column: str) -> Sequence[str]:
    """A column of the corpus, in its order; an empty value counts as a value."""
    records = read_corpus(plan.original, text_column=plan.text_column, label_column=column)
    return [str(record.label) for record in records]


def _find_entities(plan: AuditPlan, view: AdversaryView, truth: Truth, *, narrator: Narrator) -> Truth:
    """The truth with its named entities, or as it is where they cannot be looked for, which is said."""
    if (reason := explain_missing_entities()) is not None:
        narrator.say(reason)
        return truth
    records = read_corpus(plan.original, text_column=plan.text_column, label_column=None)
    with narrator.meter("finding entities", total=100, unit="%") as meter:
        return add_entities(
            view,
            truth,
            [record.text for record in records],
            others=read_others(plan.original, plan.other_texts),
            truncate_to=plan.truncate,
            on_progress=lambda share: meter(int(100 * share)),
        )


def _write_statement(vocabulary: Vocabulary, manifest: Manifest) -> str:
    """The privacy statement of a file, or nothing for a mechanism without one."""
    if find_promise(manifest.mechanism.name) is None:
        return ""
    return state_privacy(
        vocabulary,
        manifest.mechanism,
        plain_tokens=manifest.plain_tokens,
        labels_sent=manifest.labels is not None,
        label_privacy=manifest.label_privacy,
        two_texts=manifest.pairs,
        targets=manifest.targets,
        arrangement=manifest.arrangement,
        randomness=manifest.randomness,
    ).to_text()
