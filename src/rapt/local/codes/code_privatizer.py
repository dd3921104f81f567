"""From whole texts to codes: a public encoder, a public map, and the subset mechanism on what comes out.

The privatizer has what files, records and ledgers need of any; see `rapt.local.privatizer`. A record has as many ids
for every text, so the length of a text leaves as little as its words do. A text that is longer than its encoder reads
is cut: what is cut off changes nothing that leaves.

A code of pairs stands for two texts together, at one ε for both. Files, ledgers and audits take such a pair as one
text, with a sign between its halves that neither has (`join_pair`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rapt.arguments import check_arguments
from rapt.errors import CorpusError, MechanismError, UsageError, VocabularyError, name_record
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import SubsetMechanism, make_subset
from rapt.local.privatizer import check_known, check_labels
from rapt.local.randomness import RandomStream
from rapt.local.vocabulary import Vocabulary
from rapt.public_models import PUBLIC_CODES, find_model_folder
from rapt.version import __version__
from rapt.wire.code_bundle import (
    CodeBundle,
    compare_pairs,
    holds_code_bundle,
    project_states,
    read_code_bundle,
)
from rapt.wire.manifest import NO_PLAIN_TOKENS, LabelPrivacy, Manifest, PlainTokens, Randomness, Targets
from rapt.wire.mechanism_setting import MOST_EPSILON, USUAL_EPSILON, check_epsilon
from rapt.wire.privatized_file import PrivatizedRecord
from rapt.wire.vocabulary_bundle import shorten_hash

# Between spaces: no pattern of a word, a number or a space goes over it.
_SIGN: Final = "\0"
_BETWEEN: Final = f" {_SIGN} "


def join_pair(first: str, second: str) -> str:
    """Return a pair of texts as one, which `split_pair` takes apart; the sign between them is a space in either."""
    return _BETWEEN.join(text.replace(_SIGN, " ") for text in (first, second))


def split_pair(joined: str) -> tuple[str, str]:
    """Return the two texts of a joined pair."""
    first, _, second = joined.partition(_BETWEEN)
    return first, second


class Encoder(Protocol):
    """A public encoder on the user's machine, such as `rapt.local.codes.encoder.TextEncoder`."""

    @property
    def model(self) -> str:
        """Name of the encoder."""
        ...

    @property
    def hash(self) -> str:
        """`sha256:...` of its tokenizer and weights."""
        ...

    @property
    def max_tokens(self) -> int:
        """Number of tokens after which it cuts a text, special tokens included."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the encoder's tokenizer."""
        ...

    def encode(self, texts: Sequence[str], *, first_position: int = 0) -> NDArray[np.float32]:
        """One state for each text, (n, h)."""
        ...


@dataclass(frozen=True, repr=False)
class CodePrivatizer:
    """A setting that can be published; texts, labels and randomness are arguments and are not kept.

    Attributes:
        encoder: Public encoder of the code.
        mechanism: M, with the code bundle.
    """

    encoder: Encoder
    mechanism: SubsetMechanism

    def __post_init__(self) -> None:
        """Refuse an encoder that is not the one of the code (`VocabularyError`)."""
        check_encoder(self.encoder, bundle=self.mechanism.bundle)

    def __repr__(self) -> str:
        """The setting in a line."""
        return f"CodePrivatizer(model={self.mechanism.bundle.model[:60]!r}, epsilon={self.mechanism.epsilon:g})"

    @property
    def vocabulary(self) -> Vocabulary:
        """Tokenizer of the encoder: what a text is to it."""
        return self.encoder.vocabulary

    @property
    def vocabulary_hash(self) -> str:
        """`sha256:...` of the code bundle."""
        return self.mechanism.bundle.hash

    @property
    def truncate_to(self) -> int | None:
        """None: the encoder alone says where a text is cut."""
        return None

    @property
    def plain_tokens(self) -> PlainTokens:
        """No plain tokens: there are no tokens to reconstruct."""
        return NO_PLAIN_TOKENS

    @property
    def longest_text(self) -> int:
        """No text is too long, because a longer one is cut."""
        return sys.maxsize

    def with_plain_tokens(self, plain_tokens: PlainTokens) -> Self:
        """The same setting, which has none.

        Raises:
            UsageError: Some are asked for.
        """
        if plain_tokens != NO_PLAIN_TOKENS:
            raise UsageError("codes of whole texts must have no plain tokens; leave them out")
        return self

    def share_memory(self, *, among: int) -> Self:
        """The same setting: its arrays are read-only, and shared as they are."""
        return self

    def privatize(
        self,
        texts: Sequence[str],
        *,
        labels: Sequence[int | None] | None,
        stream: RandomStream,
        first_position: int = 0,
        known: Sequence[tuple[int, ...] | None] | None = None,
    ) -> list[PrivatizedRecord]:
        """One record for each text, in order, with r ids of codewords.

        Args:
            texts: Texts in clear; not kept, and never part of an error.
            labels: Index of each text's label, or None where there are none. They leave as they are given.
            stream: Source of the noise. It must not have been copied from another process.
            first_position: Position of the first text in its file, for messages.
            known: M(x) of texts that were released before, as a ledger stores it, and None for each other text; those
                are not drawn again.

        Raises:
            CorpusError: A text has no token, or is not valid Unicode; named by its position.
            UsageError: Labels and texts differ in number, a known release is of another code, or the stream is another
                process's.
        """
        counts = self.token_counts(texts, first_position=first_position)
        given = check_labels(labels, texts=len(texts), first_position=first_position)
        stream.check_process()
        stored = [None] * len(texts) if known is None else list(known)
        check_known(stored, counts, first_position=first_position)
        places = [place for place, ids in enumerate(stored) if ids is None]
        drawn_of = [texts[place] for place in places]
        codes = encode_codes(self.encoder, drawn_of, bundle=self.mechanism.bundle, first_position=first_position)
        drawn = iter(self.mechanism.privatize(codes, rng=stream.generator).tolist())
        return [
            PrivatizedRecord(
                token_ids=tuple(next(drawn)) if ids is None else ids, label=None if given is None else given[place]
            )
            for place, ids in enumerate(stored)
        ]

    def marks(self, texts: Sequence[str], *, first_position: int = 0) -> list[tuple[int, ...]]:
        """Nothing: a text is replaced as a whole."""
        return [()] * len(texts)

    def token_counts(self, texts: Sequence[str], *, first_position: int = 0) -> list[int]:
        """How many ids the record of each text has, which is the same for all; raises `CorpusError` as `privatize`."""
        self.contents(texts, first_position=first_position)
        return [self.mechanism.bundle.codes] * len(texts)

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the encoder reads; raises `CorpusError` as `privatize`."""
        return sum(len(content) > self._room for content in self.vocabulary.encode(self._split_halves(texts)))

    def manifest(
        self,
        *,
        labels: tuple[str, ...] | None,
        randomness: Randomness,
        label_privacy: LabelPrivacy | None = None,
        pairs: bool = False,
        targets: Targets | None = None,
    ) -> Manifest:
        """The manifest of a file made with this setting, its counts still 0: the writer fills them in.

        Raises:
            UsageError: Records are to have targets: a code is not a text that can be generated.
        """
        if targets is not None:
            raise UsageError(
                "codes of whole texts must have no targets; privatize tokens (`eta`) to have text generated"
            )
        return Manifest(
            model=self.mechanism.bundle.model,
            vocabulary_hash=self.mechanism.bundle.hash,
            mechanism=self.mechanism.setting,
            randomness=randomness,
            plain_tokens=NO_PLAIN_TOKENS,
            labels=labels,
            label_privacy=label_privacy,
            pairs=pairs,
            records=0,
            tokens=0,
            records_sha256="",
            created_by=f"rapt {__version__}",
        )

    def contents(self, texts: Sequence[str], *, first_position: int = 0) -> list[list[int]]:
        """Return what the encoder sees of each text: its tokens in clear, cut where the encoder cuts them.

        Of a pair, both texts with an id between them that no token has.

        Raises:
            CorpusError: The reasons of `privatize`.
        """
        each = 2 if self.mechanism.bundle.pairs else 1
        found = []
        # Text by text of a pair, because a message names a record by the place of its text.
        parts = [
            self.vocabulary.encode(half, first_position=first_position)
            for half in (zip(*map(split_pair, texts), strict=True) if each > 1 and texts else (texts,))
        ]
        for position, halves in enumerate(zip(*parts, strict=True), first_position):
            if not all(halves):
                raise CorpusError(f"{name_record(position)} must have at least one token, got an empty text; remove it")
            first, *rest = (content[: self._room] for content in halves)
            found.append(first + [item for content in rest for item in (self.vocabulary.size, *content)])
        return found

    def _split_halves(self, texts: Sequence[str]) -> Sequence[str]:
        return [half for text in texts for half in split_pair(text)] if self.mechanism.bundle.pairs else texts

    @property
    def _room(self) -> int:
        return self.encoder.max_tokens - self.vocabulary.bundle.special_tokens


def check_encoder(encoder: Encoder, *, bundle: CodeBundle) -> None:
    """Refuse an encoder that is not the one that a code was made with.

    Raises:
        VocabularyError: The encoder has other weights, another tokenizer, or another longest input than the code's.
    """
    if encoder.hash != bundle.encoder_hash:
        raise VocabularyError(
            f"the encoder of a code must be the one it was made with, {bundle.model[:60]} "
            f"{shorten_hash(bundle.encoder_hash)}, got {shorten_hash(encoder.hash)}; name that one with `encoder`, or "
            "take the code of this one"
        )
    if encoder.max_tokens != bundle.max_tokens:
        raise VocabularyError(
            f"the encoder must read {bundle.max_tokens} tokens of a text, as the code was made with, got "
            f"max_tokens={encoder.max_tokens}; take the code of this encoder"
        )


def encode_codes(
    encoder: Encoder, texts: Sequence[str], *, bundle: CodeBundle, first_position: int = 0
) -> NDArray[np.float64]:
    """Return the clear code of each text, or of each joined pair for a code of pairs, (n, width).

    Raises:
        CorpusError: A text cannot be read by the encoder.
    """
    if not bundle.pairs:
        return project_states(encoder.encode(texts, first_position=first_position), bundle)
    halves = list(zip(*map(split_pair, texts), strict=True)) or [(), ()]
    states = (encoder.encode(half, first_position=first_position) for half in halves)
    return project_states(compare_pairs(*states), bundle)


def read_code(codes: Path | str) -> CodeBundle:
    """Read a code by the path of its folder, or by its name in `rapt.public_models.PUBLIC_CODES`.

    Raises:
        VocabularyError: There is no code, or the one of a name is not that which came with rapt.
        WireError: The code is malformed.
    """
    pinned = PUBLIC_CODES.get(str(codes))
    folder = Path(codes) if pinned is None else find_model_folder(str(codes))
    if not holds_code_bundle(folder):
        raise VocabularyError(
            f"a code must be a folder with code.json and code.safetensors, or one of {', '.join(PUBLIC_CODES)}; make "
            "one of public text with `rapt codebook`, or fetch that of a service"
        )
    bundle = read_code_bundle(folder)
    if pinned not in (None, bundle.hash):
        raise VocabularyError(
            f"the code {codes} must be the one that came with rapt, got another; take its files from the release again"
        )
    return bundle


def refuse_large_epsilon(epsilon: float, *, insist: str) -> None:
    """Refuse an ε at which texts are named nearly always.

    Args:
        epsilon: ε of a whole text, nats.
        insist: Words for how the user says that it is meant, such as an option.

    Raises:
        MechanismError: epsilon is outside its domain, or above what is usual.
    """
    check_epsilon(epsilon)
    if epsilon > USUAL_EPSILON:
        raise MechanismError(
            f"epsilon must be at most {USUAL_EPSILON:g}, where a text is named among 1,000 others nearly always; take "
            f"1 to 8, or insist with {insist} (up to {MOST_EPSILON:g})"
        )


@check_arguments
def load_code_privatizer(codes: Path | str, *, epsilon: float, encoder: Path | str | None = None) -> CodePrivatizer:
    """Load what turns whole texts into codes at ε.

    Args:
        codes: Folder of a code bundle, as `rapt codebook` writes it or a service hands it out; or a name in
            `rapt.public_models.PUBLIC_CODES`.
        epsilon: ε of a whole text, nats.
        encoder: Name or folder of the encoder; None takes the name that the code has for it.

    Raises:
        VocabularyError: There is no code at `codes`, its encoder is not on this machine, or is another one.
        WireError: The code is malformed.
        MechanismError: epsilon is outside its domain.
    """
    bundle = read_code(codes)
    mechanism = make_subset(bundle, epsilon=epsilon)  # before the encoder, which takes seconds to read
    try:
        found = read_encoder(encoder or bundle.model)
    except VocabularyError as error:
        if encoder is not None:
            raise
        raise VocabularyError(
            f"the encoder of this code must be on this machine: {error}; or name it with `encoder`"
        ) from None
    return CodePrivatizer(found, mechanism)
