"""Membership inference on an adapter that was handed back, by somebody who knows what it was tuned on.

The tester is its owner: he has the texts that he sent, and others of the same kind that he did not. Shadow models are
tuned here as the adapter's card says, on random parts of both together; the adapter is attacked with them, and
the judge is told which texts were sent.

*A check of the two files.* If they differ in kind (other authors, longer texts), an attack may tell the files apart
instead of the members. Shadow models know nothing of that border: their parts are drawn over both files. So the same
attack is made on them, each against the others, and its mean score for each text is judged by the same border. Where
that tells the files apart, with p < `CONFOUNDED`, the attack's success on the adapter says nothing about memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.artefact.membership import Estimate, NamedScore, ask, score_membership
from rapt.audit.artefact.membership_attacks import MEMBERSHIP_ATTACKS, MembershipView, make_views
from rapt.audit.artefact.workshop import TokenTexts, Workshop, tune_models
from rapt.errors import AuditError, WireError
from rapt.service.adapter.adapter import CARD, Adapter
from rapt.service.tuning.tuning_config import ReconstructionConfig, TuningConfig
from rapt.wire.adapter_files import AdapterCard, parse_card
from rapt.wire.strict_json import parse_object

CONFOUNDED: Final = 0.01
_RECONSTRUCTION: Final = "reconstruction_"
_WORDS: Final = ("lora_targets", "label_words")


@dataclass(frozen=True, kw_only=True)
class GivenAttack:
    """One attack on the adapter, asked in one way.

    Attributes:
        asked_with: `clear` or `privatized`.
        named: Name and success of the attack.
        control: AUC of the same attack on shadow models, judged by the same two files: 0.5 where they are of one kind.
        control_p: Probability of that AUC by chance.
    """

    asked_with: str
    named: NamedScore
    control: Estimate
    control_p: float

    @property
    def counts(self) -> bool:
        """Whether a success would be memory, as far as the check can see."""
        return self.control_p >= CONFOUNDED


@dataclass(frozen=True, kw_only=True)
class GivenAdapter:
    """Findings of the attack on one adapter: how well the texts that it was tuned on are told from others.

    Attributes:
        weights_sha256: SHA-256 of the adapter's weights.
        members, others: Texts.
        shadows: Models that were tuned for the attack.
        attacks: Results with texts asked in clear first, then in fresh privatizations.
    """

    weights_sha256: str
    members: int
    others: int
    shadows: int
    attacks: tuple[GivenAttack, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnersTexts:
    """Texts that the adapter was tuned on and others, and which are which: the judge's alone.

    Attributes:
        texts: All of them.
        sent: True for each text that the adapter was tuned on, (n,).
    """

    texts: TokenTexts
    sent: NDArray[np.bool_] = field(repr=False)


def read_card(folder: Path) -> AdapterCard:
    """The card of an adapter, which says with which backbone it must be loaded. Raises `WireError`."""
    try:
        return parse_card(parse_object((folder / CARD).read_bytes(), what="the adapter card"))
    except OSError:
        raise WireError(f"an adapter must have {CARD} beside its weights; give the folder of both") from None


def read_config_of_card(card: AdapterCard) -> TuningConfig:
    """The run that the card of an adapter describes.

    Raises:
        AuditError: It is of another task, of pairs, or of randomized labels.
    """
    settings = dict(card.training)
    if card.task == "generation" or card.pairs or settings.pop("label_epsilon", None) is not None:
        raise AuditError(
            "an adapter that is attacked must classify single texts with true labels, got another task; audit a model "
            "of single texts"
        )
    own = {name.removeprefix(_RECONSTRUCTION): settings.pop(name) for name in list(settings) if _reads_head(name)}
    if settings.get("initialization") == "text":  # its words are not on the card
        settings["initialization"] = "vocabulary"
    known = {name: value for name, value in settings.items() if name in TuningConfig.__dataclass_fields__}
    values: Mapping[str, object] = known | {
        name: tuple(str(known[name]).split()) for name in _WORDS if known.get(name) is not None
    }
    try:
        head = ReconstructionConfig(**own) if own else None  # type: ignore[arg-type]  # the classes themselves
        return TuningConfig(**values, reconstruction=head)  # type: ignore[arg-type]  # check what a card says
    except TypeError:
        raise AuditError("an adapter's card must describe its run; tune again with this version") from None


def attack_given(
    workshop: Workshop,
    adapter: Adapter,
    owned: OwnersTexts,
    *,
    shadows: int,
    queries: int,
    seed: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> GivenAdapter:
    """Tune shadow models as the adapter was, and attack it with them.

    Args:
        workshop: Workshop, as the adapter's card describes it, with its mechanism and its plain tokens.
        adapter: Adapter that is attacked.
        owned: The owner's texts.
        shadows: Models to tune, three at least.
        queries: Fresh privatizations of a text that are asked about, averaged.
        seed: Seed of everything that is drawn.
        on_progress: Called with the number of models tuned.

    Raises:
        AuditError: There are no members or no others, too few texts, or too few shadow models.
        TuningError: A model cannot be tuned.
    """
    texts, sent = owned.texts, owned.sent
    if shadows < 3 or sent.all() or not sent.any():
        raise AuditError(
            f"an attack on an adapter needs texts that it was tuned on, others, and 3 shadow models, got "
            f"{int(sent.sum())}, {int((~sent).sum())} and {shadows}; give both files"
        )
    # As many texts as the adapter had, as far as both files allow it.
    share = float(np.clip(sent.mean(), 0.25, 0.75))
    models = tune_models(workshop, texts, models=shadows, seed=seed, share=share, on_progress=on_progress)
    attacks = []
    for privatized in (False, True):
        answers = ask(workshop, (adapter, *models.adapters), texts, privatized=privatized, queries=queries, seed=seed)
        view = MembershipView(target=answers[0], shadows=answers[1:], members=models.members)
        placebo = list(make_views(answers[1:], models.members))
        for name, attack in MEMBERSHIP_ATTACKS.items():
            score = score_membership(attack(view)[None], sent[None], seed=seed)
            blind = np.mean([attack(other) for other in placebo], axis=0)
            control = score_membership(blind[None], sent[None], seed=seed)
            attacks.append(
                GivenAttack(
                    asked_with="privatized" if privatized else "clear",
                    named=NamedScore(attack=name, score=score),
                    control=control.auc,
                    control_p=control.p,
                )
            )
    return GivenAdapter(
        weights_sha256=adapter.card.weights_sha256,
        members=int(sent.sum()),
        others=int((~sent).sum()),
        shadows=shadows,
        attacks=tuple(attacks),
    )


def fit_workshop(workshop: Workshop, card: AdapterCard) -> Workshop:
    """The workshop with the run of a card.

    Raises:
        AuditError: The plain tokens are not as many as the adapter was tuned with, or `read_config_of_card` refuses.
    """
    if card.plain_tokens != workshop.plain_tokens.count:
        raise AuditError(
            f"an adapter that was tuned with plain tokens needs the privatized file that was sent, for which tokens "
            f"they are, got {workshop.plain_tokens.count} for {card.plain_tokens}; give it"
        )
    return replace(workshop, config=read_config_of_card(card))


def _reads_head(name: str) -> bool:
    return name.startswith(_RECONSTRUCTION)
