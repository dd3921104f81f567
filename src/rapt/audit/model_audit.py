"""Audits of tuned models from beginning to end: of models tuned here, and of an adapter that was handed back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from rapt.audit.artefact.given import OwnersTexts, fit_workshop, read_card
from rapt.audit.artefact.run import ArtefactFindings, ArtefactPlan, audit_artefact
from rapt.audit.artefact.run import audit_adapter as attack_adapter
from rapt.audit.artefact.shared_work import SharedWork, Shop
from rapt.audit.artefact.workshop import TokenTexts, Workshop, read_texts
from rapt.audit.report.artefact import ArtefactReport, write_artefact_report
from rapt.cluster import Cluster
from rapt.command_line import rebuild_command
from rapt.local.mechanisms import remake_mechanism
from rapt.local.vocabulary import load_vocabulary
from rapt.narration import SILENT, Narrator
from rapt.service.adapter.adapter import load_adapter
from rapt.service.adapter.methods import PROMPT_TUNING
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuning_config import make_default_config
from rapt.version import __version__
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.mechanism_setting import Parameter
from rapt.wire.privatized_file import read_privatized_file


@dataclass(frozen=True, kw_only=True)
class ModelAuditPlan:
    """Plan of an audit of models: the texts, the models tuned on them, and the attacks.

    Attributes:
        file: Labelled texts in clear; they stay here.
        eta: Slope of the mechanism, 1/distance.
        text_column: Column that holds the text.
        label_column: Column that holds the label.
        model: Backbone, a known model or a model folder.
        mechanism: Name in `MECHANISMS`.
        options: Options of the mechanism; not η.
        allow_unproved: Whether a mechanism without a proved guarantee is taken.
        method: Name of the tuning method.
        epochs: Passes over the texts.
        batch_size: Records a step.
        learning_rate: Rate of what the method trains; None takes the method's own.
        records: Texts that are taken at most, drawn at random.
        attacks: Plan of the attacks, with their numbers and the seed.
        threads: Threads of torch.
        out: Folder for the report; None writes nothing.
    """

    file: Path
    eta: float
    text_column: str = "text"
    label_column: str = "label"
    model: str = "minilm"
    mechanism: str = "laplace"
    options: Mapping[str, Parameter] = field(default_factory=dict)
    allow_unproved: bool = False
    method: str = PROMPT_TUNING
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float | None = None
    records: int = 400
    attacks: ArtefactPlan = field(default_factory=ArtefactPlan)
    threads: int = 1
    out: Path | None = None

    @property
    def command(self) -> str:
        """The line that makes the numbers again."""
        return rebuild_command(
            "audit-model",
            self.file,
            eta=self.eta,
            model=Path(self.model),
            text_column=self.text_column,
            label_column=self.label_column,
            allow_unproved=self.allow_unproved,
            mechanism=self.mechanism,
            set=self.options,
            method=self.method,
            epochs=self.epochs,
            batch_size=self.batch_size,
            records=self.records,
            learning_rate=self.learning_rate,
            models=self.attacks.models,
            queries=self.attacks.queries,
            canaries=self.attacks.canaries,
            repetitions=",".join(map(str, self.attacks.repetitions)),
            releases=",".join(map(str, self.attacks.releases)),
            attacks=",".join(self.attacks.parts),
            seed=self.attacks.seed,
        )


@dataclass(frozen=True, kw_only=True)
class AdapterAuditPlan:
    """Plan of an audit of one adapter, with the texts of its owner.

    Attributes:
        adapter: Folder of the adapter's files, as a service hands them out.
        members: Labelled texts in clear that it was tuned on.
        others: Labelled texts of the same kind that it was not tuned on.
        sent: Privatized file that was sent; needed where it has plain tokens.
        text_column: Column that holds the text, in both files.
        label_column: Column that holds the label, in both files.
        model: Backbone, a known model or a model folder; None takes the adapter's.
        records: Texts that are taken of each file at most, drawn at random.
        shadows: Models that are tuned for comparison, each on a part of both files.
        queries: Fresh privatizations of a text that are asked about, averaged.
        seed: Seed of everything that the audit draws.
        threads: Threads of torch.
        out: Folder for the report; None writes nothing.
    """

    adapter: Path
    members: Path
    others: Path
    sent: Path | None = None
    text_column: str = "text"
    label_column: str = "label"
    model: str | None = None
    records: int = 400
    shadows: int = 8
    queries: int = 4
    seed: int = 0
    threads: int = 1
    out: Path | None = None

    @property
    def command(self) -> str:
        """The line that makes the numbers again."""
        return rebuild_command(
            "audit-adapter",
            self.adapter,
            members=self.members,
            others=self.others,
            sent=self.sent,
            text_column=self.text_column,
            label_column=self.label_column,
            model=None if self.model is None else Path(self.model),
            records=self.records,
            shadows=self.shadows,
            queries=self.queries,
            seed=self.seed,
        )


def audit_model(plan: ModelAuditPlan, *, narrator: Narrator = SILENT, cluster: Cluster | None = None) -> ArtefactReport:
    """The report on models that are tuned here on random halves of the texts, in clear and through the mechanism.

    Args:
        plan: Plan of the audit.
        narrator: Takes the progress.
        cluster: Ray cluster whose tasks tune the models; those that are done are kept in the folder of the report, in
            `models`. Its nodes must be trusted, and have the model's files. None tunes them here.

    Raises:
        ClusterError: The cluster was lost.
        AuditError: There are too few texts, or the report cannot be written.
        CorpusError: The texts cannot be read.
        MechanismError: The mechanism is unknown, or its options do not fit.
        TuningError: A model cannot be tuned.
    """
    config = replace(make_default_config(plan.method), epochs=plan.epochs, batch_size=plan.batch_size)
    config = config if plan.learning_rate is None else replace(config, learning_rate=plan.learning_rate)
    shop = Shop(
        model=plan.model,
        mechanism=plan.mechanism,
        eta=plan.eta,
        options=dict(plan.options),
        allow_unproved=plan.allow_unproved,
        config=config,
        threads=plan.threads,
    )
    workshop, vocabulary = shop.workshop, shop.workshop.vocabulary
    texts = read_texts(
        plan.file,
        vocabulary,
        text_column=plan.text_column,
        label_column=plan.label_column,
        longest=workshop.longest_text(plain_tokens=0),
    )
    texts = _draw(texts, plan.records, rng=_make_choice_generator(plan.attacks.seed))
    torch.set_num_threads(plan.threads)
    kept = None if plan.out is None else plan.out / "models"
    shared = None if cluster is None else SharedWork(cluster=cluster, shop=shop, texts=texts, kept=kept)
    with narrator.meter("attacking", unit="steps") as meter:
        found = audit_artefact(
            workshop,
            texts,
            plan=plan.attacks,
            on_progress=lambda what, done, total: meter(done, total=total, note=what),
            shared=shared,
        )
    return _make_report(found, f"Models tuned on {plan.file.name}", plan.command, out=plan.out, narrator=narrator)


def audit_adapter(plan: AdapterAuditPlan, *, narrator: Narrator = SILENT) -> ArtefactReport:
    """The report on an adapter that was handed back: does it show which texts it was tuned on?

    Args:
        plan: Plan of the audit.
        narrator: Takes the progress.

    Raises:
        AuditError: The texts do not fit the adapter, or the report cannot be written.
        CorpusError: A file of texts cannot be read.
        TuningError: A model cannot be tuned.
        WireError: The adapter or the privatized file is damaged.
    """
    card = read_card(plan.adapter)
    vocabulary = load_vocabulary(plan.model or card.model)
    backbone = load_backbone(plan.model or card.model, precision="float32")
    given = load_adapter(plan.adapter, backbone=backbone)
    sent = NO_PLAIN_TOKENS if plan.sent is None else read_privatized_file(plan.sent).manifest.plain_tokens
    workshop = fit_workshop(
        Workshop(
            backbone=backbone,
            vocabulary=vocabulary,
            mechanism=remake_mechanism(card.mechanism, vocabulary=vocabulary, allow_unproved=True),
            config=make_default_config(card.method),
            plain_tokens=sent,
        ),
        card,
    )
    halves = [
        read_texts(
            path,
            vocabulary,
            text_column=plan.text_column,
            label_column=plan.label_column,
            longest=workshop.longest_text(plain_tokens=card.plain_tokens),
            names=card.labels,
        )
        for path in (plan.members, plan.others)
    ]
    rng = _make_choice_generator(plan.seed)
    own, strange = (_draw(texts, plan.records, rng=rng) for texts in halves)
    torch.set_num_threads(plan.threads)
    with narrator.meter("attacking", unit="models") as meter:
        found = attack_adapter(
            workshop,
            given,
            OwnersTexts(texts=own.and_also(strange), sent=np.arange(len(own) + len(strange)) < len(own)),
            shadows=plan.shadows,
            queries=plan.queries,
            seed=plan.seed,
            on_progress=lambda done: meter(done, total=plan.shadows),
        )
    return _make_report(found, f"Adapter in {plan.adapter.name}", plan.command, out=plan.out, narrator=narrator)


def _make_choice_generator(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 23])


def _draw(texts: TokenTexts, most: int, *, rng: np.random.Generator) -> TokenTexts:
    return texts.at(np.sort(rng.permutation(len(texts))[:most]))


def _make_report(
    found: ArtefactFindings, title: str, command: str, *, out: Path | None, narrator: Narrator
) -> ArtefactReport:
    report = ArtefactReport(
        title=title,
        created=datetime.now(UTC).date().isoformat(),
        created_by=f"rapt {__version__}",
        findings=found,
        commands=(command,),
    )
    if out is not None:
        page, _ = write_artefact_report(report, out)
        narrator.say(f"report: {page}")
    return report
