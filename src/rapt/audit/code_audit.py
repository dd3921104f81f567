"""The audit of whole texts as codes: what an attacker learns from one codeword a text, beside the bound on it.

The channel has two probabilities, so the best attack on a text's identity is known and not approximated: see `codes`.
Everything else that an attacker may want, words, length, an attribute, an author, a member of a crowd, is bounded as
well; attackers that learn from other texts show how much of it there is. What cannot run is listed with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rapt.audit.audit import Skipped
from rapt.audit.codes.authors import Linking
from rapt.audit.codes.desk import CodeDesk, Originals
from rapt.audit.codes.naming import (
    CANDIDATES,
    CodewordFit,
    Naming,
    breaks_bound,
    choose_texts,
    compare_with_channel,
    measure_bits,
    name_repeated,
    name_texts,
)
from rapt.audit.codes.readers import WORDS_OF_A_TEXT, Reading
from rapt.audit.intervals import Share
from rapt.audit.language.decoders import NONE, choose_decoder
from rapt.errors import AuditError, name_record
from rapt.local.codes.code_privatizer import Encoder, check_encoder, encode_codes
from rapt.local.codes.subset import remake_subset
from rapt.narration import SILENT, Narrator
from rapt.wire.code_bundle import CodeBundle
from rapt.wire.privatized_file import PrivatizedFile

if TYPE_CHECKING:
    from rapt.audit.codes.models import Canary, Membership

_LEAST_RECORDS: Final = 20


@dataclass(frozen=True, kw_only=True)
class CodeAudit:
    """Findings of the audit of a file of codes.

    Attributes:
        epsilon: ε of a whole text.
        records: Number of texts.
        learned_from: Texts that readers of words and length learned from, in words.
        bits: Bits that a code says about which of the texts it is of, all as likely.
        naming: The best attack, for growing numbers of candidates.
        repeated: The same attack on several releases of one text.
        readings: Readers of words, length and attributes.
        authors: Linkage of an author over several codes.
        membership: Attack on which text of a pair a head was tuned on; None where it was not run.
        canaries: Attacks on whether a head was tuned on a certain text.
        skipped: Attacks that were not run, with the reason.
        fit: Comparison of the file with what its mechanism draws.
    """

    epsilon: float
    records: int
    learned_from: str
    bits: float
    naming: tuple[Naming, ...]
    repeated: tuple[Naming, ...]
    readings: tuple[Reading, ...]
    authors: tuple[Linking, ...]
    membership: Membership | None
    canaries: tuple[Canary, ...]
    skipped: tuple[Skipped, ...]
    fit: CodewordFit

    @property
    def strongest_reader(self) -> Reading:
        """The reader that names most tokens of a text."""
        return max((item for item in self.readings if item.what == WORDS_OF_A_TEXT), key=lambda item: item.first.value)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for a user, in sentences."""
        found = [
            f"{what} more often than epsilon={self.epsilon:g} allows"
            for what, share, bound in self._list_bounded()
            if breaks_bound(share, bound=bound)
        ]
        if not self.fit.sound:
            found.append("the codewords are not those of the stated mechanism: do not use this program")
        if self.fit.spent > self.epsilon:
            found.append(f"more was spent than epsilon={self.epsilon:g}")
        return tuple(found)

    def _list_bounded(self) -> Iterator[tuple[str, Share, float]]:
        """Yield every share of independent trials with its bound."""
        for item in (*self.naming, *self.repeated):
            released = "" if item.releases == 1 else f" from {item.releases} releases"
            yield f"texts are named among {item.candidates:,}{released}", item.first, item.bound
        for reading in self.readings:
            yield f"the {reading.reader} reader knows {reading.what}", reading.first, reading.bound
        for linking in self.authors:
            yield f"authors are linked over {linking.codes} codes", linking.first, linking.bound
        for canary in self.canaries:
            yield f"a text of {canary.copies} codes is found in a tuned head", canary.first, canary.bound


def audit_codes(
    file: PrivatizedFile,
    originals: Originals,
    *,
    bundle: CodeBundle,
    encoder: Encoder,
    language_model: str | None = None,
    quick: bool = False,
    seed: int = 0,
    narrator: Narrator = SILENT,
) -> CodeAudit:
    """Attack a file of codes.

    Args:
        file: Codes of single texts, or of pairs, whose texts are then joined (`join_pair`).
        originals: The texts that it was made from, and what an attacker holds.
        bundle: Code bundle that the file names.
        encoder: Encoder of that bundle.
        language_model: Decoder that reads words from codes, as `choose_decoder` takes it, `auto` too; None leaves it
            out.
        quick: Whether only what takes seconds is run: no networks and no tuned heads.
        seed: Seed of candidates, halves, networks and whatever is released here.
        narrator: Receiver of progress.

    Raises:
        AuditError: Texts and file do not belong together, or there are too few.
        VocabularyError: The encoder is another, or the language model is not on this machine.
        MechanismError: The file was made over another codebook.
        CorpusError: A text cannot be read by the encoder.
    """
    manifest = file.manifest
    if manifest.pairs:
        raise AuditError("an audit of codes takes one code a record, got two; privatize with a code of pairs")
    if manifest.vocabulary_hash != bundle.hash:
        raise AuditError("the code bundle must be the one that the file was made with, got another; give that one")
    if len(file.records) < _LEAST_RECORDS:
        raise AuditError(
            f"an audit of codes must have at least {_LEAST_RECORDS} texts, got a file of {len(file.records)}; "
            "audit a larger one"
        )
    if len(originals.texts) != len(file.records):
        raise AuditError(
            f"an audit of codes must have the {len(file.records)} texts of the file, got {len(originals.texts)}; "
            "give the corpus it was made from"
        )
    if originals.public and len(originals.public) < _LEAST_RECORDS:
        raise AuditError(
            f"public text must be {_LEAST_RECORDS} texts that are not in the file, got {len(originals.public)}; "
            "give more, or leave it out"
        )
    if len({tuple(record.token_ids) for record in file.records}) == 1:
        raise AuditError(f"{name_record(0)} and all others must not be of one code; nothing was drawn")
    check_encoder(encoder, bundle=bundle)
    if language_model == NONE:
        language_model = None
    elif language_model is not None:
        decoder = choose_decoder(language_model, tokens=sum(len(text.split()) for text in originals.texts))
        language_model = decoder.model
        narrator.say(f"words are read from codes by {decoder.described}")
    mechanism = remake_subset(manifest.mechanism, bundle=bundle)
    with narrator.meter("encoding", total=len(originals.texts) + len(originals.public), unit="texts") as show_progress:
        codes = encode_codes(encoder, originals.texts, bundle=bundle)
        show_progress(len(codes))
        public = encode_codes(encoder, originals.public, bundle=bundle) if originals.public else None
    released = np.array([record.token_ids for record in file.records], dtype=np.int64)  # (n, r)
    rng = np.random.default_rng(seed)
    labels = originals.labels or tuple(record.label for record in file.records if record.label is not None)
    desk = CodeDesk(
        mechanism, encoder, codes, released, originals, public, labels=labels, quick=quick, seed=seed, rng=rng
    )
    chosen = choose_texts(len(codes), rng=rng)
    skipped: list[Skipped] = []
    with narrator.meter("attacking", unit="attacks") as show_progress:
        naming = name_texts(mechanism, codes[chosen], released[None, chosen], rng=rng)
        repeated = name_repeated(mechanism, codes, released, rng=rng)
        show_progress(1)
        readings = [*desk.read_words(skipped), *desk.compare_lengths(), *desk.infer_columns()]
        readings += desk.write_words(language_model, skipped)
        show_progress(2)
        authors = desk.link_authors(skipped)
        membership, canaries = desk.attack_models(file, skipped)
        show_progress(3)
    return CodeAudit(
        epsilon=mechanism.epsilon,
        records=len(released),
        learned_from=f"{len(originals.public):,} public texts" if originals.public else "half of the texts, lent",
        bits=measure_bits(mechanism, codes[chosen[: CANDIDATES[-1]]]),
        naming=naming,
        repeated=repeated,
        readings=tuple(readings),
        authors=authors,
        membership=membership,
        canaries=canaries,
        skipped=tuple(skipped),
        fit=compare_with_channel(mechanism, codes, released),
    )


def code_audit_to_json(found: CodeAudit) -> dict[str, Any]:
    """The audit as plain JSON values; it holds no text."""

    def flat(item: Any) -> dict[str, Any]:
        values = asdict(item)
        first = values.pop("first")
        return values | {name: first[name] for name in ("value", "low", "high", "n")}

    lists = ("naming", "repeated", "readings", "authors", "canaries")
    return {
        "schema": "rapt.code-audit/1",
        "epsilon": found.epsilon,
        "records": found.records,
        "learned_from": found.learned_from,
        "bits": found.bits,
        **{name: [flat(item) for item in getattr(found, name)] for name in lists},
        "membership": None if found.membership is None else asdict(found.membership),
        "skipped": [asdict(item) for item in found.skipped],
        "fit": {**vars(found.fit), "sound": found.fit.sound},
        "warnings": list(found.warnings),
    }
