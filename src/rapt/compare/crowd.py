"""The arms on whole texts as codes, and the arms at home that send nothing: what a service must beat.

A crowd is n contributors of one text each. At home, one contributor has n texts and learns from them alone; the mean
over as many such contributors as there are texts for, five at most, is what is told.
*Words*: naive Bayes over words and pairs of neighbours. *Encoder and head*: ridge regression to the labels on all
numbers of a state of the code's public encoder, in clear, its penalty chosen by leaving out one text at a time.
*Codes*: the head that the service tunes on what the crowd released at ε, asked with codes at the same ε, or at home
with the clear code, or fused there with the words of some texts of the asker's own, which are in no crowd.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from rapt.at_home import compare_states, load_code_model
from rapt.compare.files import count_file
from rapt.compare.plan import (
    ARMS,
    CODES_AT_HOME,
    CODES_PRIVATELY,
    FUSED,
    HEAD_AT_HOME,
    WORDS_AT_HOME,
    AttackCell,
    Cell,
    ComparisonPlan,
    order_texts,
)
from rapt.compare.results import LINKED, AttackRow, ModelRow
from rapt.compare.texts import LabelledTexts, Split, choose_crowd
from rapt.errors import UsageError
from rapt.home_files import join_pairs
from rapt.local.codes.code_privatizer import CodePrivatizer, Encoder, check_encoder, join_pair, read_code
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import make_subset
from rapt.local.own_model import LEAST_TEXTS, count_words, fit_fusion
from rapt.local.randomness import insecure_stream
from rapt.local.records import Chunk, ChunkSetting, Part, privatize_records
from rapt.local.vocabulary import Vocabulary
from rapt.service.adapter.adapter import Adapter, adapter_to_files
from rapt.service.adapter.methods import LINEAR_PROBING
from rapt.service.answers.prediction import classify, row_of
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuner import tune
from rapt.service.tuning.tuning_config import make_default_config
from rapt.wire.code_bundle import CodeBundle
from rapt.wire.privatized_file import PrivatizedFile

if TYPE_CHECKING:
    from rapt.audit.code_audit import CodeAudit

MOST_CONTRIBUTORS: Final = 5
# Of a ridge, in mean squared singular values.
PENALTIES: Final = 10.0 ** np.arange(-4, 4.5, 0.5)
# Seeds of different things are kept apart, and from those of `files`.
_TRAINING, _EVALUATION, _PER_SEED = 4_000_000, 5_000_000, 1_000

Floats = NDArray[np.float64]
Right = NDArray[np.int64]


class RememberedEncoder:
    """An encoder that encodes a text once: arms, seeds and settings ask for the same ones."""

    def __init__(self, encoder: Encoder) -> None:
        """Start with no release remembered."""
        self._encoder = encoder
        self._states: dict[str, NDArray[np.float32]] = {}

    @property
    def model(self) -> str:
        """Name of the encoder."""
        return self._encoder.model

    @property
    def hash(self) -> str:
        """Hash of its tokenizer and weights."""
        return self._encoder.hash

    @property
    def max_tokens(self) -> int:
        """Number of tokens after which it cuts a text."""
        return self._encoder.max_tokens

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of its tokenizer."""
        return self._encoder.vocabulary

    def encode(self, texts: Sequence[str], *, first_position: int = 0) -> NDArray[np.float32]:
        """One state for each text, (n, h)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._states]
        if new:
            self._states.update(zip(new, self._encoder.encode(new, first_position=first_position), strict=True))
        return np.stack([self._states[text] for text in texts])


@dataclass(frozen=True, eq=False)
class CrowdBench:
    """A code, its encoder and the texts, loaded once for many cells.

    Attributes:
        plan: Plan of the comparison.
        split: The texts, in clear.
        setting: Digest under which results are kept.
        code: Code of whole texts; None where no arm needs one.
        encoder: Encoder of the code.
        codebook: The code as the service tunes on it.
    """

    plan: ComparisonPlan
    split: Split
    setting: str
    code: CodeBundle | None
    encoder: RememberedEncoder | None
    codebook: Backbone | None
    _tuned: dict[Cell, Adapter] = field(default_factory=dict, repr=False)

    def train_and_judge(self, cell: Cell) -> ModelRow:
        """One line of the results."""
        start = time.perf_counter()
        right, answers = WAYS[cell.arm](self, cell, self.split.turn_of(cell.seed))
        return ModelRow(
            setting=self.setting,
            arm=cell.arm,
            eta=None,
            epsilon=cell.epsilon,
            crowd=cell.crowd,
            seed=cell.seed,
            privatizations=answers,
            right=tuple(int(count) for count in right),
            seconds=round(time.perf_counter() - start, 1),
        )

    def audit(self, *, epsilon: float | None) -> CodeAudit:
        """Audit codes of the training texts of the first seed at an ε, with their labels beside them.

        The file itself has no labels, so that no heads are tuned: what they give away is no axis of a comparison.
        """
        from rapt.audit.code_audit import audit_codes
        from rapt.audit.codes.desk import Originals

        seed = self.plan.seeds[0]
        texts = self.split.turn_of(seed).training
        code, encoder = self._need_code()
        chosen = self._join_where_one_code(texts.at(order_texts(len(texts), seed=seed)[: 2 * LINKED]))
        single = LabelledTexts(texts=chosen.texts, labels=chosen.labels, names=chosen.names)
        file = self._release(single, epsilon=epsilon, seed=_TRAINING + seed, labelled=False)
        originals = Originals(texts=single.texts, labels=single.labels)
        return audit_codes(file, originals, bundle=code, encoder=encoder, seed=seed)

    def attack(self, cell: AttackCell) -> AttackRow:
        """Measure what is read from codes of the training texts of the first seed: words, and whose code is whose."""
        found = self.audit(epsilon=cell.epsilon)
        strongest = found.strongest_reader
        beyond = strongest.beyond or (None, None, None)
        named = next(item for item in reversed(found.naming) if item.candidates <= LINKED)
        return AttackRow(
            setting=self.setting,
            eta=None,
            epsilon=cell.epsilon,
            attacks=cell.attacks,
            attack_tokens=cell.tokens,
            strongest=f"{strongest.reader} reader",
            recovered=strongest.first.value,
            low=strongest.first.low,
            high=strongest.first.high,
            tokens=strongest.first.n,
            unchanged=0.0,
            blind=strongest.blind,
            label_alone=strongest.label_alone,
            beyond=beyond[0],
            beyond_low=beyond[1],
            beyond_high=beyond[2],
            linked=named.first.value,
            linked_low=named.first.low,
            linked_high=named.first.high,
            candidates=named.candidates,
            bits=found.bits,
        )

    def find_contributors(self, cell: Cell, texts: LabelledTexts) -> list[LabelledTexts]:
        """The texts of each contributor who has as many as the cell says; of one who has all."""
        order = order_texts(len(texts), seed=cell.seed)
        size = cell.crowd or len(texts)
        count = min(MOST_CONTRIBUTORS, len(texts) // size)
        return [texts.at(order[place * size : (place + 1) * size]) for place in range(count)]

    def tune(self, cell: Cell, texts: LabelledTexts) -> Adapter:
        """The head that the service tunes on the codes of a crowd; the next arm asks for the same one."""
        key = Cell(arm="", eta=None, epsilon=cell.epsilon, crowd=cell.crowd, seed=cell.seed)
        if key not in self._tuned:
            others, _ = self._set_apart(cell, texts)
            file = self._release(others, epsilon=cell.epsilon, seed=_TRAINING + cell.seed)
            assert self.codebook is not None
            config = replace(make_default_config(LINEAR_PROBING), seed=cell.seed)
            self._tuned.clear()
            self._tuned[key] = tune(self.codebook, file, config=config)
        return self._tuned[key]

    def ask_privately(self, cell: Cell, split: Split) -> tuple[Right, int]:
        """Ask with codes at the ε of the crowd."""
        adapter = self.tune(cell, split.training)
        right = np.zeros(len(split.evaluation), dtype=np.int64)
        for draw in range(self.plan.privatizations):
            seed = _EVALUATION + _PER_SEED * cell.seed + draw
            file = self._release(split.evaluation, epsilon=cell.epsilon, seed=seed)
            assert self.codebook is not None
            odds = np.array(classify(self.codebook, [row_of(record, adapter=adapter) for record in file.records]))
            right += odds.argmax(axis=1) == np.array(split.evaluation.labels)
        return right, self.plan.privatizations

    def ask_at_home(self, cell: Cell, split: Split) -> tuple[Right, int]:
        """Ask with the clear code, where it is."""
        return _judge(self._answer_at_home(cell, split, split.evaluation), split.evaluation), 1

    def fuse(self, cell: Cell, split: Split) -> tuple[Right, int]:
        """Ask at home, and stack the words of some own texts on the answer."""
        _, own = self._set_apart(cell, split.training)
        odds = self._answer_at_home(cell, split, own)
        fusion = fit_fusion(_join(own), np.array(own.labels, dtype=np.int64), odds)
        fused = fusion.fuse(self._answer_at_home(cell, split, split.evaluation), _join(split.evaluation))
        return _judge(fused, split.evaluation), 1

    def read_words(self, cell: Cell, split: Split) -> tuple[Right, int]:
        """Learn from the words of each contributor's own texts."""
        found = []
        for own in self.find_contributors(cell, split.training):
            labels = np.array(own.labels, dtype=np.int64)
            model = count_words(_join(own), labels, classes=len(own.names))
            found.append(_judge(model.answer(_join(split.evaluation)), split.evaluation))
        return np.sum(found, axis=0), len(found)

    def read_states(self, cell: Cell, split: Split) -> tuple[Right, int]:
        """Learn a head on the states of each contributor's own texts."""
        asked, found = self._read(split.evaluation), []
        for own in self.find_contributors(cell, split.training):
            weight, bias = fit_ridge(self._read(own), np.eye(len(own.names))[list(own.labels)])
            found.append(_judge(asked @ weight + bias, split.evaluation))
        return np.sum(found, axis=0), len(found)

    def _read(self, texts: LabelledTexts) -> Floats:
        """States of texts around the public centre, or what a head compares of pairs."""
        code, encoder = self._need_code()
        center = 0.0 if code.pairs else code.center  # that of a code of pairs is a number that says how alike two are
        states = [encoder.encode(part).astype(np.float64) - center for part in texts.parts]
        return compare_states(*states) if texts.pairs else states[0]

    def _answer_at_home(self, cell: Cell, split: Split, texts: LabelledTexts) -> Floats:
        code, encoder = self._need_code()
        adapter = self.tune(cell, split.training)
        model = load_code_model(adapter_to_files(adapter), code=code, encoder=encoder)
        return model.answer(texts.texts, texts.seconds if texts.pairs else None, first_position=0)

    def _set_apart(self, cell: Cell, texts: LabelledTexts) -> tuple[LabelledTexts, LabelledTexts]:
        """The texts of the crowd, and the asker's own ones, which are in no crowd of the seed."""
        order = order_texts(len(texts), seed=cell.seed)
        rest = len(order) - _count_own(self.plan, len(order))
        others, own = order[:rest], order[rest:]
        return choose_crowd(texts, others, crowd=cell.crowd or rest), texts.at(own)

    def _release(
        self, texts: LabelledTexts, *, epsilon: float | None, seed: int, labelled: bool = True
    ) -> PrivatizedFile:
        code, encoder = self._need_code()
        assert epsilon is not None, "an arm on codes has an epsilon"
        texts = self._join_where_one_code(texts)
        privatizer = CodePrivatizer(encoder=encoder, mechanism=make_subset(code, epsilon=epsilon))
        stream = insecure_stream(seed)
        names = texts.names if labelled else None
        manifest = privatizer.manifest(labels=names, randomness=stream.provenance, pairs=texts.pairs)
        seconds: dict[Part, list[str]] = {"second": list(texts.seconds)} if texts.pairs else {}
        chunk = Chunk(0, list(texts.texts), list(texts.labels) if labelled else None, seconds)
        records = privatize_records(chunk, ChunkSetting(privatizer, None, manifest), stream=stream)
        return PrivatizedFile(manifest=count_file(manifest, records), records=tuple(records))

    def _join_where_one_code(self, texts: LabelledTexts) -> LabelledTexts:
        """The records as the code takes them: the two texts of a pair as one where it has one code for both."""
        code, _ = self._need_code()
        if not (code.pairs and texts.pairs):
            return texts
        return replace(texts, texts=tuple(map(join_pair, texts.texts, texts.seconds)), seconds=())

    def _need_code(self) -> tuple[CodeBundle, RememberedEncoder]:
        assert self.code is not None, "a plan whose arms need a code has one"
        assert self.encoder is not None, "a code has an encoder"
        return self.code, self.encoder


Way = Callable[[CrowdBench, Cell, Split], tuple[Right, int]]
# How each arm that is not on tokens answers: how often each record was right, and how often it was asked.
WAYS: Final[Mapping[str, Way]] = {
    WORDS_AT_HOME: CrowdBench.read_words,
    HEAD_AT_HOME: CrowdBench.read_states,
    CODES_PRIVATELY: CrowdBench.ask_privately,
    CODES_AT_HOME: CrowdBench.ask_at_home,
    FUSED: CrowdBench.fuse,
}


def fit_ridge(states: Floats, wanted: Floats) -> tuple[Floats, Floats]:
    """The weights, (h, C), and bias, (C,), of least squares with the penalty whose error on texts left out is lowest.

    Args:
        states: States of texts, (n, h).
        wanted: One row for each, (n, C), 1 at its label.
    """
    middle, means = states.mean(axis=0), wanted.mean(axis=0)
    left, sizes, right = np.linalg.svd(states - middle, full_matrices=False)
    along = left.T @ (wanted - means)
    best: tuple[float, float] = (np.inf, 1.0)
    for penalty in np.mean(sizes**2) * PENALTIES:
        kept = sizes**2 / (sizes**2 + penalty)
        errors = wanted - means - (left * kept) @ along
        # What the fit without a text says of it, in closed form (Allen 1974); the mean takes one degree of freedom.
        alone = errors / np.maximum(1 - (left**2 @ kept) - 1 / len(states), 1e-9)[:, None]
        best = min(best, (float((alone**2).sum()), float(penalty)))
    weights = right.T @ ((sizes / (sizes**2 + best[1]))[:, None] * along)
    return weights, means - middle @ weights


def check_crowds(plan: ComparisonPlan, split: Split) -> None:
    """Refuse crowds of more texts than there are, which would be smaller than they are said to be (`UsageError`)."""
    most = min(len(turn.training) for turn in split.turns)
    if any(ARMS[name].unit == "text" for name in plan.arms):
        most -= _count_own(plan, most)
    if max(plan.crowds) > most:
        raise UsageError(
            f"a crowd must have at most the {most} texts that there are to train on, beside those of one's own, got "
            f"crowd={max(plan.crowds)}; take fewer, or 0 for all"
        )


def _count_own(plan: ComparisonPlan, texts: int) -> int:
    """How many of the training texts are the asker's own, where codes are compared."""
    return min(plan.own_texts, texts // 2)


def open_crowd_bench(plan: ComparisonPlan, split: Split) -> CrowdBench:
    """Load what these arms share.

    Args:
        plan: Plan of the comparison.
        split: Texts of training and evaluation.

    Raises:
        UsageError: There are too few texts for own ones beside those of a crowd.
        VocabularyError: The code or its encoder is not on this machine.
    """
    fewest = min(len(turn.training) for turn in split.turns)
    if FUSED in plan.arms and fewest < 2 * LEAST_TEXTS:
        raise UsageError(f"the arm {FUSED!r} needs {2 * LEAST_TEXTS} training texts, got {fewest}; leave it out")
    code = encoder = codebook = None
    if plan.codes is not None:
        code = read_code(plan.codes)
        if code.pairs and not split.training.pairs:
            raise UsageError("a code of pairs must be compared on pairs, got single texts; name `text_column_2`")
        encoder = RememberedEncoder(read_encoder(code.model if plan.encoder is None else plan.encoder))
        check_encoder(encoder, bundle=code)
        codebook = load_backbone(plan.codes)
    return CrowdBench(
        plan=plan,
        split=split,
        setting=plan.digest_setting(split, denoised=False, codes=plan.codes is not None),
        code=code,
        encoder=encoder,
        codebook=codebook,
    )


def _judge(odds: Floats, texts: LabelledTexts) -> Right:
    right: Right = (odds.argmax(axis=1) == np.array(texts.labels)).astype(np.int64)
    return right


def _join(texts: LabelledTexts) -> list[str]:
    return join_pairs(texts.texts, texts.seconds if texts.pairs else None)
