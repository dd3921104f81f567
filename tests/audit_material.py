"""Small audits whose answers are known: toy tables, and files privatized from tokens that a test draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rapt.audit.truth import Truth, match_truth
from rapt.audit.view import AdversaryView, PublicText, TokenPrior, adversary_view
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Randomness
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord
from toy_vocabularies import toy_vocabulary

RECORD = 10  # tokens in each record of a drawn file


def scattered_vocabulary(*, size: int = 300, dim: int = 12, seed: int = 0) -> Vocabulary:
    """Words spread like those of a real table: far from each other compared with their number."""
    return toy_vocabulary(np.random.default_rng(seed).normal(0, 0.6, (size, dim)))


def zipf_prior(size: int, *, source: str = "a public text") -> TokenPrior:
    weight = 1 / np.arange(1, size + 1)
    return TokenPrior(probabilities=weight / weight.sum(), source=source)


def markov_chain(*, words: int = 16, seed: int = 0):
    """A language in which each word follows from the one before: first shares, (V,), and steps, (V, V)."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(words, 0.5)), rng.dirichlet(np.full(words, 0.08), size=words)


def markov_texts(first, steps, *, texts: int, length: int = RECORD, seed: int = 1):
    """Texts of that language, (texts, length)."""
    rng = np.random.default_rng(seed)
    found = np.empty((texts, length), dtype=np.int64)
    found[:, 0] = rng.choice(len(first), texts, p=first)
    for t in range(1, length):
        found[:, t] = (np.cumsum(steps[found[:, t - 1]], axis=1) < rng.random((texts, 1))).sum(axis=1)
    return np.minimum(found, len(first) - 1)


def public_of(texts, *, source: str = "a public text") -> PublicText:
    return PublicText(contents=tuple(np.asarray(text) for text in texts), source=source)


def privatized_view(
    vocabulary: Vocabulary,
    tokens,
    *,
    eta: float,
    seed: int = 0,
    prior: TokenPrior | None = None,
    public: PublicText | None = None,
    mechanism: str = "laplace",
) -> tuple[AdversaryView, Truth]:
    """What a service sees of these true tokens, in records of `RECORD`, and the truth."""
    made = make_mechanism(mechanism, vocabulary=vocabulary, eta=eta, allow_unproved=True)
    released = made.privatize(np.asarray(tokens, dtype=np.int64), rng=np.random.default_rng(seed))
    return view_of(vocabulary, tokens, released, eta=eta, prior=prior, public=public, mechanism=mechanism)


def file_of(vocabulary: Vocabulary, *records) -> PrivatizedFile:
    manifest = manifest_of(vocabulary, eta=2.0, records=len(records), tokens=sum(map(len, records)))
    return PrivatizedFile(manifest=manifest, records=tuple(PrivatizedRecord(token_ids=tuple(r)) for r in records))


def view_of(
    vocabulary: Vocabulary,
    tokens,
    released,
    *,
    eta: float,
    prior: TokenPrior | None = None,
    public: PublicText | None = None,
    mechanism: str = "laplace",
) -> tuple[AdversaryView, Truth]:
    records = tuple(PrivatizedRecord(token_ids=tuple(part)) for part in _parts(released))
    file = PrivatizedFile(
        manifest=manifest_of(vocabulary, eta=eta, records=len(records), tokens=len(tokens), mechanism=mechanism),
        records=records,
    )
    view = adversary_view(file, vocabulary.bundle, prior=prior, public=public)
    return view, match_truth(view, _parts(tokens))


def several_texts_view(
    vocabulary: Vocabulary,
    records,
    *,
    parts: tuple[str, ...],
    eta: float,
    seed: int = 0,
    public_targets: bool = False,
    public: PublicText | None = None,
) -> tuple[AdversaryView, Truth]:
    """What a service sees of records of several texts, of which `parts` says what they are, and the truth."""
    made = make_mechanism("laplace", vocabulary=vocabulary, eta=eta)
    rng = np.random.default_rng(seed)
    private = [part for part in parts if not (part == "target" and public_targets)]
    flat = [token for record in records for text in record[: len(private)] for token in text]
    noisy = iter(made.privatize(np.array(flat, dtype=np.int64), rng=rng).tolist())
    fields = {"first": "token_ids", "second": "second_token_ids", "target": "target_ids"}
    sent = tuple(
        PrivatizedRecord(
            **{
                fields[part]: tuple(next(noisy) if part in private else token for token in text)
                for part, text in zip(parts, record, strict=True)
            }
        )
        for record in records
    )
    targets = ("public" if public_targets else "privatized") if "target" in parts else None
    manifest = replace(
        manifest_of(vocabulary, eta=eta, records=len(sent), tokens=len(flat)),
        pairs="second" in parts,
        targets=targets,
    )
    view = adversary_view(PrivatizedFile(manifest=manifest, records=sent), vocabulary.bundle, public=public)
    others = {part: [record[place] for record in records] for place, part in enumerate(private) if place}
    return view, match_truth(view, [record[0] for record in records], others=others)


def manifest_of(
    vocabulary: Vocabulary, *, eta: float, records: int, tokens: int, mechanism: str = "laplace"
) -> Manifest:
    made = make_mechanism(mechanism, vocabulary=vocabulary, eta=eta, allow_unproved=True)
    privatizer = Privatizer(vocabulary, made, NO_PLAIN_TOKENS)
    manifest = privatizer.manifest(labels=None, randomness=Randomness(source="a test"))
    return replace(manifest, records=records, tokens=tokens)


def _parts(tokens) -> list[list[int]]:
    values = [int(token) for token in tokens]
    return [values[start : start + RECORD] for start in range(0, len(values), RECORD)]
