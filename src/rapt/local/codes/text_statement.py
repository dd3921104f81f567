"""The privacy statement of whole texts: what one ε for any two texts means, in plain words and in numbers.

There is no table of distances and no δ to explain: the bound is the same for every two texts. What has to be explained
is its scale, so it is stated as odds, as the chance of naming a text among n, and as what several texts of one person
spend together. Numbers on the page are rounded up, towards less privacy; the JSON holds them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from rapt.arguments import check_arguments
from rapt.errors import MechanismError
from rapt.local.exposures import PROTECTS_NOTHING, Exposure, list_policy_exposures, list_trusted_machines
from rapt.local.text_page import ceil_nats, ceil_odds, ceil_percent, facts, items, table, wrap
from rapt.wire.manifest import Arrangement, LabelPrivacy, Manifest
from rapt.wire.mechanism_setting import USUAL_EPSILON, check_epsilon
from rapt.wire.policy_setting import describe_policy, dump_policy

SCHEMA: Final = "rapt.text-statement/1"
NAMES_TEXTS: Final = (
    "THIS PROTECTS NEXT TO NOTHING. At this epsilon a text is named among a thousand others nearly always. Privatize "
    f"again at an epsilon below {USUAL_EPSILON:g}, such as 4, before anything leaves this machine."
)
_WITH_A_POLICY: Final = (
    "The texts were rewritten by an entity policy first, each on its own. ε holds for them as they were before: that a "
    "name stood in one, how many and where, is part of the text, which it covers."
)
_AMONG: Final = (2, 10, 1_000, 100_000)
_USUAL_AMONG: Final = 1_000
_TEXTS: Final = (1, 2, 5, 10, 100)
_LOOSE: Final = 8.0  # nats, from which on a text is more often named among a thousand than not


def bound_guess(epsilon: float, *, among: int) -> float:
    """Return how often a guess of one of n equally likely texts can be right, at most: e^ε / (e^ε + n - 1)."""
    return 1 / (1 + (among - 1) * math.exp(-epsilon))


def find_epsilon(guess: float, *, among: int) -> float:
    """Find the largest ε at which a guess among n equally likely texts is right at most so often, rounded down.

    Args:
        guess: Share of guesses that may be right, above 1/n and below 1.
        among: n, at least 2.

    Raises:
        MechanismError: There is no such ε.
    """
    if among < 2 or not 1 / among < guess < 1:
        raise MechanismError(
            "a guess must be right more often than a blind one among so many, and less often than always, got "
            f"guess={guess:g} among={among}; a blind guess is right in {1 / max(among, 1):.3g} of cases"
        )
    exact = math.log(guess / (1 - guess)) + math.log(among - 1)
    digits = 3 - math.floor(math.log10(exact))
    return check_epsilon(round(math.floor(exact * 10.0**digits * (1 - 1e-12)) / 10.0**digits, digits))


@dataclass(frozen=True, kw_only=True)
class TextGuess:
    """How often a guess of one of several equally likely texts is right.

    Attributes:
        among: Number of the texts.
        blind: Share without having seen anything.
        right: Share that no guess exceeds.
    """

    among: int
    blind: float
    right: float


@dataclass(frozen=True, kw_only=True)
class PersonSum:
    """Loss of a person who gives several texts.

    Attributes:
        texts: Number of the texts, each with its label where that is randomized.
        epsilon: Sum of their ε, nats.
        right: Share that no guess of the person among a thousand exceeds.
    """

    texts: int
    epsilon: float
    right: float


@dataclass(frozen=True, kw_only=True, repr=False)
class TextStatement:
    """Promise for whole texts, and its limits.

    Attributes:
        epsilon: ε of one text, nats.
        manifest: Manifest of the file that is described; None before there is one.
        record_epsilon: ε of a whole record: of its texts, and of its label where that is randomized.
        guesses: Share of the time that one text is named, among several numbers of texts.
        persons: Spending of several records of one person.
        reading: Explanation of the numbers.
        not_protected: Exposures that the mechanism leaves open.
    """

    epsilon: float
    manifest: Manifest | None
    record_epsilon: float
    guesses: tuple[TextGuess, ...]
    persons: tuple[PersonSum, ...]
    reading: tuple[str, ...]
    not_protected: tuple[Exposure, ...]

    def __repr__(self) -> str:
        """Show what the statement is about; `to_text` has the numbers."""
        return f"TextStatement(epsilon={self.epsilon:g}, protects={self.warning is None})"

    @property
    def unit(self) -> str:
        """The part of the input that is protected, and from what."""
        what, other, tied = "whole text", "text", ""
        if self.of_pairs:
            what, other, tied = "pair of texts", "pair of texts", ", and which two belong together"
        return (
            f"Protected: each {what}, with its words, their order, their number and its style{tied}. Nobody who "
            f"sees what was released for it can tell it from any other {other}, of any length, at better odds than e^"
            f"{ceil_nats(self.epsilon)} : 1 = {ceil_odds(self.epsilon)} : 1."
        )

    @property
    def of_pairs(self) -> bool:
        """Whether one release is of a pair of texts, so that ε is for both together."""
        return self.manifest is not None and self.manifest.mechanism.texts > 1

    @property
    def warning(self) -> str | None:
        """Reason why it does not protect; None where it does."""
        if self.manifest is not None and self.manifest.randomness.insecure_seed is not None:
            return PROTECTS_NOTHING
        return NAMES_TEXTS if self.epsilon > USUAL_EPSILON else None

    def to_json(self) -> dict[str, Any]:
        """The statement as plain JSON values; keys keep their names and meanings within a schema version."""
        file = self.manifest
        described: dict[str, Any] | None = None
        if file is not None:
            described = {
                "model": file.model,
                "code_hash": file.vocabulary_hash,
                "mechanism": {"name": file.mechanism.name, "parameters": dict(file.mechanism.parameters)},
                "pairs": file.pairs,
                "policy": dump_policy(file.policy),
                "labels_sent": file.labels is not None,
                "label_privacy": None if file.label_privacy is None else asdict(file.label_privacy),
                "randomness": asdict(file.randomness),
            }
        return {
            "schema": SCHEMA,
            "protects": self.warning is None,
            "warning": self.warning,
            "unit": "pair" if self.of_pairs else "text",
            "says": self.unit,
            "status": "proved",
            "epsilon": self.epsilon,
            "record_epsilon": self.record_epsilon,
            "file": described,
            "guesses": [asdict(guess) for guess in self.guesses],
            "persons": [asdict(person) for person in self.persons],
            "reading": list(self.reading),
            "not_protected": [asdict(exposure) for exposure in self.not_protected],
        }

    def to_text(self) -> str:
        """The statement as a page of plain text, at most 88 columns wide."""
        loud = [] if self.warning is None else ["", *wrap(self.warning, first="!! ", rest="!! ")]
        lines = ["Privacy statement", "=================", *loud, "", *wrap(self.unit), "", *facts(self._facts())]
        lines += ["", "How well a text can be named, by anybody who sees what was released for it"]
        lines += table(
            ("equally likely texts", "blind guess", "right at most"),
            [(f"{guess.among:,}", f"1 in {guess.among:,}", ceil_percent(guess.right)) for guess in self.guesses],
        )
        lines += ["", "Several records of one person"]
        lines += table(
            ("records", "ε in all", "named among 1,000, at most"),
            [(f"{person.texts:,}", ceil_nats(person.epsilon), ceil_percent(person.right)) for person in self.persons],
        )
        lines += ["", "How to read this", *items(self.reading)]
        lines += ["", "What is NOT protected"]
        lines += items(f"{exposure.what}: {exposure.why}" for exposure in self.not_protected)
        return "\n".join(lines + loud)

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "mechanism", "subset; its guarantee is proved, for any two texts and any encoder"
        yield "epsilon", f"{self.epsilon:g} for each {'pair of texts' if self.of_pairs else 'text'}"
        if (file := self.manifest) is None:
            return
        size, near = (int(file.mechanism.parameters[name]) for name in ("codewords", "preferred"))
        codes = int(file.mechanism.parameters["codes"])
        each = f"one of {size:,} codewords, the {near:,} that are nearest to it more often than the others"
        yield "released", each if codes == 1 else f"{codes} codes, each {each}; their ε are parts of the text's"
        yield "model", file.model
        yield "code", file.vocabulary_hash
        each = "both of its texts together" if self.of_pairs else "each of its two texts" if file.pairs else "its text"
        parts = [f"{ceil_nats(self.epsilon)} for {each}"]
        if file.label_privacy is not None:
            parts.append(f"{ceil_nats(file.label_privacy.epsilon)} for its label")
        yield "a record", f"ε {' and '.join(parts)}: {ceil_nats(self.record_epsilon)} in all"
        if file.policy:
            yield "policy", describe_policy(file.policy)
        labels = "not sent" if file.labels is None else "sent in clear"
        if file.label_privacy is not None:
            labels = f"sent after {file.label_privacy.mechanism}"
        yield "labels", labels
        seeded = file.randomness.insecure_seed is not None
        yield "randomness", f"{file.randomness.source}: INSECURE" if seeded else file.randomness.source


@check_arguments
def state_text_privacy(epsilon: float, *, manifest: Manifest | None = None) -> TextStatement:
    """State what ε for a whole text promises, and what it does not.

    Args:
        epsilon: ε of one text, nats.
        manifest: Manifest of the file of codes that is described; None before there is one.

    Raises:
        MechanismError: epsilon is outside its domain.
    """
    check_epsilon(epsilon)
    label = None if manifest is None else manifest.label_privacy
    record = epsilon * (2 if manifest is not None and manifest.pairs else 1) + (0 if label is None else label.epsilon)
    return TextStatement(
        epsilon=float(epsilon),
        manifest=manifest,
        record_epsilon=float(record),
        guesses=tuple(TextGuess(among=n, blind=1 / n, right=bound_guess(epsilon, among=n)) for n in _AMONG),
        persons=tuple(
            PersonSum(texts=n, epsilon=n * record, right=bound_guess(n * record, among=_USUAL_AMONG)) for n in _TEXTS
        ),
        reading=(
            *_explain(epsilon, of_pairs=manifest is not None and manifest.mechanism.texts > 1),
            *((_WITH_A_POLICY,) if manifest is not None and manifest.policy else ()),
        ),
        not_protected=(
            *list_policy_exposures(() if manifest is None else manifest.policy, unit="text"),
            *_list_exposures(
                pairs=manifest is not None and manifest.pairs,
                labels_sent=manifest is None or manifest.labels is not None,
                label_privacy=label,
                arrangement=None if manifest is None else manifest.arrangement,
            ),
            *list_trusted_machines(None if manifest is None else manifest.randomness),
        ),
    )


def _explain(epsilon: float, *, of_pairs: bool) -> Iterator[str]:
    odds = ceil_odds(epsilon)
    yield (
        "ε: whatever was believed before, what is released changes the odds between any two texts by at most the "
        f"factor e^ε = {odds}. It holds for every attack, with no δ and no distance, also for somebody who knows all "
        "other texts."
    )
    yield (
        f"named: a guess among {_USUAL_AMONG:,} equally likely texts is right at most e^ε / (e^ε + {_USUAL_AMONG - 1}) "
        f"of the time, {ceil_percent(bound_guess(epsilon, among=_USUAL_AMONG))} here."
    )
    if epsilon > _LOOSE:
        yield (
            "At this ε the bound allows a text to be named among a thousand more often than not: it hides what a text "
            "says from a reader without candidates, and not which of some texts it is."
        )
    yield (
        "The encoder, the map and the codebook decide how useful a code is, and nothing of the guarantee. A text that "
        "is longer than the encoder reads, or in a language that it was never trained on, is protected as well; its "
        "code says less of it."
    )
    yield (
        "What is computed from released codes, such as a tuned model, its answers, and the centre of a code that other "
        "texts were released for in a first round, costs nothing more."
    )
    if of_pairs:
        yield (
            "A code of a pair says how alike its two texts are, and nothing else of them. A text that was also "
            "released in another pair, or by itself, has spent the ε of each; the ledger counts each pair as a text."
        )
    yield (
        "One text released twice, or several texts of one person, spend the sum of their ε. `rapt ledger` counts it; "
        "it is never added to the η of tokens, which is another promise."
    )


def _list_exposures(
    *, pairs: bool, labels_sent: bool, label_privacy: LabelPrivacy | None, arrangement: Arrangement | None
) -> Iterator[Exposure]:
    yield Exposure(what="taking part", why="that somebody contributed, how often, and when")
    if label_privacy is not None:
        yield Exposure(
            what="labels",
            why="the names of the labels are sent in clear; the label of a text is randomized, and its ε adds to that "
            "of the text",
        )
    elif labels_sent:
        yield Exposure(
            what="labels",
            why="the label of each text, and the names of the labels, are sent in clear unless they are randomized "
            "or left out",
        )
    if pairs:
        yield Exposure(
            what="texts of one record",
            why="which two belong together; each is protected as a text is, and the ε of the two add up",
        )
    if arrangement is not None and arrangement.shuffled:
        order = "not the order of the records, which were shuffled (only the receipt of the run knows how)"
        yield Exposure(what="number", why=f"how many records a file has, and {order}")
    else:
        yield Exposure(what="number and order", why="how many records a file has, and the order in which they stand")
    if arrangement is not None and arrangement.replayed:
        yield Exposure(
            what="equal texts",
            why="a text that was released before with this setting has here the code that it got then, in this file "
            "or in another, so whoever sees both sees that the texts may be the same; texts of one record are always "
            "drawn apart",
        )
    yield Exposure(
        what="what many texts have in common",
        why="a model learns it, whether or not one text is among them; what follows from it about a person is not "
        "hidden",
    )
    yield Exposure(
        what="public parts",
        why="encoder, map and codebook are published as they are: if they were made from private text, they tell of it",
    )
