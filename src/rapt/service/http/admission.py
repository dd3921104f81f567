"""Checks of incoming files and queries: a guard against mistakes, not against a client that lies.

Privatized ids look like any ids, so nothing here can tell whether a text was privatized. What can be seen is checked: a
manifest of a known schema and mechanism with eta > 0, made for a vocabulary that is served here, whose counts, digest
and lengths fit, over ids that a mechanism can put out. That stops the plain CSV, the file for another model and the
half-uploaded file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError, UsageError, VocabularyError, name_record
from rapt.service.backbone.layout import sequence_length
from rapt.service.http.shares import give_way
from rapt.service.storage.file_rows import FileSummary
from rapt.wire.adapter_files import AdapterCard
from rapt.wire.code_bundle import CodeBundle, apply_center
from rapt.wire.manifest import Manifest
from rapt.wire.mechanism_setting import KNOWN_MECHANISMS, MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, iterate_privatized_lines, read_bounded_lines
from rapt.wire.vocabulary_bundle import VocabularyBundle, shorten_hash

# Records of a file after which others are let go on: a millisecond or two.
RECORDS_AT_ONCE: Final = 32
_MOST_CENTERED: Final = 256  # centred codes whose hashes are remembered


class Gate:
    """The vocabularies served here, ready to check ids against."""

    def __init__(self, bundles: Iterable[VocabularyBundle], *, codes: Iterable[CodeBundle] = ()) -> None:
        """Index the bundles by hash; two models may share one vocabulary.

        Args:
            bundles: Vocabularies, those that stand for a codebook among them.
            codes: Codebooks of the models that take codes.
        """
        self._codes = {code.hash: code for code in codes}
        self._bundles = {bundle.hash: bundle for bundle in bundles}
        self._centered: dict[tuple[str, str], str] = {}  # hashes of centred codes, by the code and the centre
        self._eligible = {hash_: _mask(bundle) for hash_, bundle in self._bundles.items()}

    def admit_file(self, path: Path) -> FileSummary:
        """Check a file and sum up what is in it, read once, in constant memory.

        Raises:
            WireError: The file is no privatized file, or damaged.
            MechanismError: The eta or the mechanism is not acceptable.
            VocabularyError: The file is for a vocabulary that is not served here, or holds ids that are not in it.
            UsageError: The file is empty, or a record is too long.
        """
        with path.open("rb") as stream:
            items = iterate_privatized_lines(read_bounded_lines(stream))
            manifest = next(items)
            assert isinstance(manifest, Manifest)
            self.check_manifest(manifest)
            longest = 0
            for position, record in enumerate(items):
                assert isinstance(record, PrivatizedRecord)
                self.check_record(record, manifest, position=position)
                longest = max(longest, len(record.token_ids) + len(record.second_token_ids or ()))
        return FileSummary(manifest=manifest, longest=longest)

    def admit_query(self, query: PrivatizedFile, *, card: AdapterCard) -> None:
        """Check a query as a file is checked, and against what the tuned model was trained on.

        Raises:
            UsageError: The query was privatized otherwise than the training text.
            WireError, MechanismError, VocabularyError: The query is refused for a reason that `admit_file` names.
        """
        query = replace(query, manifest=self.name_served(query.manifest, card=card))
        self.check_manifest(query.manifest)
        check_tuned(query.manifest, card=card)
        self.check_records(query)

    def find_code(self, vocabulary_hash: str) -> CodeBundle:
        """The codebook that is served under a hash. Raises `VocabularyError`."""
        if (code := self._codes.get(vocabulary_hash)) is None:
            raise VocabularyError("the code must be one that is served here; ask its provider to serve it again")
        return code

    def name_centered(self, manifest: Manifest) -> Manifest:
        """The manifest of a code with a second centre, as whoever privatizes with the centred code writes it.

        Inside the service it names the code that is served, and the centre beside it; outside the hash of both.
        """
        parameters = dict(manifest.mechanism.parameters)
        center = str(parameters.pop("center"))
        known = (manifest.vocabulary_hash, center)
        named = self._centered.get(known)  # once: other threads forget all when there are too many
        if named is None:
            named = apply_center(self.find_code(known[0]), center).hash
            if len(self._centered) >= _MOST_CENTERED:
                self._centered.clear()
            self._centered[known] = named
        return replace(manifest, vocabulary_hash=named, mechanism=replace(manifest.mechanism, parameters=parameters))

    def name_served(self, manifest: Manifest, *, card: AdapterCard) -> Manifest:
        """The manifest over the code that is served, if it is of that code with a model's second centre; else as it is.

        The reverse of `name_centered`, for who asks a model that was tuned on codes from that centre.
        """
        center = card.mechanism.center
        if center is None or manifest.vocabulary_hash == card.vocabulary_hash:
            return manifest
        stated = replace(manifest.mechanism, parameters={**manifest.mechanism.parameters, "center": center})
        own = replace(manifest, vocabulary_hash=card.vocabulary_hash, mechanism=stated)
        return own if self.name_centered(own).vocabulary_hash == manifest.vocabulary_hash else manifest

    def serves(self, vocabulary_hash: str) -> bool:
        """Whether a vocabulary or a code is served here as it is, without a second centre."""
        return vocabulary_hash in self._bundles

    def check_can_be_centered(self, manifest: Manifest) -> None:
        """Refuse two rounds for what has no centre: tokens, pairs, and codes that have a second one (`UsageError`)."""
        code = self._codes.get(manifest.vocabulary_hash)
        if code is None or code.pairs or code.offset is not None or manifest.pairs or manifest.mechanism.center:
            raise UsageError(
                "a pool of two rounds must be of a code of single texts that has no second centre yet; open a pool of "
                "one round"
            )

    def check_records(self, query: PrivatizedFile) -> None:
        """Check the records of a checked manifest, whatever model is asked. Raises as `admit_file`."""
        for position, record in enumerate(query.records):
            self.check_record(record, query.manifest, position=position)

    def check_manifest(self, manifest: Manifest) -> None:
        """Check a file's first line. Raises as `admit_file`."""
        self.check_setting(manifest)
        if manifest.records == 0:
            raise UsageError("a privatized file must have at least one record, got records=0; add some")

    def check_setting(self, manifest: Manifest) -> None:
        """Check how texts were privatized, whatever is counted of them. Raises as `admit_file`."""
        check_mechanism(manifest.mechanism)
        bundle = self._bundles.get(manifest.vocabulary_hash)
        if bundle is None:
            served = ", ".join(f"{item.model} {shorten_hash(item.hash)}" for item in self._bundles.values())
            raise VocabularyError(
                f"a file must be privatized with a vocabulary that is served here ({served}), got another; "
                "fetch the vocabulary from this service and privatize again"
            )
        self._check_unit(manifest)
        pool = manifest.plain_tokens.pool
        if not self._are_all_eligible(pool, manifest.vocabulary_hash):
            raise VocabularyError("the plain tokens must be eligible ids of the vocabulary; privatize again")

    def _check_unit(self, manifest: Manifest) -> None:
        """Refuse tokens for a codebook, codes for a vocabulary of tokens, and codes of another number or size."""
        code = self._codes.get(manifest.vocabulary_hash)
        if (code is not None) != (manifest.unit == "text"):
            wanted = "whole texts, with `epsilon`" if code is not None else "tokens, with `eta`"
            raise MechanismError(f"a file for this model must be privatized as {wanted}; privatize again for the model")
        if code is None:
            return
        stated = manifest.mechanism.parameters
        if manifest.mechanism.center is not None:
            self.name_centered(manifest)  # one that is none is refused
        if (stated.get("codes"), stated.get("codewords")) != (code.codes, code.size):
            raise MechanismError(
                f"codes must be released over the codebook that is served here, codes={code.codes} and "
                f"codewords={code.size}, got another size; privatize again with this codebook"
            )

    def check_record(self, record: PrivatizedRecord, manifest: Manifest, *, position: int) -> None:
        """Check the ids and the length of one record of a checked manifest. Raises as `admit_file`."""
        if position % RECORDS_AT_ONCE == RECORDS_AT_ONCE - 1:
            give_way()
        bundle = self._bundles[manifest.vocabulary_hash]
        second, target = record.second_token_ids, record.target_ids
        if () in (record.token_ids, second, target):
            raise UsageError(f"{name_record(position)} must have at least one token in each of its texts; leave it out")
        needed = sequence_length(
            prompt_length=0,
            plain_tokens=len(record.privatized_plain_tokens),
            text_tokens=len(record.token_ids) + len(second or ()),
            special_tokens=bundle.special_tokens,
        )
        if needed > bundle.max_tokens:
            raise UsageError(
                f"{name_record(position)} must fit into {bundle.max_tokens} positions, got {needed} with plain and "
                "special tokens; privatize with a lower `truncate_to`"
            )
        privatized = (*record.token_ids, *(second or ()), *record.privatized_plain_tokens)
        if manifest.targets == "privatized":
            privatized = (*privatized, *(target or ()))
        elif target is not None and max(target) >= len(bundle.embeddings):
            raise VocabularyError(
                f"{name_record(position)} must have a public target of this vocabulary, got an id beyond its "
                f"{len(bundle.embeddings)} tokens; tokenize it with the vocabulary of the file"
            )
        if not self._are_all_eligible(privatized, bundle.hash):
            raise VocabularyError(
                f"{name_record(position)} must have ids that a mechanism can put out, got others; "
                "it was not privatized with this vocabulary"
            )

    def _are_all_eligible(self, ids: tuple[int, ...], vocabulary_hash: str) -> bool:
        mask = self._eligible[vocabulary_hash]
        # max() first: an id beyond 64 bits would not fit into the array.
        return not ids or (max(ids) < len(mask) and bool(mask[np.asarray(ids)].all()))


def check_tuned(manifest: Manifest, *, card: AdapterCard) -> None:
    """Check a query's manifest against what the tuned model was trained on.

    Raises:
        VocabularyError: It was not privatized with the model's vocabulary.
        UsageError: The query was privatized otherwise than the training text.
    """
    check_vocabulary(manifest, expected=card.vocabulary_hash)
    if not _asks_alike(manifest.mechanism, card.mechanism):
        raise UsageError(
            f"a query must be privatized as the training text was, with {card.mechanism.name} at "
            f"{card.mechanism.describe_strength()}, got another setting; privatize it again with all parameters of the "
            "model"
        )
    pairs = card.pairs
    if manifest.pairs != pairs:
        raise UsageError(
            f"a query must have {'two texts' if pairs else 'one text'} a record, as the training text had, "
            f"got {'one' if pairs else 'two'}; privatize it again {'with' if pairs else 'without'} `second_column`"
        )
    # A model tuned without reconstruction has never seen plain tokens and leaves those of a query out.
    if card.plain_tokens and manifest.plain_tokens.count != card.plain_tokens:
        raise UsageError(
            f"a query must have the model's number of plain tokens {card.plain_tokens}, "
            f"got plain_tokens={manifest.plain_tokens.count}; privatize it again with that many"
        )


def _asks_alike(query: MechanismSetting, training: MechanismSetting) -> bool:
    """Whether a query may be asked of a model: privatized in the same way, of codes at any ε over the same codebook.

    The head over codes was tuned on codewords whatever their ε, and who asks may want to spend more or less.
    """
    if query.unit != "text" or training.unit != "text":
        return query == training
    free = ("epsilon", "preferred")
    fixed = [{key: value for key, value in one.parameters.items() if key not in free} for one in (query, training)]
    return query.name == training.name and fixed[0] == fixed[1]


def check_vocabulary(manifest: Manifest, *, expected: str) -> None:
    """Check that a query was privatized with its model's vocabulary (`VocabularyError`)."""
    if manifest.vocabulary_hash != expected:
        raise VocabularyError(
            f"a query must be privatized with the model's vocabulary or code {shorten_hash(expected)}, got another; "
            "fetch that of the model and privatize again"
        )


def check_mechanism(setting: MechanismSetting) -> None:
    """Refuse a mechanism, or a parameter of one, that nobody here could name a guarantee for (`MechanismError`)."""
    known = KNOWN_MECHANISMS.get(setting.name)
    if known is None:
        raise MechanismError(
            f"the mechanism must be one that this service knows, {', '.join(sorted(KNOWN_MECHANISMS))}; "
            "privatize again with one of them"
        )
    if not known.parameters.issuperset(setting.parameters):
        raise MechanismError(
            f"the mechanism {setting.name} must have no parameters but {', '.join(sorted(known.parameters))}; "
            "privatize again with this version of rapt"
        )


def _mask(bundle: VocabularyBundle) -> NDArray[np.bool_]:
    mask = np.zeros(len(bundle.embeddings), dtype=bool)
    mask[bundle.eligible] = True
    return mask
