"""The files that a seed's models meet: the training text privatized once, the evaluation text several times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from rapt.compare.plan import ComparisonPlan
from rapt.compare.texts import LabelledTexts
from rapt.errors import CorpusError
from rapt.local.mechanisms import Mechanism, make_mechanism
from rapt.local.policy.policy import Policy, PolicyText
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.privatizer import Privatizer, TextPrivatizer, plan_plain_tokens
from rapt.local.randomness import insecure_stream
from rapt.local.records import Chunk, ChunkSetting, Part, privatize_records
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, PlainTokens, Randomness
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, count_privatized_tokens

# Seeds of different things are kept apart by steps that no number of seeds or privatizations reaches.
_TRAINING, _EVALUATION, _PER_SEED = 1_000_000, 2_000_000, 1_000
_SENTENCES = 3


@dataclass(frozen=True, eq=False)
class FileMaker:
    """Makes the files of a plan, in memory. Its noise comes from seeds, which is right here and nowhere else.

    Attributes:
        plan: Plan of the comparison.
        vocabulary: Vocabulary of its model.
        public: Texts for plain tokens that are sentences.
    """

    plan: ComparisonPlan
    vocabulary: Vocabulary
    public: tuple[str, ...] = ()

    def training(self, texts: LabelledTexts, *, eta: float | None, seed: int, policy: bool = False) -> PrivatizedFile:
        """The training file of a seed at an η, under the policy if one is asked for; in clear where η is None."""
        return self._kept(texts, eta, _TRAINING + seed, policy)

    def evaluation(
        self, texts: LabelledTexts, *, eta: float | None, seed: int, policy: bool = False
    ) -> list[PrivatizedFile]:
        """The evaluation files of a seed at an η, as `training`; a single one in clear where η is None."""
        draws = 1 if eta is None else self.plan.privatizations
        return [self._kept(texts, eta, _EVALUATION + _PER_SEED * seed + draw, policy) for draw in range(draws)]

    @cached_property
    def _kept(self) -> Callable[[LabelledTexts, float | None, int, bool], PrivatizedFile]:
        """The files of one seed at one η are kept: the next arm asks for the same ones."""
        return lru_cache(maxsize=1 + self.plan.privatizations)(
            lambda texts, eta, seed, policy: self._make_file(texts, eta=eta, seed=seed, policy=policy)
        )

    def _make_file(self, texts: LabelledTexts, *, eta: float | None, seed: int, policy: bool) -> PrivatizedFile:
        if eta is None:
            return self._make_clear_file(texts)
        stream = insecure_stream(seed)
        privatizer = self._make_privatizer(eta, self._draw_plain_tokens(stream.generator), policy=policy)
        seconds: dict[Part, list[str]] = {"second": list(texts.seconds)} if texts.pairs else {}
        manifest = privatizer.manifest(labels=texts.names, randomness=stream.provenance, pairs=texts.pairs)
        chunk = Chunk(0, list(texts.texts), list(texts.labels), seconds)
        records = privatize_records(chunk, ChunkSetting(privatizer, None, manifest), stream=stream)
        return PrivatizedFile(manifest=count_file(manifest, records), records=tuple(records))

    @cached_property
    def _policy(self) -> Policy:
        assert self.plan.policy is not None
        return Policy.read(self.plan.policy)

    @cached_property
    def _rewritten(self) -> dict[str, PolicyText]:
        """Rewritten texts, which every file of the plan shares."""
        return {}

    def unchanged_only(self, texts: LabelledTexts, file: PrivatizedFile) -> PrivatizedFile:
        """The file without the tokens that were changed. A text of which nothing is left keeps its first token."""
        records = []
        for (first, *others), record in zip(self.tokenize(texts), file.records, strict=True):
            told = replace(record, token_ids=_list_kept(record.token_ids, first))
            for second in others:
                told = replace(told, second_token_ids=_list_kept(record.second_token_ids or (), second))
            records.append(told)
        return PrivatizedFile(manifest=count_file(file.manifest, records), records=tuple(records))

    def put_sentences(self, file: PrivatizedFile, *, eta: float, seed: tuple[int, int]) -> PrivatizedFile:
        """The file with pieces of public sentences in the place of its plain tokens; its texts stay as they are."""
        rng = np.random.default_rng([_SENTENCES, *seed])
        plain = self.sentences[rng.integers(len(self.sentences), size=len(file.records))]
        privatized: NDArray[np.int64] = self.mechanism(eta).privatize(plain.ravel(), rng=rng).reshape(plain.shape)
        records = [
            replace(record, plain_tokens=tuple(k), privatized_plain_tokens=tuple(noisy))
            for record, k, noisy in zip(file.records, plain.tolist(), privatized.tolist(), strict=True)
        ]
        pool = PlainTokens(count=plain.shape[1], pool=tuple(np.unique(self.sentences).tolist()), fixed=None)
        return PrivatizedFile(manifest=replace(file.manifest, plain_tokens=pool), records=tuple(records))

    @cached_property
    def sentences(self) -> NDArray[np.int64]:
        """The first m tokens of every public text that has so many, (texts, m)."""
        m = self.plan.plain_tokens
        found = [ids[:m] for ids in self.vocabulary.encode(list(self.public)) if len(ids) >= m]
        return np.array(found, dtype=np.int64).reshape(-1, m)

    def check_sentences(self) -> None:
        """Refuse arms on sentences without sentences.

        Raises:
            CorpusError: No public text has m tokens.
        """
        if not len(self.sentences):
            raise CorpusError(
                f"arms on sentences need public texts of plain_tokens={self.plan.plain_tokens} tokens, got 0; "
                "give `public`"
            )

    def tokenize(self, texts: LabelledTexts) -> list[list[list[int]]]:
        """The tokens in clear of each record's one or two texts."""
        return [list(record) for record in zip(*(self.vocabulary.encode(part) for part in texts.parts), strict=True)]

    def list_contents(self, texts: Sequence[str], *, eta: float, policy: bool) -> list[list[int]]:
        """The tokens of texts that are privatized: those that the policy leaves where one is asked for."""
        return self._make_privatizer(eta, NO_PLAIN_TOKENS, policy=policy).contents(texts)

    def _make_privatizer(self, eta: float, plain: PlainTokens, *, policy: bool) -> TextPrivatizer:
        inner = Privatizer(self.vocabulary, self.mechanism(eta), plain)
        return PolicyPrivatizer(inner, self._policy, self._rewritten) if policy else inner

    def mechanism(self, eta: float) -> Mechanism:
        """The plan's mechanism at an η."""
        return make_mechanism(
            self.plan.mechanism,
            vocabulary=self.vocabulary,
            eta=eta,
            options=dict(self.plan.options),
            allow_unproved=self.plan.allow_unproved,
        )

    def _draw_plain_tokens(self, rng: np.random.Generator) -> PlainTokens:
        if self.plan.plain_tokens == 0:
            return NO_PLAIN_TOKENS
        return plan_plain_tokens(
            self.vocabulary,
            count=self.plan.plain_tokens,
            pool_size=self.plan.plain_pool,
            drawn=self.plan.plain_drawn,
            rng=rng,
        )

    def _make_clear_file(self, texts: LabelledTexts) -> PrivatizedFile:
        records = [
            PrivatizedRecord(token_ids=tuple(first), label=label, second_token_ids=tuple(others[0]) if others else None)
            for (first, *others), label in zip(self.tokenize(texts), texts.labels, strict=True)
        ]
        # Infinite: a setting that no wire format can write, so this file cannot leave the process.
        manifest = Manifest(
            model=self.vocabulary.model,
            vocabulary_hash=self.vocabulary.hash,
            mechanism=MechanismSetting(name="none", parameters={"eta": math.inf}),
            randomness=Randomness(source="none: in clear, in memory only"),
            plain_tokens=NO_PLAIN_TOKENS,
            labels=texts.names,
            pairs=texts.pairs,
            records=0,
            tokens=0,
            records_sha256="",
            created_by="rapt compare",
        )
        return PrivatizedFile(manifest=count_file(manifest, records), records=tuple(records))


def _list_kept(privatized: tuple[int, ...], clear: Sequence[int]) -> tuple[int, ...]:
    return tuple(a for a, b in zip(privatized, clear, strict=True) if a == b) or privatized[:1]


def count_file(manifest: Manifest, records: Sequence[PrivatizedRecord]) -> Manifest:
    """The manifest with the numbers of a file that stays in memory."""
    tokens = sum(count_privatized_tokens(record, manifest) for record in records)
    return replace(manifest, records=len(records), tokens=tokens)
