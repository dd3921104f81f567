"""Texts beside what left in their place, token by token, for the eyes of their owner.

Both sides are made here, of the file and of the source, and nothing of them is kept. A token that stayed is one that a
reader of the file has right without any attack; an audit says what an attack reads beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from rapt.errors import CorpusError, VocabularyError, name_record
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import PrivatizedFile

_CHUNK: Final = 512


@dataclass(frozen=True, kw_only=True)
class ShownText:
    """One text of a file; its `repr` shows nothing of it.

    Attributes:
        after: Tokens that left.
        before: Tokens of the text in clear, as many as left; None where the source is not looked at.
    """

    after: tuple[str, ...] = field(repr=False)
    before: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def stayed(self) -> tuple[bool, ...]:
        """Whether each token stayed as it is; none is known to without the source."""
        if self.before is None:
            return (False,) * len(self.after)
        return tuple(one == two for one, two in zip(self.before, self.after, strict=True))


@dataclass(frozen=True, kw_only=True)
class ShownFile:
    """A file of tokens as its reader and its owner see it.

    Attributes:
        texts: Texts that were asked for, from the first on.
        tokens: Tokens of all texts.
        unknown: Tokens of all texts that left as the unknown token.
        stayed: Tokens of all texts that stayed; None without the source.
        unknown_before: Tokens of the source that the vocabulary does not know; None without the source.
    """

    texts: tuple[ShownText, ...] = field(repr=False)
    tokens: int
    unknown: int
    stayed: int | None
    unknown_before: int | None


def show_texts(
    file: PrivatizedFile, vocabulary: Vocabulary, *, originals: Sequence[str] | None, first: int
) -> ShownFile:
    """Return the first texts of a file of tokens, and counts over all.

    Args:
        file: Privatized file, its records in the order of the source; of pairs the first text of each.
        vocabulary: Vocabulary that it was privatized with.
        originals: Texts in clear, in order; None shows what left alone.
        first: Number of texts to show.

    Raises:
        VocabularyError: The file was privatized with another vocabulary.
        CorpusError: The texts are not those of the file.
    """
    if file.manifest.vocabulary_hash != vocabulary.hash:
        raise VocabularyError(
            "the vocabulary must be the one that the file was privatized with; name it (`vocabulary`)"
        )
    check_count(file, originals)
    shown: list[ShownText] = []
    tokens = unknown = stayed = unknown_before = 0
    for start in range(0, len(file.records), _CHUNK):
        records = file.records[start : start + _CHUNK]
        contents = None
        if originals is not None:
            contents = vocabulary.encode(originals[start : start + _CHUNK], first_position=start)
        for place, record in enumerate(records):
            after = record.token_ids
            before = None if contents is None else _fit(contents[place], after, file.manifest, position=start + place)
            tokens += len(after)
            unknown += after.count(vocabulary.unknown_id) if vocabulary.unknown_id is not None else 0
            if before is not None:
                stayed += sum(one == two for one, two in zip(before, after, strict=True))
                unknown_before += before.count(vocabulary.unknown_id)
            if len(shown) < first:
                written = None if before is None else tuple(_write(vocabulary, before))
                shown.append(ShownText(after=tuple(vocabulary.tokens(after)), before=written))
    known = originals is not None
    return ShownFile(
        texts=tuple(shown),
        tokens=tokens,
        unknown=unknown,
        stayed=stayed if known else None,
        unknown_before=unknown_before if known else None,
    )


def check_count(file: PrivatizedFile, originals: Sequence[str] | None) -> None:
    """Refuse a source that has not a text for each record (`CorpusError`); None is no source."""
    if originals is not None and len(originals) != len(file.records):
        raise CorpusError(
            f"the source must have a text for each record, got {len(originals)} for {len(file.records)}; name the one "
            "that the file was made of"
        )


def _fit(content: list[int], after: tuple[int, ...], manifest: Manifest, *, position: int) -> tuple[int | None, ...]:
    """Fit the tokens of a text to those that left: cut where it was cut, and None where it was filled up."""
    missing = len(after) - len(content)
    if missing > 0 and manifest.arrangement.length_bucket is None:
        raise CorpusError(
            f"{name_record(position)} of the source must have the tokens that left, got fewer; name the source of "
            "the file"
        )
    return (*content[: len(after)], *(None,) * max(missing, 0))


def _write(vocabulary: Vocabulary, ids: Sequence[int | None]) -> list[str]:
    """Write tokens; nothing for None."""
    known = iter(vocabulary.tokens([token for token in ids if token is not None]))
    return ["" if token is None else next(known) for token in ids]
