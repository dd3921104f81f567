"""The privacy statement as a value: what `guarantee` computes, as JSON and as a page for people.

Numbers in the page are rounded up, towards less privacy; the JSON holds them as they are. The sentences on how to read
a number are written here too; those on what stays open are in `exposures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rapt.local.deniability import PlausibleDeniability, Spread, UnchangedShare
from rapt.local.distances import TableDistances
from rapt.local.exposures import PROTECTS_NOTHING, Exposure
from rapt.local.mechanisms.interface import Noise
from rapt.local.own_texts import OFTEN, FileShape, OwnTexts
from rapt.local.retention import KindShare, WordChance
from rapt.local.text_page import (
    ceil_nats,
    ceil_odds,
    ceil_percent,
    facts,
    items,
    table,
    wrap,
    write_scientific,
)
from rapt.wire.manifest import (
    LabelPrivacy,
    PlainTokens,
    Randomness,
)
from rapt.wire.mechanism_setting import GuaranteeStatus, MechanismSetting
from rapt.wire.policy_setting import KindSetting, describe_policy, dump_policy

SCHEMA: Final = "rapt.statement/2"
CHANGES_NOTHING: Final = (
    "THIS PROTECTS NEXT TO NOTHING. Nearly every token that was tried stays as it is at this eta, so the file reads as "
    "the text did. Privatize again with a smaller eta before anything leaves this machine."
)
# Share of tokens that stay themselves, from which on a file is as good as its text.
AS_GOOD_AS_TEXT: Final = 0.99
_LOUD: Final = "!! "


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How well two inputs can be told apart by whoever sees the output.

    Attributes:
        name: Kind of inputs: a key for programs.
        meaning: The same for people.
        tokens: Tokens in which the two differ.
        distance: Sum of the distances of these tokens in the table.
        epsilon: Pure bound, nats: η times the distance.
        epsilon_at_delta: ε at the statement's δ, nats; never understated, at most `epsilon`.
        right_guess: Nobody who must say which of the two it was, each as likely, is right more often than this.
    """

    name: str
    meaning: str
    tokens: int
    distance: float
    epsilon: float
    epsilon_at_delta: float
    right_guess: float


@dataclass(frozen=True, kw_only=True, repr=False)
class PrivacyStatement:
    """Promise of a setting on a vocabulary, and its limits.

    Attributes:
        protects: False when the noise can be drawn again by anyone: then no number below holds; and where nearly all
            tokens that were tried stay themselves: then the numbers hold, and are of no use.
        unit: Part in which two inputs may differ.
        model, vocabulary_hash, dimension, size: The metric space, with `distances`.
        normalization: Change that is made to the rows first: "none", or the name of the metric.
        distances: Between the tokens of the table.
        mechanism: Name and public parameters.
        status: Status of the guarantee.
        noise: Size of the noise; None where the mechanism has none, or where it depends on the direction.
        delta: δ of every `epsilon_at_delta`, for one token or one text.
        pairs: Bounds for one token.
        texts: Bounds for a text of which every token is replaced.
        word_pairs: Bounds for the words that the user named.
        file: Shape of the file, which shows something of its texts; None where no file is meant.
        own: The texts in clear in numbers; None where they were not given.
        own_unchanged: Share of them that stays; None where they were not given.
        unchanged: Share of running public text that stays as it is, where it was measured.
        every_token: The same over all tokens that may be an output, each of them tried.
        kinds: The same by kind of word.
        words: Share of the time that words stay which the user named.
        deniability: N_w and S_w over tokens, where they were computed.
        plain_tokens: The public plain tokens.
        labels_sent: Whether labels leave.
        label_privacy: Mechanism that privatized the labels; None where they leave in clear, or not at all.
        randomness: Origin of the noise; None where no file is meant.
        policy: Kinds of entities that were treated otherwise than the rest; empty where none were.
        reading: Explanation of the numbers.
        not_protected: Exposures that the mechanism leaves open.
    """

    protects: bool
    unit: str
    model: str
    vocabulary_hash: str
    dimension: int
    size: int
    normalization: str
    distances: TableDistances
    mechanism: MechanismSetting
    status: GuaranteeStatus
    noise: Noise | None
    delta: float
    pairs: tuple[Bound, ...]
    texts: tuple[Bound, ...]
    word_pairs: tuple[Bound, ...]
    file: FileShape | None
    own: OwnTexts | None
    own_unchanged: UnchangedShare | None
    unchanged: UnchangedShare | None
    every_token: UnchangedShare | None
    kinds: tuple[KindShare, ...]
    words: tuple[WordChance, ...]
    deniability: PlausibleDeniability | None
    plain_tokens: PlainTokens
    labels_sent: bool
    label_privacy: LabelPrivacy | None
    randomness: Randomness | None
    policy: tuple[KindSetting, ...]
    reading: tuple[str, ...]
    not_protected: tuple[Exposure, ...]

    def __repr__(self) -> str:
        """Show what the statement is about; `to_text` has the numbers."""
        return (
            f"PrivacyStatement(model={self.model[:60]!r}, mechanism={self.mechanism.name[:30]!r}, "
            f"eta={self.mechanism.eta:g}, protects={self.protects})"
        )

    @property
    def warning(self) -> str | None:
        """Reason why it does not protect; None where it does."""
        if self.protects:
            return None
        seeded = self.randomness is not None and self.randomness.insecure_seed is not None
        return PROTECTS_NOTHING if seeded else CHANGES_NOTHING

    def to_json(self) -> dict[str, Any]:
        """The statement as plain JSON values; keys keep their names and meanings within a schema version."""
        plain = self.plain_tokens
        return {
            "schema": SCHEMA,
            "protects": self.protects,
            "warning": self.warning,
            "unit": self.unit,
            "metric_space": {
                "model": self.model,
                "vocabulary_hash": self.vocabulary_hash,
                "dimension": self.dimension,
                "size": self.size,
                "distance": "euclidean",
                "normalization": self.normalization,
                "distances": asdict(self.distances),
            },
            "mechanism": {
                "name": self.mechanism.name,
                "status": self.status,
                "parameters": dict(self.mechanism.parameters),
            },
            "noise": None if self.noise is None else asdict(self.noise),
            "delta": self.delta,
            "pairs": [asdict(bound) for bound in self.pairs],
            "texts": [asdict(bound) for bound in self.texts],
            "word_pairs": [asdict(bound) for bound in self.word_pairs],
            "file": None if self.file is None else asdict(self.file),
            "own_texts": None
            if self.own is None
            else {key: getattr(self.own, key) for key in ("texts", "often", "most", "alike")}
            | {"unchanged": None if self.own_unchanged is None else asdict(self.own_unchanged)},
            "words": [asdict(word) for word in self.words],
            "unchanged": None if self.unchanged is None else asdict(self.unchanged),
            "unchanged_every_token": None if self.every_token is None else asdict(self.every_token),
            "unchanged_by_kind": [asdict(kind) for kind in self.kinds],
            "plausible_deniability": None if self.deniability is None else asdict(self.deniability),
            "plain_tokens": {
                "count": plain.count,
                "pool_size": len(plain.pool),
                "drawn": None if plain.count == 0 else "record" if plain.fixed is None else "file",
            },
            "labels_sent": self.labels_sent,
            "label_privacy": None if self.label_privacy is None else asdict(self.label_privacy),
            "randomness": None if self.randomness is None else asdict(self.randomness),
            "policy": dump_policy(self.policy),
            "reading": list(self.reading),
            "not_protected": [asdict(exposure) for exposure in self.not_protected],
        }

    def to_text(self) -> str:
        """The statement as a page of plain text, at most 88 columns wide."""
        loud = [] if self.warning is None else ["", *wrap(self.warning, first=_LOUD, rest=_LOUD)]
        lines = ["Privacy statement", "=================", *loud]
        lines += ["", *wrap(self.unit), "", *facts(self._list_facts())]
        lines += ["", "How well two tokens can be told apart", *self._format_table(self.pairs)]
        if self.word_pairs:
            lines += ["", "The words you named", *self._format_table(self.word_pairs)]
        if self.words:
            lines += ["", "How often they stay as they are", *format_words(self.words)]
        lines += ["", "A text in which every token is another one", *self._format_table(self.texts)]
        if self.kinds:
            lines += ["", "How often a token stays as it is, by kind", *_format_table_of_kinds(self.kinds)]
        lines += ["", "How to read this", *items(self.reading)]
        lines += ["", "What is NOT protected"]
        lines += items(f"{exposure.what}: {exposure.why}" for exposure in self.not_protected)
        return "\n".join(lines + loud)

    def _format_table(self, bounds: Sequence[Bound]) -> list[str]:
        return table(
            ("", "distance", "ε, pure", f"ε at δ={write_scientific(self.delta)}", "right guess"),
            [
                (
                    bound.meaning,
                    f"{bound.distance:.3g}",
                    ceil_nats(bound.epsilon),
                    ceil_nats(bound.epsilon_at_delta),
                    ceil_percent(bound.right_guess),
                )
                for bound in bounds
            ],
        )

    def _list_facts(self) -> list[tuple[str, str]]:
        return [
            ("mechanism", f"{self.mechanism.name}; its guarantee is {self.status}"),
            ("eta", f"{self.mechanism.eta:g} per unit of distance in this table, and in no other"),
            ("model", self.model),
            ("vocabulary", self.vocabulary_hash),
            *self._list_file_facts(),
            *self._list_space_facts(),
            *self._list_measured_facts(),
            *self._sent(),
        ]

    def _list_file_facts(self) -> list[tuple[str, str]]:
        lines = []
        if (file := self.file) is not None:
            alike = f"{file.alike:,} left as the same tokens as an earlier one" if file.alike else "no two left alike"
            lines.append(
                (
                    "this file",
                    f"{file.texts:,} texts of {file.shortest:,} / {file.median:,} / {file.longest:,} tokens (shortest, "
                    f"median, longest); {alike}",
                )
            )
        if (own := self.own) is not None:
            again = f"{own.alike:,} of your {own.texts:,} texts repeat an earlier one; " if own.alike else ""
            lines.append(
                (
                    "your words",
                    f"{again}{own.often:,} words, stop words apart, come in {OFTEN} texts or more, one in "
                    f"{own.most:,}: each time adds its own loss",
                )
            )
        if (found := self.own_unchanged) is not None:
            lines.append(("", _share(found)))
        return lines

    def _list_space_facts(self) -> list[tuple[str, str]]:
        space = self.distances
        sampled = "all" if space.rows == space.tokens else f"{space.rows:,} of {space.tokens:,}"
        return [
            (
                "table",
                f"{self.size:,} tokens of {self.dimension} dimensions, Euclidean distance, "
                f"{'not normalized' if self.normalization == 'none' else f'metric {self.normalization}'}; "
                f"{space.tokens:,} of them may be an output",
            ),
            (
                "distances",
                f"to the nearest other token {space.nearest_5:.3g} / {space.nearest_50:.3g} / {space.nearest_95:.3g} "
                f"(5 % / median / 95 %, exact for {sampled} tokens); of two tokens {space.median:.3g} (median of "
                f"{space.pairs:,} pairs); largest seen {space.largest_seen:.3g}",
            ),
            *self._list_noise_facts(),
        ]

    def _list_noise_facts(self) -> list[tuple[str, str]]:
        if self.noise is None:
            return []
        return [
            (
                "noise",
                f"length {self.noise.mean_length:.3g} on average; along the line between two tokens its standard "
                f"deviation is {self.noise.deviation_along_a_line:.3g}",
            )
        ]

    def _list_measured_facts(self) -> list[tuple[str, str]]:
        lines = []
        if (found := self.unchanged) is not None:
            lines.append(("unchanged", _share(found)))
        if (found := self.every_token) is not None:
            lines.append(("every token", _share(found)))
        if (denied := self.deniability) is not None:
            lines.append(("output sets", _describe_output_sets(denied)))
        return lines

    def _sent(self) -> list[tuple[str, str]]:
        plain, source, hidden = self.plain_tokens, self.randomness, self.label_privacy
        labels = "not sent"
        if self.labels_sent and hidden is not None:
            labels = f"sent after {hidden.mechanism}, ε = {ceil_nats(hidden.epsilon)} for each"
        elif self.labels_sent:
            labels = "sent in clear"
        words = f"{plain.count} public words before each text, from a pool of {len(plain.pool):,}"
        named = "named in the manifest of each file" if source is None else source.source
        policy = [("policy", describe_policy(self.policy))] if self.policy else []
        return [
            *policy,
            ("labels", labels),
            ("plain tokens", words if plain.count else "none"),
            ("randomness", f"{named}: INSECURE" if source is not None and source.insecure_seed is not None else named),
        ]


def _share(found: UnchangedShare) -> str:
    how = f"{found.draws:,} draws" if found.draws else f"exact for each of {found.types:,} tokens"
    between = "" if found.low == found.high else f", 95 % interval {100 * found.low:.1f} % to {100 * found.high:.1f} %"
    return f"{100 * found.share:.1f} % stay ({how}{between}), over {found.basis}"


def format_words(words: Sequence[WordChance]) -> list[str]:
    """How often words stay, as the lines of a table."""
    return table(
        ("", "tokens", "stays", "95 % interval", "draws"),
        [
            (word.word, str(word.tokens), *_describe_chance(word.kept, word.low, word.high), str(word.draws or "exact"))
            for word in words
        ],
    )


def _format_table_of_kinds(kinds: Sequence[KindShare]) -> list[str]:
    return table(
        ("", "tokens", "stay", "95 % interval"),
        [(kind.kind, f"{kind.tokens:,}", *_describe_chance(kind.share, kind.low, kind.high)) for kind in kinds],
    )


def _describe_chance(share: float, low: float, high: float) -> tuple[str, str]:
    return f"{100 * share:.1f} %", f"{100 * low:.1f}–{100 * high:.1f} %"


def _describe_output_sets(found: PlausibleDeniability) -> str:
    """S_w in words: rounded down, towards less deniability."""
    size: Spread = found.set_size
    low, middle, high = (f"{int(value):,}" for value in (size.quantile_5, size.median, size.quantile_95))
    share = f"{100 * (1 - found.outside):g} %"
    if found.exact:
        return (
            f"a token comes out as one of {low} / {middle} / {high} tokens (5 % / median / 95 %) {share} of the time; "
            f"smallest such sets, exact for each of {found.types} tokens"
        )
    return (
        f"a token comes out as one of at least {low} / {middle} / {high} tokens (5 % / median / 95 %) {share} of the "
        f"time; lower bounds on the smallest such set, each with {100 * found.confidence:g} % confidence, from "
        f"{found.draws} draws of each of {found.types} tokens"
    )


# A factor e^7 is a thousand: from there on the pure bound alone says little.
_LOOSE: Final = 7.0

UNIT: Final = (
    "Protected: each single token of a text. Whoever sees the privatized token is limited in telling which of two "
    "tokens it came from; how far, depends on the distance of the two in the embedding table. Tokens are replaced "
    "independently of each other. Their number, order and place are not protected."
)


def explain_numbers(token: Bound, text: Bound, *, delta: float, pure_only: bool = False) -> Iterator[str]:
    """How to read the numbers, with a token and its nearest neighbour, and a text of such, as examples.

    Args:
        token: Bound for the one.
        text: Bound for the other.
        delta: δ of both.
        pure_only: Whether ε at δ was computed from the pure bound, because no more is known of the mechanism.
    """
    yield (
        "ε, pure: whatever was believed before, one privatized token changes the odds between two tokens by at most "
        "the factor e^ε. Here, for a token and its nearest neighbour, it is "
        f"e^{ceil_nats(token.epsilon)} = {ceil_odds(token.epsilon)}."
    )
    if token.epsilon > _LOOSE:
        loose = (
            ""
            if pure_only
            else (
                " It is also loose, because noise in many dimensions hardly ever points where the bound is reached. "
                "Read ε at δ beside it."
            )
        )
        yield f"At this η the pure bound is formally vacuous: such odds allow near certainty.{loose}"
    known = "the pure bound" if pure_only else "the exact distribution of the privacy loss"
    yield (
        f"ε at δ: every event is at most e^ε times as likely for one token as for the other, plus δ = "
        f"{write_scientific(delta)}. Here the factor is e^{ceil_nats(token.epsilon_at_delta)} = "
        f"{ceil_odds(token.epsilon_at_delta)}. It is computed from {known}, rounded up. δ should be well below one "
        "over the number of texts."
    )
    yield (
        "right guess: nobody who must say which of two equally likely inputs it was is right more often than this; a "
        f"coin is right in 50 % of cases. Here it is {ceil_percent(token.right_guess)} for a token and "
        f"{ceil_percent(text.right_guess)} for a text of {text.tokens} tokens."
    )
    yield (
        "texts: the losses of a text's tokens add up. The table lets every token be another one at the distance named; "
        "two texts that differ in one token are told apart as two tokens are."
    )
    yield (
        "All of these are limits for every attack, even by somebody who knows all other tokens of the text; several "
        "unknown tokens that depend on each other count as a text. How far known attacks get, `rapt audit` measures."
    )
