"""The audit of a privatized file from beginning to end: read, attack, score, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from rapt.audit.attacks import ATTACKS, CAUSAL, DEFAULT_ATTACKS, Attack
from rapt.audit.attacks.desk import Desk
from rapt.audit.attributes import AttributeResult, infer_attribute
from rapt.audit.audit import audit_view
from rapt.audit.formal import measure_formal_side
from rapt.audit.judge.detail import add_entities, explain_missing_entities
from rapt.audit.judge.labelled_entities import (
    MissedKind,
    TextWithEntities,
    add_labelled_entities,
    measure_missed,
    read_labelled_texts,
)
from rapt.audit.kept_results import keep_results
from rapt.audit.known_plaintext import known_plaintext
from rapt.audit.language.decoders import AUTO, NONE, WORTH_ASKING, ChosenDecoder, choose_decoder
from rapt.audit.prompts import export_prompts, name_answers
from rapt.audit.questions import QUESTIONS, Question, Words
from rapt.audit.report import check_report_folder, write_report
from rapt.audit.report.values import Report
from rapt.audit.telling_words import TELLING_WORDS
from rapt.audit.truth import Truth, check_parts, lend_texts, read_others, read_truth, sample_records
from rapt.audit.view import AdversaryView, PublicText, adversary_view, read_public_text
from rapt.command_line import rebuild_command
from rapt.errors import AuditError, UsageError, VocabularyError, name_record
from rapt.local.corpus import read_corpus
from rapt.local.guarantee import state_privacy
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.mechanisms import find_promise
from rapt.local.policy.policy import Policy
from rapt.local.records import PartColumns, put_text, read_in_order_of_source
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.narration import SILENT, Narrator, show_stages
from rapt.public_models import name_model
from rapt.version import __version__
from rapt.whole_files import check_target
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedPart, list_privatized_texts

# Tokens of a quick look: half a minute on one core with MiniLM's table.
QUICK_TOKENS: Final = 1500
# A file with fewer records is attacked whole, by attackers who have no text of its kind.
LEAST_TO_LEND: Final = 20
# Time of the bound, in the unit of `Attack.weight`.
_BOUND_WEIGHT: Final = 40.0
# Size of a file with a list of words.
_MOST_OF_A_LIST: Final = 1_000_000


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
        public_label_column: Column of the public texts that holds a label of the same meaning; None without one.
        lend: Share of the records that the attackers hold in clear where there is no public text; 0 lends none.
        attacks: Names in `rapt.audit.attacks.ATTACKS` and `rapt.audit.questions.QUESTIONS`; None takes the usual ones.
        keywords: Text file with a telling word or phrase a line, to look for; None takes the list of this project.
        language_model: Decoder of the attack `causal`: a known model, a folder in Hugging Face's layout, a name in the
            local cache, or `auto` for the largest on this machine that memory and time allow; it is then asked where
            no attacks are named, too. None asks that one where it is large enough to be worth it; `none` asks none.
        attributes: Columns of `original` to infer from each text.
        entities: Whether names, places and dates are counted by kind.
        entities_labelled: Labelled entities of the same texts, to be counted in place of those that spaCy finds.
        policy: Policy that the texts were privatized under.
        vocabulary: Known model, model folder or fetched bundle; None takes the file's model.
        truncate: Tokens that each text was cut to when it was privatized; None where nothing was cut.
        limit: About how many tokens are attacked, in whole records; None attacks all.
        quick: Whether a small part is attacked, with the fast attacks alone.
        seed: Seed of everything that the audit draws.
        receipt: Receipt of the run that wrote `file`, if its records were shuffled; None looks for it.
        ledger: Ledger that the run counted in, if its receipt is to be looked for there; None looks beside the ledgers
            in the folder of `file` and above.
        out: Folder for the report, where an interrupted audit goes on; None writes nothing.
        export_prompts: File for prompts about the public text, for a larger language model; None writes none.
    """

    file: Path
    original: Path
    text_column: str = "text"
    text_column_2: str | None = None
    target_column: str | None = None
    label_column: str = "label"
    public_text: Path | None = None
    public_text_column: str = "text"
    public_label_column: str | None = None
    lend: float = 0.5
    attacks: tuple[str, ...] | None = None
    keywords: Path | None = None
    language_model: str | None = None
    attributes: tuple[str, ...] = ()
    entities: bool = False
    entities_labelled: Path | None = None
    policy: Path | None = None
    vocabulary: str | None = None
    truncate: int | None = None
    limit: int | None = None
    quick: bool = False
    seed: int = 0
    receipt: Path | None = None
    ledger: Path | None = None
    out: Path | None = None
    export_prompts: Path | None = None

    @property
    def attacks_to_run(self) -> tuple[str, ...]:
        """The attacks that are asked for."""
        if self.attacks is not None:
            return self.attacks
        fast = tuple(name for name, attack in _list_attacks() if attack.fast)
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
        """The line that makes the numbers again; what it was run for beside them, a folder or prompts, is left out."""
        public = self.public_text is not None
        return rebuild_command(
            "audit",
            self.file,
            original=self.original,
            text_column=self.text_column,
            label_column=self.label_column,
            attacks=",".join(self.attacks_to_run),
            keywords=self.keywords,
            language_model=None if self.language_model is None else name_model(self.language_model),
            text_column_2=self.text_column_2,
            target_column=self.target_column,
            vocabulary=None if self.vocabulary is None else Path(self.vocabulary),
            truncate=self.truncate,
            entities=self.entities,
            entities_labelled=self.entities_labelled,
            policy=self.policy,
            seed=self.seed,
            limit=self.tokens,
            lend=None if public else self.lend,
            public_text=self.public_text,
            public_text_column=self.public_text_column if public else None,
            public_label_column=self.public_label_column if public else None,
            attribute=self.attributes,
            receipt=self.receipt,
            ledger=self.ledger,
        )


def _list_attacks() -> list[tuple[str, Attack | Question]]:
    """Every attack, by name."""
    return [*ATTACKS.items(), *QUESTIONS.items()]


def audit_file(plan: AuditPlan, *, narrator: Narrator = SILENT) -> Report:
    """The report on a privatized file: what attackers recover, with everything that a reader needs beside it.

    Each attack sees what the service sees and nothing else; its guesses are then scored against the original.

    Args:
        plan: Plan of the audit.
        narrator: Takes the progress and remarks.

    Raises:
        UsageError: The report or the prompts have a name under which they must not be written.
        AuditError: The files do not belong together, no attack can run, or the report cannot be written.
        CorpusError: A file of texts cannot be read.
        WireError: The privatized file is damaged.
        VocabularyError: The model's files are missing.
    """
    _check_outputs(plan)
    if plan.entities and plan.entities_labelled is not None:
        raise UsageError("entities must be found by spaCy or labelled, got both; leave one of them out")
    policy = None if plan.policy is None else Policy.read(plan.policy)
    private = read_in_order_of_source(plan.file, receipt=plan.receipt, ledger=plan.ledger)
    check_parts(private.manifest, plan.other_texts.by_part)
    vocabulary = load_vocabulary(plan.vocabulary or private.manifest.model)
    public = None
    if plan.public_text is not None:
        public = read_public_text(
            plan.public_text,
            vocabulary.bundle,
            text_column=plan.public_text_column,
            label_column=plan.public_label_column,
            labels=private.manifest.labels,
        )
        public = _randomize_labels(public, private.manifest, seed=plan.seed)
    private = _remove_padding(plan, private, vocabulary, policy=policy, narrator=narrator)
    view = adversary_view(private, vocabulary.bundle, public=public)
    if plan.export_prompts is not None:
        # Before texts are lent: those are the user's own.
        if public is None:
            raise AuditError("prompts are made of public text only, and none was given; give `public_text`")
        count = export_prompts(Desk(view, seed=plan.seed), plan.export_prompts)
        narrator.say(f"prompts about {count} public texts, and the answers beside them: {plan.export_prompts}")
    truth = read_truth(
        view,
        plan.original,
        text_column=plan.text_column,
        label_column=plan.label_column,
        other_texts=plan.other_texts,
        truncate_to=plan.truncate,
        policy=policy,
    )
    missed: tuple[MissedKind, ...] = ()
    if plan.entities_labelled is not None:
        labelled = _read_labelled(plan, plan.entities_labelled)
        applied = [None if policy is None else policy.apply(one.text) for one in labelled]
        truth = add_labelled_entities(view, truth, labelled, applied, policy=policy, truncate_to=plan.truncate)
        missed = measure_missed(labelled, applied)
    inferred = _infer_columns(plan, view, truth, narrator=narrator)
    if public is None and plan.lend > 0 and len(view.records) >= LEAST_TO_LEND:
        view, truth = lend_texts(view, truth, share=plan.lend, seed=plan.seed)
    if plan.tokens is not None:
        view, truth = sample_records(view, truth, tokens=plan.tokens, seed=plan.seed)
    if plan.entities:
        truth = _find_entities(plan, view, truth, policy=policy, narrator=narrator)
    kept = None if plan.out is None else keep_results(plan.out / "unfinished", view, truth, seed=plan.seed)
    attacks, decoder = choose_attacks(plan, tokens=len(view.observed))
    weights = {name: attack.weight for name, attack in _list_attacks() if name in attacks}
    weights["bound"] = _BOUND_WEIGHT
    with narrator.meter("attacking", total=100, unit="%") as meter:
        found = audit_view(
            view,
            truth,
            attacks=attacks,
            words=TELLING_WORDS if plan.keywords is None else read_word_list(plan.keywords),
            language_model=decoder or plan.language_model,
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
        commands=(_write_command(plan, attacks, decoder),),
        attributes=inferred,
        missed=missed,
    )
    if plan.out is not None:
        page, _ = write_report(report, plan.out)
        narrator.say(f"report: {page}")
    if kept is not None:
        kept.remove()
    return report


def choose_attacks(plan: AuditPlan, *, tokens: int) -> tuple[tuple[str, ...], ChosenDecoder | None]:
    """The attacks to run, and the decoder of the one that asks a decoder; None where there is none to ask.

    Args:
        plan: Plan of the audit.
        tokens: Number of the tokens that are attacked.

    Raises:
        AuditError: The decoder that is named is none.
    """
    attacks = plan.attacks_to_run
    try:
        decoder = choose_decoder(plan.language_model, tokens=min(tokens, ATTACKS[CAUSAL].most_tokens or tokens))
    except VocabularyError as error:
        if plan.language_model not in (None, AUTO, NONE):
            raise AuditError(str(error)) from None
        return attacks, None
    wanted = plan.language_model is not None or (not plan.quick and decoder.parameters >= WORTH_ASKING)
    if plan.attacks is None and wanted:
        attacks = (*attacks, CAUSAL)
    return attacks, decoder


def _write_command(plan: AuditPlan, attacks: tuple[str, ...], decoder: ChosenDecoder | None) -> str:
    if decoder is None or CAUSAL not in attacks:
        return plan.command
    return replace(plan, attacks=attacks, language_model=decoder.model).command


def _check_outputs(plan: AuditPlan) -> None:
    """Refuse names under which the report or the prompts must not be written (`UsageError`)."""
    if plan.out is not None:
        check_report_folder(plan.out)
    if plan.export_prompts is None:
        return
    read = (plan.file, plan.original, plan.public_text, plan.keywords, plan.receipt, plan.ledger)
    inputs = {path.resolve() for path in read if path is not None}
    for path in (plan.export_prompts, name_answers(plan.export_prompts)):
        if path.resolve() in inputs:
            raise UsageError(f"prompts must not replace a file that is read, got {str(path)!r}; choose another name")
        check_target(path, overwrite=True)
        if path.exists():
            raise UsageError(f"a file of prompts must not exist yet, got {str(path)!r}; choose another name")


def _randomize_labels(public: PublicText, manifest: Manifest, *, seed: int) -> PublicText:
    """The attacker's texts with labels that went through what the labels of the file went through, where they did."""
    if manifest.label_privacy is None or manifest.labels is None or public.labels is None:
        return public
    response = RandomizedResponse(classes=len(manifest.labels), epsilon=manifest.label_privacy.epsilon)
    known = [place for place, label in enumerate(public.labels) if label >= 0]
    changed = response.randomize([public.labels[place] for place in known], rng=np.random.default_rng([seed, 47]))
    labels = list(public.labels)
    for place, label in zip(known, changed, strict=True):
        labels[place] = label
    return replace(public, labels=tuple(labels))


def read_word_list(path: Path) -> Words:
    """The words of a text file, one a line; empty lines are left out.

    Raises:
        AuditError: The file cannot be read, is no text, or is larger than a megabyte.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_OF_A_LIST + 1)
        if len(content) > _MOST_OF_A_LIST:
            raise AuditError(f"a list of words must be at most {_MOST_OF_A_LIST:,} bytes, got more; give a shorter one")
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise AuditError(f"a list of words must be a text file, got {reason}; give one with a word a line") from None
    return {"your list": [line for line in lines if line]}


def _remove_padding(
    plan: AuditPlan, file: PrivatizedFile, vocabulary: Vocabulary, *, policy: Policy | None, narrator: Narrator
) -> PrivatizedFile:
    """Take away the words that texts were filled up with: attackers are told the true lengths, which they may guess."""
    bucket = file.manifest.arrangement.length_bucket
    if bucket is None:
        return file
    narrator.say(f"lengths were rounded up to multiples of {bucket}: the attackers are told the true ones")
    records = list(file.records)
    source = read_corpus(plan.original, text_column=plan.text_column, label_column=None, policy=policy)
    first = [record.text for record in source]
    columns: dict[PrivatizedPart, list[str]] = {"first": first}
    for other, texts in read_others(plan.original, plan.other_texts, policy=policy).items():
        if other != "public_target":
            columns[other] = texts
    for place, part in enumerate(columns):
        contents = vocabulary.encode(columns[part])
        for position, (record, content) in enumerate(zip(file.records, contents, strict=False)):
            ids, tokens = list_privatized_texts(record, file.manifest)[place], len(content[: plan.truncate])
            if len(ids) != -(-tokens // bucket) * bucket:
                raise AuditError(
                    f"the plain text must belong to the privatized file, got {tokens} tokens for {len(ids)} in "
                    f"{name_record(position)}; give the corpus it was made from, and `truncate` if it was cut"
                )
            records[position] = put_text(records[position], part, ids[:tokens])
    return replace(file, records=tuple(records))


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


def _read_labelled(plan: AuditPlan, path: Path) -> list[TextWithEntities]:
    """The labelled texts, which must be those that the file was made from (`AuditError`)."""
    found = read_labelled_texts(path)
    given = [one.text for one in read_corpus(plan.original, text_column=plan.text_column, label_column=None)]
    if [one.text for one in found] != given:
        raise AuditError("labelled texts must be those of `original`, in its order; give the labels of these texts")
    return found


def _find_entities(
    plan: AuditPlan, view: AdversaryView, truth: Truth, *, policy: Policy | None, narrator: Narrator
) -> Truth:
    """The truth with its named entities, or as it is where they cannot be looked for, which is said."""
    if (reason := explain_missing_entities()) is not None:
        narrator.say(reason)
        return truth
    records = read_corpus(plan.original, text_column=plan.text_column, label_column=None, policy=policy)
    with narrator.meter("finding entities", total=100, unit="%") as meter:
        return add_entities(
            view,
            truth,
            [record.text for record in records],
            others=read_others(plan.original, plan.other_texts, policy=policy),
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
        policy=manifest.policy,
        randomness=manifest.randomness,
    ).to_text()
