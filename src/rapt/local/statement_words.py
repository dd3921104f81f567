"""The sentences of a privacy statement: how to read its numbers, and what the mechanism leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rapt.local.statement import Bound, Exposure
from rapt.local.text_page import nats_up, odds_up, percent_up, scientific
from rapt.wire.manifest import LabelPrivacy, PlainTokens, Targets

# A factor e^7 is a thousand: from there on the pure bound alone says little.
_LOOSE: Final = 7.0

UNIT: Final = (
    "Protected: each single token of a text. Whoever sees the privatized token is limited in telling which of two "
    "tokens it came from; how far, depends on the distance of the two in the embedding table. Tokens are replaced "
    "independently of each other. Their number, order and place are not protected."
)


def reading(token: Bound, text: Bound, *, delta: float, pure_only: bool = False) -> Iterator[str]:
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
        f"e^{nats_up(token.epsilon)} = {odds_up(token.epsilon)}."
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
        f"{scientific(delta)}. Here the factor is e^{nats_up(token.epsilon_at_delta)} = "
        f"{odds_up(token.epsilon_at_delta)}. It is computed from {known}, rounded up. δ should be well below one over "
        "the number of texts."
    )
    yield (
        "right guess: nobody who must say which of two equally likely inputs it was is right more often than this; a "
        f"coin is right in 50 % of cases. Here it is {percent_up(token.right_guess)} for a token and "
        f"{percent_up(text.right_guess)} for a text of {text.tokens} tokens."
    )
    yield (
        "texts: the losses of a text's tokens add up. The table lets every token be another one at the distance named; "
        "two texts that differ in one token are told apart as two tokens are."
    )
    yield (
        "All of these are limits for every attack, even by somebody who knows all other tokens of the text; several "
        "unknown tokens that depend on each other count as a text. How far known attacks get, `rapt audit` measures."
    )


def not_protected(
    plain_tokens: PlainTokens,
    *,
    labels_sent: bool,
    label_privacy: LabelPrivacy | None,
    pairs: bool,
    targets: Targets | None,
) -> Iterator[Exposure]:
    """What the mechanism leaves open, for any setting of it."""
    if targets == "public":
        yield Exposure(
            what="targets",
            why="the text to be generated of each record is sent in clear, because it was declared public; what it "
            "says of the text beside it is open",
        )
    if pairs or targets == "privatized":
        yield Exposure(
            what="texts of one record",
            why="which texts belong together; each is protected as a text is, and what two of them have in common is "
            "told twice: their losses add up",
        )
    if labels_sent and label_privacy is not None:
        yield Exposure(
            what="labels",
            why="the names of the labels are sent in clear; the label of a text is randomized, and its ε adds to the "
            "text's; the share of each label in the whole file can be estimated well",
        )
    elif labels_sent:
        yield Exposure(what="labels", why="the label of each text, and the names of the labels, are sent in clear")
    yield Exposure(
        what="number and length",
        why="how many texts there are, and how many tokens each has; a rare word shows its number of pieces",
    )
    yield Exposure(
        what="order and place",
        why="the order of the texts, the place of each token, and where a text begins and ends",
    )
    yield Exposure(
        what="repeated releases",
        why="each further release of a text adds its own loss, and so does each text in which a word comes back; "
        "privatize a text once and keep the file",
    )
    yield Exposure(
        what="context",
        why="the words of a text depend on each other, so a reader who knows the language corrects many single tokens",
    )
    yield Exposure(
        what="topic, style and author",
        why="what is spread over many tokens is protected as a text is, not as a token is: see the table of texts",
    )
    yield Exposure(what="timing", why="when and how often files and queries are sent, and how long that takes")
    yield Exposure(what="the setting", why="model, mechanism, η and all numbers of this statement are public")
    if plain_tokens.count:
        yield Exposure(
            what="plain tokens",
            why="they are public by design and stand beside their privatized forms; they were chosen before any text "
            "was read and say nothing about one",
        )
