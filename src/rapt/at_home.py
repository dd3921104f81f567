"""Answers at home: a tuned model on the user's own machine. Nothing of a query leaves, and no budget is spent.

What a service tuned is small, and what it stands on is public. So whoever can run the public part (the encoder of a
codebook, or a backbone) fetches the adapter and asks it about clear text. Noise that a query would need is gone, and
with it most of what privacy costs: what was trained on many noisy texts is right about a clear one far more often.

*Codes.* The head was trained on codewords y with E[y | u] = c u for the code u of a text. On such noise the shares of
the labels weigh more than a codeword does: of eight labels the most frequent one may always be the answer. A clear code
says more, so it is read like T independent releases of itself (`rapt.teaching`), one of a pair too. Heads over two
codes are left as they are. Where the service had public text of the code, the adapter has a second head that was taught
on it: that one reads the whole state of the encoder.
*Tokens.* The backbone reads the tokens of the text as they are; the plain tokens of an adapter that was tuned with
reconstruction stand before them in privatized form, as it has always seen them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from rapt.errors import UsageError, VocabularyError, WireError
from rapt.local.codes.code_privatizer import Encoder, encode_codes, join_pair
from rapt.local.codes.encoder import TextEncoder, read_encoder
from rapt.local.codes.subset import SubsetMechanism, remake_subset
from rapt.local.mechanisms import remake_mechanism
from rapt.local.privatizer import USUAL_POOL, Privatizer, plan_plain_tokens
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.teaching import estimate_attenuation, read_clear_codes, sharpen_head
from rapt.wire.adapter_files import CARD, WEIGHTS, AdapterCard, parse_card
from rapt.wire.code_bundle import CodeBundle, apply_center, place_on_arc, project_states, split_into_units
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.mechanism_setting import KNOWN_MECHANISMS
from rapt.wire.strict_json import parse_document

if TYPE_CHECKING:
    from rapt.local.client import ServiceClient
    from rapt.service.adapter.adapter import Adapter
    from rapt.service.backbone.backbone import Backbone

_HEAD: Final = ("classifier.weight", "classifier.bias")
_TEXTS_AT_ONCE: Final = 256
_SHARES: Final = "classifier.label_shares"
_TAUGHT: Final = ("taught.weight", "taught.bias")
_DRAWS: Final = 256
_LEAST_LENGTH: Final = 1e-12  # of a vector that is divided by its length


class HomeModel(Protocol):
    """A tuned model that answers clear texts."""

    @property
    def card(self) -> AdapterCard:
        """Card of the adapter."""
        ...

    def answer(
        self, texts: Sequence[str], seconds: Sequence[str] | None, *, first_position: int
    ) -> NDArray[np.float64]:
        """Return the probability of each class for each text, or pair, (n, C)."""
        ...


def answer_in_parts(
    model: HomeModel, texts: Sequence[str], seconds: Sequence[str] | None
) -> Iterator[NDArray[np.float64]]:
    """Yield the probability of each class for some hundred texts, or pairs, after the other, (n, C)."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = slice(start, start + _TEXTS_AT_ONCE)
        yield model.answer(texts[part], None if seconds is None else seconds[part], first_position=start)


def is_of_codes(card: AdapterCard) -> bool:
    """Whether a tuned model reads whole texts as codes."""
    known = KNOWN_MECHANISMS.get(card.mechanism.name)
    return known is not None and known.unit == "text"


def read_home_card(files: Mapping[str, bytes]) -> AdapterCard:
    """Return the card among an adapter's files, checked as far as it concerns answers at home.

    Raises:
        WireError: A file is missing, damaged or edited.
        UsageError: The model writes text, which is not done at home.
    """
    if CARD not in files or WEIGHTS not in files:
        raise WireError(f"an adapter must have {CARD} and {WEIGHTS}; fetch it again")
    card = parse_card(parse_document(files[CARD], what="the adapter card"))
    if hashlib.sha256(files[WEIGHTS]).hexdigest() != card.weights_sha256:
        raise WireError("an adapter's weights must match the digest in its card; fetch both files again")
    if card.task == "generation":
        raise UsageError("the model must choose among classes to be asked at home, got one that writes text")
    return card


@dataclass(frozen=True, eq=False, kw_only=True)
class CodeModel:
    """A head over codes, and what makes codes of texts. It needs no torch.

    Attributes:
        card: Card of the adapter.
        code: Map and codebook.
        encoder: The public encoder of texts.
        weight: The head, (C, k) or (C, 3k), float64; (C, h) of one that reads whole states.
        bias: Bias of the head, (C,), float64.
        reads_states: Whether the head reads whole states of the encoder, and not codes.
    """

    card: AdapterCard
    code: CodeBundle
    encoder: Encoder
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    reads_states: bool = False

    def answer(
        self, texts: Sequence[str], seconds: Sequence[str] | None, *, first_position: int
    ) -> NDArray[np.float64]:
        """Return the probability of each class for each text, (n, C); as the service reads codewords."""
        if self.code.pairs and seconds is not None:
            joined = [join_pair(*pair) for pair in zip(texts, seconds, strict=True)]
            states = self._compute_states(joined, first_position=first_position)
        else:
            states = self._compute_states(texts, first_position=first_position)
            if seconds is not None:
                states = compare_states(states, self._compute_states(seconds, first_position=first_position))
        logits = states @ self.weight.T + self.bias
        odds: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def _compute_states(self, texts: Sequence[str], *, first_position: int) -> NDArray[np.float64]:
        if self.code.pairs:
            return encode_codes(self.encoder, texts, bundle=self.code, first_position=first_position)
        states = self.encoder.encode(texts, first_position=first_position)
        if self.reads_states:  # one that is not finite says nothing, as its code would
            return np.nan_to_num(states.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        return read_clear_codes(states, self.code)


def load_code_model(
    files: Mapping[str, bytes], *, code: CodeBundle, encoder: str | Path | Encoder | None = None
) -> CodeModel:
    """Return the tuned model in an adapter's files, for codes.

    Args:
        files: The files of the adapter, by name.
        code: The code bundle that it was tuned on.
        encoder: Encoder, or its name or folder; None goes by the name in the bundle.

    Raises:
        WireError: The adapter is damaged, or does not fit the codebook.
        VocabularyError: The bundle is another, or the encoder is not on this machine or is another.
        UsageError: The model writes text.
    """
    card = read_home_card(files)
    if card.mechanism.center is not None and card.vocabulary_hash == code.hash:
        code = apply_center(code, card.mechanism.center)
    elif card.vocabulary_hash != code.hash:
        raise VocabularyError("the codebook must be the one that the model was tuned on, got another; fetch it again")
    if card.reader is not None:
        raise UsageError("a model that was tuned behind a reader must be asked with the folder of its reader")
    own = _read_own_encoder(code, encoder) if encoder is None or isinstance(encoder, str | Path) else encoder
    try:
        tensors = load_arrays(files[WEIGHTS])
        weight, bias = (np.asarray(tensors[name], dtype=np.float64) for name in _HEAD)
        shares = None if _SHARES not in tensors else np.asarray(tensors[_SHARES], dtype=np.float64)
        taught = [np.asarray(tensors[name], dtype=np.float64) for name in _TAUGHT if name in tensors]
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise WireError("an adapter's weights must be a whole safetensors file with a head; fetch it again") from None
    width, classes = code.width, len(card.labels)
    if taught:
        if [one.shape for one in taught] != [(classes, len(code.center)), (classes,)] or not all(
            np.isfinite(one).all() for one in taught
        ):
            raise WireError(
                f"an adapter's taught head must be of shape ({classes}, {len(code.center)}), finite; fetch it again"
            )
        weight, bias = taught
        return CodeModel(card=card, code=code, encoder=own, weight=weight, bias=bias, reads_states=True)
    wide = 3 * width if card.pairs else width
    if weight.shape != (classes, wide) or bias.shape != (classes,) or not np.isfinite(weight).all():
        raise WireError(f"an adapter's head must be of shape ({classes}, {wide}), finite; fetch it again")
    if shares is not None and not card.pairs:
        if shares.shape != (classes,) or not ((shares > 0) & (shares <= 1)).all():
            raise WireError(
                f"an adapter's label shares must be {classes} numbers above 0 and at most 1; fetch it again"
            )
        mechanism = remake_subset(card.mechanism, bundle=code)
        if code.pairs:  # which lie on half of a circle, and not anywhere
            kept, offset = fit_attenuation(mechanism, place_on_arc(np.linspace(-1, 1, _DRAWS)))
            bias = bias + weight @ offset
        else:
            kept = estimate_attenuation(code, card.mechanism)
        weight, bias = sharpen_head(weight, bias, shares=shares, attenuation=kept)
    return CodeModel(card=card, code=code, encoder=own, weight=weight, bias=bias)


@dataclass(frozen=True, eq=False, kw_only=True)
class ReaderModel:
    """An adapter on a backbone that reads codes, and what makes codes of texts. It needs torch.

    Attributes:
        adapter: Tuned tensors and their task head.
        backbone: Backbone behind its reader.
        code: Code of the reader, with the centre of the adapter's training where that has one.
        encoder: The public encoder of texts.
    """

    adapter: Adapter
    backbone: Backbone
    code: CodeBundle
    encoder: TextEncoder

    @property
    def card(self) -> AdapterCard:
        """Card of the adapter."""
        return self.adapter.card

    def answer(
        self, texts: Sequence[str], seconds: Sequence[str] | None, *, first_position: int
    ) -> NDArray[np.float64]:
        """Return the probability of each class for each text, (n, C); the reader reads the clear code itself."""
        import torch

        from rapt.service.answers.prediction import ClassificationRow, classify

        code, reader = self.code, self.backbone.reader
        assert reader is not None
        given = [*texts, *(seconds or ())]
        codes = project_states(self.encoder.encode(given, first_position=first_position), code)
        # The codes of these texts in the place of the codebook: each run in columns of its own, and of length 1.
        places = np.arange(code.codes)
        points = np.zeros((code.codes, len(given), code.codes, codes.shape[1] // code.codes))
        points[places, :, places] = split_into_units(codes, codes_of_a_text=code.codes).swapaxes(0, 1)
        flat = torch.from_numpy(points.reshape(-1, codes.shape[1]).astype(np.float32)).to(reader.points.device)
        rows = [
            ClassificationRow(
                adapter=self.adapter,
                token_ids=(place,) * code.codes,
                second_token_ids=None if seconds is None else (len(texts) + place,) * code.codes,
            )
            for place in range(len(texts))
        ]
        return np.array(classify(replace(self.backbone, reader=replace(reader, points=flat)), rows))


def load_reader_model(
    files: Mapping[str, bytes], *, reader: str | None, encoder: str | Path | None = None
) -> ReaderModel:
    """Return the tuned model in an adapter's files, for codes that a backbone reads.

    Args:
        files: The files of the adapter, by name.
        reader: Folder of the reader; its backbone goes by its name.
        encoder: Name or folder of the code's encoder; None goes by the name in its bundle.

    Raises:
        WireError: The adapter is damaged, or does not fit the backbone.
        VocabularyError: The reader, its backbone or the encoder is not on this machine, or is another.
        UsageError: The model writes text, or no reader is named.
        ImportError: The extra `service` is not installed.
    """
    from rapt.service.adapter.adapter import adapter_from_files
    from rapt.service.backbone.opening import load_served

    card = read_home_card(files)
    if reader is None:
        raise UsageError("a model that was tuned behind a reader needs the reader's folder; name it with `backbone`")
    backbone = load_served(reader, name=card.model, precision="auto")
    adapter = adapter_from_files(files, backbone=backbone)
    code, center = backbone.code, card.mechanism.center
    assert code is not None, "an adapter that names a reader is refused on a backbone without one"
    return ReaderModel(
        adapter=adapter,
        backbone=backbone,
        code=code if center is None else apply_center(code, center),
        encoder=_read_own_encoder(code, encoder),
    )


def _read_own_encoder(code: CodeBundle, encoder: str | Path | None) -> TextEncoder:
    """The encoder of a code (`VocabularyError`)."""
    found = read_encoder(code.model if encoder is None else encoder)
    if found.hash != code.encoder_hash:
        raise VocabularyError(
            "the encoder must be the one that the codebook was made for, got another; give its folder with `backbone`"
        )
    return found


def fit_attenuation(mechanism: SubsetMechanism, points: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return c and o of the nearest E[y | u] = c u + o for codewords y, over codes u on a part of a sphere, (n, k)."""
    (words,) = mechanism.bundle.codewords.astype(np.float64)
    means = np.exp(mechanism.log_probabilities(points)[:, 0]) @ words
    middle, center = points.mean(axis=0), means.mean(axis=0)
    kept = float(((means - center) * (points - middle)).sum() / ((points - middle) ** 2).sum())
    return kept, center - kept * middle


def compare_states(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the service's head reads of a pair, (n, k) twice -> (n, 3k): `compare_texts` of two codes."""
    both = (first + second) / 2
    size = np.linalg.norm(both, axis=1, keepdims=True)
    u, v = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), _LEAST_LENGTH) for part in (first, second))
    return np.concatenate([both, size * np.abs(u - v), size * both.shape[1] ** 0.5 * u * v], axis=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenModel:
    """An adapter on its backbone, in the memory of this process. It needs torch.

    Attributes:
        adapter: Tuned tensors and their task head.
        backbone: Backbone that the adapter was tuned on.
        privatizer: Makes tokens of texts, and privatizes plain tokens as those of the training file were.
    """

    adapter: Adapter
    backbone: Backbone
    privatizer: Privatizer

    @property
    def card(self) -> AdapterCard:
        """Card of the adapter."""
        return self.adapter.card

    def answer(
        self, texts: Sequence[str], seconds: Sequence[str] | None, *, first_position: int
    ) -> NDArray[np.float64]:
        """Return the probability of each class for each text, (n, C).

        Raises:
            CorpusError: A text has no token, or more than the backbone takes.
            UsageError: A pair is too long.
        """
        from rapt.service.answers.prediction import ClassificationRow, classify

        contents = self.privatizer.contents(texts, first_position=first_position)
        other = None if seconds is None else self.privatizer.contents(seconds, first_position=first_position)
        rows = [
            ClassificationRow(
                adapter=self.adapter,
                token_ids=tuple(content),
                privatized_plain_tokens=self._draw_plain_tokens(),
                second_token_ids=None if other is None else tuple(other[place]),
            )
            for place, content in enumerate(contents)
        ]
        return np.array(classify(self.backbone, rows))

    def _draw_plain_tokens(self) -> tuple[int, ...]:
        plan = self.privatizer.plain_tokens
        if plan.count == 0:
            return ()
        stream = secure_stream()
        words = stream.generator.choice(np.array(plan.pool, dtype=np.int64), size=plan.count)
        return tuple(self.privatizer.mechanism.privatize(words, rng=stream.generator).tolist())


def load_token_model(
    files: Mapping[str, bytes], *, backbone: str | None = None, truncate_to: int | None = None
) -> TokenModel:
    """Return the tuned model in an adapter's files, for tokens, with its backbone loaded here.

    Args:
        files: The files of the adapter, by name.
        backbone: Name or folder of the backbone; None goes by the name in the card.
        truncate_to: Content tokens to keep of a longer text; None refuses texts that are too long.

    Raises:
        WireError: The adapter is damaged, or does not fit the backbone.
        VocabularyError: The backbone is not on this machine, or is another.
        UsageError: The model writes text.
        ImportError: The extra `service` is not installed.
        MechanismError: Plain tokens cannot be privatized as those of the training file were.
    """
    from rapt.service.adapter.adapter import adapter_from_files
    from rapt.service.backbone.opening import load_served

    card = read_home_card(files)
    name = card.model if backbone is None else backbone
    loaded = load_served(name, name=card.model, precision="auto")
    adapter = adapter_from_files(files, backbone=loaded)
    vocabulary = replace(load_vocabulary(name), bundle=loaded.bundle)
    plain = NO_PLAIN_TOKENS
    if card.plain_tokens:
        # A card does not say the pool: whoever tuned with another gets words as common as these.
        plain = plan_plain_tokens(
            vocabulary, count=card.plain_tokens, pool_size=USUAL_POOL, drawn="record", rng=secure_stream().generator
        )
    mechanism = remake_mechanism(card.mechanism, vocabulary=vocabulary, allow_unproved=True)
    privatizer = Privatizer(vocabulary=vocabulary, mechanism=mechanism, plain_tokens=plain, truncate_to=truncate_to)
    return TokenModel(adapter=adapter, backbone=loaded, privatizer=privatizer)


def fetch_home_model(
    client: ServiceClient, model: str, *, backbone: str | None = None, truncate_to: int | None = None
) -> HomeModel:
    """Return a tuned model of a service, ready to answer here: its adapter and codebook are fetched, no text is sent.

    Args:
        client: Connection to the service.
        model: Name of the tuned model.
        backbone: Name or folder of its encoder, backbone or reader on this machine; None goes by their names.
        truncate_to: Content tokens to keep of a longer text, of a model on tokens.

    Raises:
        ServiceError: The service refused, or could not be reached.
        Others: The reasons of `load_code_model`, `load_reader_model` and `load_token_model`.
    """
    if client.model(model).card is None:
        raise UsageError(f"the model must be a tuned one, got {model[:100]!r}; see `rapt tune`")
    files = client.adapter(model)
    card = read_home_card(files)
    if not is_of_codes(card):
        return load_token_model(files, backbone=backbone, truncate_to=truncate_to)
    if truncate_to is not None:
        raise UsageError("`truncate_to` must come with a model on tokens, got one on codes; leave it out")
    if card.reader is not None:
        return load_reader_model(files, reader=backbone)
    with TemporaryDirectory() as folder:
        code = client.codebook(model, Path(folder) / "code")
    return load_code_model(files, code=code, encoder=backbone)
