r"""The entity policy as a value, and as a TOML file: which kinds are looked for, and what becomes of each.

    [kinds]
    email = "mask"                  # the placeholder [EMAIL]
    card = {mask = "[CARD NUMBER]"}
    person = "pseudonym"            # the same name, the same pseudonym
    place = {eta = 40}              # tokens alone: replaced at an eta of their own
    ticket = {epsilon = 1}          # tokens alone: replaced by any token under a pure epsilon

    [patterns]
    ticket = 'TCK-\d{6}'            # or a list of them

    [pseudonyms]
    file = "names.map"              # encrypted, beside this file
    key = "keyring"                 # or a file; default: names.map.key

Entities that overlap become one, from the first character to the last, with the strictest treatment of theirs: mask
before pseudonym before epsilon before the smallest eta. Nothing that a recognizer found is left over.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rapt.errors import CorpusError, UsageError
from rapt.local.ledger_key import KeyPlace, parse_key_place
from rapt.local.policy.pseudonyms import PseudonymMap, PseudonymRestorer, leave_as_it_is
from rapt.local.policy.recognizers import (
    NAMES,
    PATTERNS,
    Entity,
    OwnPattern,
    explain_missing_model,
    find_entities,
)
from rapt.local.vocabulary import check_texts
from rapt.wire.mechanism_setting import check_epsilon, check_eta
from rapt.wire.policy_setting import KIND_NAME, MOST_KINDS, TREATMENTS, KindSetting, Treatment

_MOST_BYTES: Final = 65_536
_MOST_PATTERNS: Final = 64
_LONGEST_PLACEHOLDER: Final = 64
_LINE: Final = re.compile(r"\(at line (\d+)")


@dataclass(frozen=True)
class Rule:
    """What becomes of an entity of a kind.

    Attributes:
        treatment: `mask`, `pseudonym`, `epsilon` or `eta`.
        placeholder: Public words that a mask puts in its place; None otherwise.
        strength: ε or η of its tokens; None where it is masked or has a pseudonym.
    """

    treatment: Treatment
    placeholder: str | None = None
    strength: float | None = None

    @property
    def strictness(self) -> tuple[int, float]:
        """The smaller, the stricter."""
        return TREATMENTS.index(self.treatment), self.strength or 0.0


@dataclass(frozen=True)
class PolicyText:
    """A text as it is after masks and pseudonyms; its `repr` shows nothing of it.

    Attributes:
        text: The text, in which only kinds with an η or ε of their own still stand in clear.
        marked: Places in it of the entities of those kinds.
        found: Places in the original text of all entities, in order and apart from each other.
        ends: Ends in `text` of what stands in the place of each of `found`.
    """

    text: str = field(repr=False)
    marked: tuple[Entity, ...] = field(repr=False)
    found: tuple[Entity, ...] = field(repr=False)
    ends: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Policy:
    """Kinds of entities and what becomes of each; see the module for the file.

    One value serves many threads. Texts are arguments and are not kept; pseudonyms and their names are, in `names`.

    Attributes:
        rules: Rule of each kind, by its name.
        patterns: Patterns of the policy's own.
        names: Pseudonyms and the way back; None where no kind has them.
    """

    rules: Mapping[str, Rule]
    patterns: tuple[OwnPattern, ...] = ()
    names: PseudonymMap | None = None

    def __repr__(self) -> str:
        """The kinds and their treatments."""
        return f"Policy({', '.join(f'{kind}={rule.treatment}' for kind, rule in self.rules.items())})"

    @classmethod
    def make(
        cls,
        kinds: Mapping[str, str | Mapping[str, Any]],
        *,
        patterns: Mapping[str, str | Sequence[str]] | None = None,
        pseudonyms: Path | str | None = None,
        key: KeyPlace | str | None = None,
    ) -> Policy:
        r"""A policy from what its file would say.

            >>> policy = rapt.Policy.make({"email": "mask", "ticket": "mask"}, patterns={"ticket": r"TCK-\d{6}"})
            >>> policy.rewrite(["write to ann@example.org about TCK-123456"])
            ['write to [EMAIL] about [TICKET]']

        Args:
            kinds: Treatment of each kind, as in `[kinds]`.
            patterns: Regular expressions of kinds, as in `[patterns]`.
            pseudonyms: File of the map; needed where a kind has pseudonyms.
            key: Place of the map's key.

        Raises:
            UsageError: A kind, treatment or pattern is not what the file may say, or a package is not installed.
            MechanismError: An η or ε is outside its domain.
            LedgerError: The map or its key cannot be read.
        """
        return _read_policy(
            {"kinds": dict(kinds), "patterns": dict(patterns or {})},
            place=None if pseudonyms is None else Path(pseudonyms),
            key=parse_key_place(key) if isinstance(key, str) else key,
        )

    @classmethod
    def read(cls, path: Path | str) -> Policy:
        """Read the policy of a TOML file; files that it names are relative to it.

        Raises:
            UsageError: It cannot be read, or is not what the module describes.
            MechanismError: An η or ε is outside its domain.
            LedgerError: The map of pseudonyms or its key cannot be read.
        """
        path = Path(path)
        stated = _read_toml(path)
        place = key = None
        if "pseudonyms" in stated:
            table = _read_table(stated.pop("pseudonyms"), ("file", "key"), where="[pseudonyms]")
            if not all(isinstance(value, str) and value for value in table.values()) or "file" not in table:
                raise UsageError('a policy must have file = "NAME" in [pseudonyms], and may have key = "NAME"; mend it')
            place = path.parent / table["file"]
            if (named := table.get("key")) is not None:
                key = parse_key_place(named)
                key = path.parent / key if isinstance(key, Path) else key
        return _read_policy(stated, place=place, key=key)

    @property
    def digest(self) -> str:
        """Digest of all that says how a text is rewritten, hexadecimal; it stays here, since it tests guesses."""
        rules = [[kind, rule.treatment, rule.placeholder, rule.strength] for kind, rule in self.rules.items()]
        patterns = [[one.kind, one.pattern] for one in self.patterns]
        stated = json.dumps([rules, patterns, None if self.names is None else self.names.mark])
        return hashlib.sha256(stated.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def needs_tokens(self) -> tuple[str, ...]:
        """Kinds with an η or ε of their own: tokens can have one, words that leave and codes of whole texts cannot."""
        return tuple(kind for kind, rule in self.rules.items() if rule.strength is not None)

    @property
    def setting(self) -> tuple[KindSetting, ...]:
        """Kinds and treatments, as a manifest states them; neither patterns nor placeholders."""
        return tuple(
            KindSetting(kind=kind, treatment=rule.treatment, strength=rule.strength)
            for kind, rule in self.rules.items()
        )

    def apply(self, text: str) -> PolicyText:
        """Return the text with masks and pseudonyms, and where the kinds with a strength of their own stand in it.

        Raises:
            CorpusError: The text is too long, or a pattern of the policy takes too long on it.
            UsageError: Two names have one pseudonym, or the map is full.
        """
        found = list(self._join(find_entities(text, kinds=list(self.rules), patterns=self.patterns)))
        parts: list[str] = []
        marked, ends = [], []
        start = length = 0
        for entity in found:
            rule = self.rules[entity.kind]
            written = text[entity.start : entity.end]
            before = text[start : entity.start]
            length += len(before)
            if rule.treatment == "mask":
                written = rule.placeholder or ""
            elif rule.treatment == "pseudonym":
                assert self.names is not None
                written = self.names.pseudonym(entity.kind, written)
            else:
                marked.append(Entity(length, length + len(written), entity.kind))
            parts += [before, written]
            length += len(written)
            ends.append(length)
            start = entity.end
        return PolicyText("".join([*parts, text[start:]]), tuple(marked), tuple(found), tuple(ends))

    def rewrite(self, texts: Sequence[str]) -> list[str]:
        """Return the texts with masks and pseudonyms, as words.

        Args:
            texts: Texts in clear; not kept.

        Raises:
            UsageError: A kind has an η or ε of its own, which only tokens can have; or the reasons of `apply`.
            CorpusError: The reasons of `apply`; or an item is no text, named by its position.
        """
        if kinds := self.needs_tokens:
            raise UsageError(
                f"a policy must mask words that leave, or give them pseudonyms, got {', '.join(kinds)} with an eta or "
                "epsilon of its own; that is for tokens (eta)"
            )
        found = []
        for position, text in enumerate(check_texts(texts, first_position=0)):
            try:
                found.append(self.apply(text).text)
            except CorpusError as error:
                raise CorpusError(f"record {position + 1}: {error}") from None
        return found

    def restorer(self, *, escape: Callable[[str], str] = leave_as_it_is) -> PseudonymRestorer | None:
        """Return the restorer of names of one answer, a `PseudonymRestorer`; None where no kind has pseudonyms."""
        return None if self.names is None else PseudonymRestorer(self.names, escape=escape)

    def save(self) -> None:
        """Write the map of pseudonyms, if there is one and it has new names. Raises `LedgerError`."""
        if self.names is not None:
            self.names.save()

    def _join(self, entities: Sequence[Entity]) -> Iterator[Entity]:
        """Entities in order, with those that overlap as one."""
        specific = [*dict.fromkeys(pattern.kind for pattern in self.patterns), *PATTERNS, *NAMES]
        group: list[Entity] = []
        end = -1
        for entity in [*entities, None]:
            if group and (entity is None or entity.start >= end):
                start = group[0].start

                def rank(member: Entity, *, whole: tuple[int, int] = (start, end)) -> tuple[Any, ...]:
                    part = (member.start, member.end) != whole
                    return *self.rules[member.kind].strictness, part, specific.index(member.kind)

                yield Entity(start, end, min(group, key=rank).kind)
                group = []
            if entity is not None:
                end = max(end, entity.end) if group else entity.end
                group.append(entity)


def _read_toml(path: Path) -> dict[str, Any]:
    """The file's values; no message repeats one, because a pattern may tell what it protects."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"a policy must be readable, got {error.strerror}; name its file") from None
    if len(content) > _MOST_BYTES:
        raise UsageError(f"a policy must have at most {_MOST_BYTES:,} bytes; shorten it")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # its own message may quote what stands there
        line = _LINE.search(str(error))
        raise UsageError(
            f"a policy must be TOML in UTF-8, got a fault{f' in line {line[1]}' if line else ''}; mend it"
        ) from None


def _read_table(value: Any, known: Sequence[str], *, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"a policy must have a table for {where}, got {type(value).__name__}; mend it")
    for name in value:
        if name not in known:
            raise UsageError(
                f"a policy must have only {', '.join(known)} in {where}, got {name[:60]!r}; correct or remove it"
            )
    return value


def _read_policy(stated: Mapping[str, Any], *, place: Path | None, key: KeyPlace | None) -> Policy:
    _read_table(stated, ("kinds", "patterns", "pseudonyms"), where="its file")
    patterns = _read_patterns(stated.get("patterns", {}))
    kinds = stated.get("kinds")
    if not isinstance(kinds, dict) or not 1 <= len(kinds) <= MOST_KINDS:
        raise UsageError(f"a policy must have 1 to {MOST_KINDS} kinds in [kinds]; name one, such as email")
    known = [*PATTERNS, *NAMES, *dict.fromkeys(pattern.kind for pattern in patterns)]
    rules = {}
    for kind, value in kinds.items():
        if kind not in known:
            raise UsageError(
                f"a kind of a policy must be one of {', '.join(known)}, or have a pattern in [patterns], got "
                f"{kind[:60]!r}; correct it"
            )
        rules[kind] = _read_rule(kind, value)
    if (unused := next((pattern.kind for pattern in patterns if pattern.kind not in rules), None)) is not None:
        raise UsageError(f"a kind with a pattern must stand in [kinds], got {unused!r}; say what becomes of it")
    if any(kind in NAMES for kind in rules) and (missing := explain_missing_model()) is not None:
        raise UsageError(f"a policy with {', '.join(kind for kind in rules if kind in NAMES)} {missing}")
    given = any(rule.treatment == "pseudonym" for rule in rules.values())
    if given and place is None:
        raise UsageError('pseudonyms must have a map; add file = "names.map" in [pseudonyms]')
    if not given and (place is not None or key is not None):
        raise UsageError('a map of pseudonyms must have a kind that has them; write kind = "pseudonym" in [kinds]')
    names = PseudonymMap.open(place, key=key) if given and place is not None else None
    return Policy(rules, patterns, names)


def _read_rule(kind: str, value: Any) -> Rule:
    if value == "mask":
        return Rule("mask", placeholder=f"[{kind.upper()}]")
    if value == "pseudonym":
        return Rule("pseudonym")
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, given),) = value.items()
        if name == "mask" and isinstance(given, str):
            if not (1 <= len(given) <= _LONGEST_PLACEHOLDER and given.isprintable() and given.strip()):
                raise UsageError(
                    f"a placeholder must be 1 to {_LONGEST_PLACEHOLDER} printable characters, got {len(given)} for "
                    f"kind={kind!r}; shorten it"
                )
            return Rule("mask", placeholder=given)
        if name in ("eta", "epsilon") and isinstance(given, int | float) and not isinstance(given, bool):
            strength = check_eta(given) if name == "eta" else check_epsilon(given)
            return Rule("eta" if name == "eta" else "epsilon", strength=strength)
    raise UsageError(
        f'a kind must be "mask", "pseudonym", {{mask = "WORDS"}}, {{eta = NUMBER}} or {{epsilon = NUMBER}}, got '
        f"something else for kind={kind!r}; correct it"
    )


def _read_patterns(value: Any) -> tuple[OwnPattern, ...]:
    if not isinstance(value, dict):
        raise UsageError("a policy must have a table for [patterns]; mend it")
    found: list[OwnPattern] = []
    for kind, stated in value.items():
        if not KIND_NAME.fullmatch(kind):
            raise UsageError(
                f"a kind must have a name of small letters, digits and _, at most 32, got {kind[:60]!r}; rename it"
            )
        patterns = [stated] if isinstance(stated, str) else stated
        if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
            raise UsageError(f"a pattern must be a text, or a list of some, got another for kind={kind!r}; correct it")
        if len(found) + len(patterns) > _MOST_PATTERNS:
            raise UsageError(f"a policy must have at most {_MOST_PATTERNS} patterns; join some by |")
        found += [OwnPattern(kind, pattern) for pattern in patterns]
    return tuple(found)
