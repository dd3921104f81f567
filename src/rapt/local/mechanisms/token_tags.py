"""A public class for each token of a vocabulary: by rules for English, or from a file.

The class belongs to the token, not to its place in a text ("type-level"): a tag that depends on the sentence would tell
about the other words of the sentence. The built-in rules are coarse on purpose: endings and short lists, one class a
word, no more than a reader of the vocabulary could do by hand. Words in other scripts share one class. The lists were
written for this tagger: they hold words that mark their class by themselves, and common ones that no ending gives away,
each where it is used most.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError, VocabularyError, WireError
from rapt.local.mechanisms.interface import MechanismOption
from rapt.local.vocabulary import Vocabulary, keep_by_hash
from rapt.wire.strict_json import parse_object

DETERMINERS: Final = frozenset(
    """a an the this that these those each every either neither some any no all both half such what which
    whose another many much few several enough""".split()
)
PRONOUNS: Final = frozenset(
    """i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it
    its itself we us our ours ourselves they them their theirs themselves who whom whoever someone
    somebody something anyone anybody anything everyone everybody everything nobody nothing none one
    ones there""".split()
)
PREPOSITIONS: Final = frozenset(
    """of in on at by for with from to into onto about above below under over between among through during
    before after against without within across behind beyond near off out up down since until till
    toward towards upon per via like despite except inside outside along around than as""".split()
)
CONJUNCTIONS: Final = frozenset("and or but nor so yet if because although though while whereas unless whether".split())
AUXILIARIES: Final = frozenset(
    """am is are was were be been being do does did have has had having will would shall should can could
    may might must ought cannot ain isn aren wasn weren don doesn didn haven hasn hadn won wouldn
    shouldn couldn ll ve re""".split()
)
ADVERBS: Final = frozenset(
    """not never always often sometimes usually again almost already also away back even ever far fast hard
    here how however just later maybe more most now once only perhaps quite rather really seldom soon
    still then thus today together tomorrow tonight too twice very well when where why yesterday less
    least ago else instead anyway""".split()
)
ADJECTIVES: Final = frozenset(
    """bad best better big black blue brown certain cheap clean clear cold common cool cruel dark dead dear
    deep different dirty dry dull easy empty entire evil fair false fat fine first flat fresh full funny
    good gray great green happy heavy high hot huge ill large last late lazy light little long loud low
    mad main major mean minor modern narrow new next nice old open own pink poor pretty pure quick quiet
    rare raw real red rich right rough round sad safe same second sharp short sick silly simple slow
    small smart smooth soft sorry sour strange strong stupid sure sweet tall thick thin third tiny tired
    tough true ugly warm weak weird wet white whole wide wild wise worse worst wrong yellow young""".split()
)
VERBS: Final = frozenset(
    """accept add agree allow appear apply argue arrive ask avoid become beg began begin begun believe
    belong blame bought bring broke brought build built buy call came care carry catch caught choose
    chose climb come consider continue cook cost create cry cut dare decide deny depend destroy die
    discover draw drank drew drink drive drove eat ate earn enjoy enter exist expect explain fail fall
    feel fell felt fight fill find finish fit flew fly follow forget forgot forgive fought found gave
    get give go goes gone got grew grow guess hang happen hate hear heard held help hide hit hold hope
    hurt imagine improve include join keep kept kill knew know laid laugh lay lead learn leave led left
    lend let lie listen live lose lost love made make marry mean meant meet met miss move need obey
    offer owe paid pay perform persuade play pray prefer prepare pretend protect prove provide pull push
    put quit ran reach read realize receive refuse remain remember remove repeat require ride ring rise
    run said sang sat save saw say see seem seen sell send sent serve set shake shoot shut sing sit
    slept sleep smile sold solve sought speak spend spent spoke stand start stay steal stood stop suffer
    suggest suppose swim take taken taught teach tear tell thank think thought threw throw told took
    touch travel tried try turn understand use wait wake walk want warn wash watch wear went win wish
    wonder won wore work worry write wrote""".split()
)
NUMBERS: Final = frozenset(
    """zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand
    million billion dozen""".split()
)


# Append-only: the rules of a name never change, because a setting holds the name.
BUILT_IN: Final = "english/1"
SPECIAL: Final = "special"

_CLOSED: Final = (
    ("determiner", DETERMINERS),
    ("pronoun", PRONOUNS),
    ("preposition", PREPOSITIONS),
    ("conjunction", CONJUNCTIONS),
    ("auxiliary", AUXILIARIES),
    ("adverb", ADVERBS),
    ("adjective", ADJECTIVES),
    ("verb", VERBS),
    ("number", NUMBERS),
)
# In this order: the first ending that fits decides, so that "-ability" is a noun and "-able" an adjective.
_ENDINGS: Final = (
    ("noun", ("tion", "sion", "ment", "ness", "ity", "ship", "hood", "ism", "ist", "ance", "ence", "ology", "graphy")),
    ("adverb", ("ly",)),
    ("adjective", ("ous", "ful", "less", "able", "ible", "ive", "ical", "ial", "ual", "ish", "est")),
    ("verb", ("ing", "ed", "ize", "ify")),
)
# What an ending must leave of a word: "bed", "ring" and "fly" have none.
_LEAST_STEM: Final = 3
_WORD_STARTS: Final = ("\u2581", "\u0120")  # sentencepiece, byte-level BPE
_PIECE: Final = "##"


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenTags:
    """The class of every row of a table.

    Attributes:
        names: Names of the classes, sorted.
        classes: Index into `names` for each row, (V,).
        source: Source that a setting states: `BUILT_IN`, or the hash of a file's tags.
    """

    names: tuple[str, ...] = field(repr=False)
    classes: NDArray[np.int64] = field(repr=False)
    source: str


@keep_by_hash
def tag_by_rule(vocabulary: Vocabulary) -> TokenTags:
    """The tags by rule. Tokens that can never be an output are one class of their own."""
    names = _list_token_names(vocabulary)
    marks = tuple(mark for mark in _WORD_STARTS if any(name.startswith(mark) for name in names))
    tags = [tag_token(name, word_starts=marks) for name in names]
    for row in np.setdiff1d(np.arange(vocabulary.size), vocabulary.eligible):
        tags[row] = SPECIAL
    return _encode(tags, source=BUILT_IN)


def tag_token(token: str, *, word_starts: Sequence[str] = ()) -> str:
    """The class of one token by rule.

    Args:
        token: Token as the vocabulary writes it.
        word_starts: Marks before a word in this vocabulary; where there are some, letters without one are a piece.
    """
    if token.startswith(_PIECE) and len(token) > len(_PIECE):
        return "piece"
    word = token
    for mark in word_starts:
        word = word.removeprefix(mark)
    word = word.lower()
    if any(letter.isdigit() for letter in word):
        return "number"
    if not any(letter.isalpha() for letter in word):
        return "punctuation"
    if word_starts and not token.startswith(tuple(word_starts)):
        return "piece"
    if not word.isascii():
        return "foreign"
    if len(word) == 1 and word not in ("a", "i"):
        return "letter"
    for name, words in _CLOSED:
        if word in words:
            return name
    for name, endings in _ENDINGS:
        if any(word.endswith(ending) and len(word) >= len(ending) + _LEAST_STEM for ending in endings):
            return name
    return "noun"


def read_tags(path: Path, vocabulary: Vocabulary) -> TokenTags:
    """The tags in a JSON file: an object that gives tokens a class, or a list with the class of every row in order.

    Tokens that an object leaves out share one class of their own, as do those that can never be an output.

    Raises:
        MechanismError: The file cannot be read, is of another kind, or names no token.
    """
    what = "a file of tags"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MechanismError(f"{what} must be readable, got {error.strerror or type(error).__name__}") from None
    names = _list_token_names(vocabulary)
    given: list[object]
    if content.lstrip()[:1] == b"[":
        given = _list_of(content, what=what)
        if len(given) != vocabulary.size:
            raise MechanismError(
                f"{what} must have one class for each of the {vocabulary.size} rows of the table, got {len(given)}"
            )
    else:
        try:
            by_token = parse_object(content, what=what)
        except WireError as error:
            raise MechanismError(str(error)) from None
        given = [by_token.get(name, "") for name in names]
        if not by_token.keys() & set(names):
            raise MechanismError(f"{what} must name tokens of model={vocabulary.model!r}, got none of {len(by_token)}")
    tags = [tag for tag in given if isinstance(tag, str)]
    if len(tags) != len(given):
        raise MechanismError(f'{what} must hold names of classes only, such as {{"walk": "verb"}}')
    for row in np.setdiff1d(np.arange(vocabulary.size), vocabulary.eligible):
        tags[row] = SPECIAL
    digest = hashlib.sha256(json.dumps(tags).encode("ascii")).hexdigest()
    return _encode(tags, source=f"sha256:{digest}")


def choose_tags(source: str, vocabulary: Vocabulary) -> TokenTags:
    """The built-in tags under their name, else those of the file of that path."""
    return tag_by_rule(vocabulary) if source == BUILT_IN else read_tags(Path(source), vocabulary)


def _encode(tags: Sequence[str], *, source: str) -> TokenTags:
    names, classes = np.unique(np.array(tags), return_inverse=True)
    return TokenTags(names=tuple(names.tolist()), classes=classes.astype(np.int64), source=source)


def _list_of(content: bytes, *, what: str) -> list[object]:
    try:
        found: list[object] = json.loads(content)
    except (ValueError, RecursionError):
        raise MechanismError(f"{what} must be JSON; the file is damaged or of another kind") from None
    return found


def _list_token_names(vocabulary: Vocabulary) -> list[str]:
    """The written form of every row; empty for rows that the tokenizer has no token for."""
    try:
        return vocabulary.tokens(range(vocabulary.size))
    except VocabularyError:  # a table padded to a round number of rows
        pass
    found = []
    for row in range(vocabulary.size):
        try:
            found += vocabulary.tokens([row])
        except VocabularyError:
            found.append("")
    return found


TAGS_OPTION: Final = MechanismOption(
    default=BUILT_IN, help="JSON file of public word classes; the default are rules for English", read=choose_tags
)
