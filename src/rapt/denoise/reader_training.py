"""Teaching a reader: from public text and its codes, the vectors with which a frozen backbone understands a code.

Public texts are encoded and released by the users' own mechanism, anew in each batch, at one of several ε; the network
learns what to put in the place of a codeword so that the frozen backbone says of it what it would say of the text. Each
kind of backbone is taught what its answers are read from:

- a decoder and an encoder-decoder write the words of the text behind its code;
- an encoder with a head for words names them at a [MASK] behind the code;
- encoders and encoder-decoders, whose heads read mean states, have for a code the mean state of the text in clear. The
  squared error is least for E[f(x)|y], its mean over the texts that may have released y.

No user's text comes near it, and it works on what was released alone: it spends nobody's budget.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rapt.denoise.plan import LEAST_TEXTS, MOST_HELD_OUT, SHORTEST, WINDOW
from rapt.denoise.warm_up import RISE, check_target, draw_batches
from rapt.errors import CorpusError, UsageError, VocabularyError
from rapt.local.codes.encoder import read_encoder
from rapt.local.codes.subset import SubsetMechanism, make_subset
from rapt.local.corpus import read_corpus
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.narration import SILENT, Narrator
from rapt.public_models import find_model_folder
from rapt.service.adapter.task_head import pool_text
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.codewords import Reader, ReaderNetwork, view_as_vocabulary
from rapt.service.backbone.layout import encode_with_prompts, lay_out
from rapt.service.backbone.opening import Precision, load_backbone
from rapt.service.tuning.tasks import TASKS, answer_states
from rapt.training import Losses, ParameterGroup, Trainer, back_propagate, scale_rate
from rapt.wire.code_bundle import CodeBundle, project_states, read_code_bundle
from rapt.wire.mechanism_setting import check_epsilon
from rapt.wire.model_files import hash_model
from rapt.wire.privatized_file import PrivatizedRecord
from rapt.wire.reader_bundle import (
    MOST_EPSILONS,
    MOST_HIDDEN,
    MOST_VECTORS,
    ReaderBundle,
    ReaderMeasure,
    make_reader_bundle,
    write_reader_bundle,
)

MOST_TEXTS: Final = 20_000
MOST_PLAIN: Final = 500  # plain texts that a reader brings along, as many as a pool of plain tokens has
_AT_ONCE: Final = 64


@dataclass(frozen=True, kw_only=True)
class ReaderPlan:
    """All of a reader's training but its texts; everything in it is public.

    Attributes:
        model: Backbone that shall read codes, a name in `PUBLIC_MODELS` or a folder.
        codes: Folder or known name of the code bundle.
        epsilons: Every ε that the reader shall expect; each batch is released at one of them.
        vectors: Input vectors for each codeword.
        width: Hidden numbers of the network.
        epochs: Passes over the public text, with fresh noise in each; may be a fraction.
        batch_size: Texts a step.
        learning_rate: Learning rate at its peak; AdamW with a linear rise and decay to 0.
        seed: Seed of weights, order and noise. The text is public and the noise protects nobody.
    """

    model: str
    codes: str = "minilm-codes"
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    vectors: int = 4
    width: int = 512
    epochs: float = 5.0
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for epsilon in self.epsilons:
            check_epsilon(epsilon)
        if not 1 <= len(set(self.epsilons)) == len(self.epsilons) <= MOST_EPSILONS:
            raise UsageError(
                f"a reader must expect 1 to {MOST_EPSILONS} different epsilons; give each of `epsilons` once"
            )
        if not (1 <= self.vectors <= MOST_VECTORS and 1 <= self.width <= MOST_HIDDEN):
            raise UsageError(
                f"a reader must make 1 to {MOST_VECTORS} vectors from 1 to {MOST_HIDDEN} hidden numbers, got "
                f"vectors={self.vectors} and width={self.width}"
            )
        if not (math.isfinite(self.epochs) and self.epochs > 0 and self.batch_size >= 2 and self.seed >= 0):
            raise UsageError("a reader must have epochs above 0, a batch of 2 texts at least and a seed of at least 0")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(
                f"learning_rate must be finite and above 0, got learning_rate={self.learning_rate}; choose another"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedTexts:
    """Public texts as a reader is taught with them.

    Attributes:
        codes: Codes in clear, (n, k), of length 1.
        tokens: Content tokens of each text in the backbone's vocabulary, cut to a window.
    """

    codes: NDArray[np.float64]
    tokens: tuple[tuple[int, ...], ...]

    def part(self, places: slice) -> CodedTexts:
        """Some of the texts."""
        return CodedTexts(codes=self.codes[places], tokens=self.tokens[places])


def train_reader(
    plan: ReaderPlan,
    public: Sequence[Path],
    *,
    out: Path,
    encoder: str | Path | None = None,
    text_column: str = "text",
    precision: Precision = "auto",
    threads: int | None = None,
    narrator: Narrator = SILENT,
) -> ReaderBundle:
    """Teach a backbone to read codes and write the reader's folder, whole or not at all.

    Args:
        plan: Plan, with backbone and codebook.
        public: Files of public text; never a user's.
        out: New or empty folder, which `rapt serve --model` serves and `rapt privatize --codes` takes.
        encoder: Name or folder of the code's encoder; None goes by the name in the code bundle.
        text_column: Column that holds the text.
        precision: Precision of the backbone; the network is float32.
        threads: Threads of torch; None leaves them.
        narrator: Receiver of progress.

    Raises:
        UsageError: The folder holds something, or the backbone is a codebook or is read through already.
        CorpusError: There is too little public text.
        TuningError: The loss is not finite.
        VocabularyError: The backbone or the encoder is not here, or the encoder is another than the code's.
    """
    check_target(out)
    if threads is not None:
        torch.set_num_threads(threads)
    code = read_code_bundle(find_model_folder(plan.codes))
    if code.pairs:
        raise UsageError("a reader must be of a code of single texts, got one of pairs; a head reads that as it is")
    backbone = load_backbone(plan.model, precision=precision)
    if backbone.code is not None:
        raise UsageError("a reader must be made for a language model, got a codebook or a reader; give another `model`")
    texts = read_coded_texts(
        public, code, model=plan.model, encoder=encoder, text_column=text_column, narrator=narrator
    )
    with narrator.meter("teaching the reader", unit="steps") as meter:
        bundle = teach_reader(
            backbone,
            texts,
            code=code,
            plan=plan,
            backbone_hash=hash_model(find_model_folder(plan.model)),
            on_step=lambda step, steps, losses: meter(step, total=steps, note=f"loss {losses['loss']:.2f}"),
        )
    write_reader_bundle(bundle, out)
    narrator.say(f"reader: {out}")
    return bundle


def read_coded_texts(
    files: Sequence[Path],
    code: CodeBundle,
    *,
    model: str,
    encoder: str | Path | None = None,
    text_column: str = "text",
    narrator: Narrator = SILENT,
) -> CodedTexts:
    """At most `MOST_TEXTS` different public texts, in an order that depends on them alone, with their codes.

    Raises:
        CorpusError: A file cannot be read, or there are too few texts.
        VocabularyError: The encoder is another than the code's.
    """
    found = {
        record.text: hashlib.sha256(record.text.encode("utf-8", "surrogatepass")).digest()
        for path in files
        for record in read_corpus(path, text_column=text_column, label_column=None)
    }
    vocabulary = load_vocabulary(model)
    chosen = sorted(found, key=found.__getitem__)[:MOST_TEXTS]
    contents = vocabulary.encode(chosen)
    kept = [place for place, ids in enumerate(contents) if len(ids) >= SHORTEST]
    if len(kept) < LEAST_TEXTS:
        raise CorpusError(
            f"a reader needs at least {LEAST_TEXTS} different public texts of {SHORTEST} tokens, got {len(kept)}; add "
            "public text"
        )
    own = read_encoder(code.model if encoder is None else encoder)
    if own.hash != code.encoder_hash:
        raise VocabularyError(
            "the encoder must be the one that the codebook was made for, got another; give its folder with `encoder`"
        )
    states = []
    with narrator.meter("encoding public text", total=len(kept), unit="texts") as meter:
        for start in range(0, len(kept), _AT_ONCE):
            states.append(own.encode([chosen[place] for place in kept[start : start + _AT_ONCE]]))
            meter(min(start + _AT_ONCE, len(kept)))
    return CodedTexts(
        codes=project_states(np.concatenate(states), code),
        tokens=tuple(tuple(contents[place][:WINDOW]) for place in kept),
    )


def teach_reader(
    backbone: Backbone,
    texts: CodedTexts,
    *,
    code: CodeBundle,
    plan: ReaderPlan,
    backbone_hash: str,
    on_step: Callable[[int, int, Losses], None] = lambda step, steps, losses: None,
) -> ReaderBundle:
    """Train a reader of public texts, a twentieth of which is held out to measure it.

    Args:
        backbone: Frozen language model; left as it is found.
        texts: Public texts.
        code: Code bundle that made their codes.
        plan: Plan of the training.
        backbone_hash: Hash of the backbone's files.
        on_step: Called after each step with its number, their number, and the loss of its batch.

    Raises:
        TuningError: The loss is not finite.
    """
    rng = insecure_stream(plan.seed).generator
    mechanisms = [make_subset(code, epsilon=epsilon) for epsilon in sorted(plan.epsilons)]
    held = min(MOST_HELD_OUT, len(texts.tokens) // 20 + 1)
    held_out, training = texts.part(slice(held)), texts.part(slice(held, None))
    levels = [one.measure_attenuation(training.codes[:MOST_PLAIN]) for one in mechanisms]
    lesson = TaughtReader(backbone, code=code, mechanisms=mechanisms, attenuations=levels, plan=plan)
    states, held_states = (lesson.states_in_clear(part.tokens) for part in (training, held_out))
    steps = math.ceil(plan.epochs * len(training.tokens) / plan.batch_size)
    trainer = Trainer([ParameterGroup(dict(lesson.network.named_parameters()), plan.learning_rate)])

    def descend(places: NDArray[np.int64]) -> Losses:
        mechanism = mechanisms[int(rng.integers(len(mechanisms)))]
        words = mechanism.privatize(training.codes[places], rng=rng)
        return back_propagate(lesson.loss(words, places, training.tokens, states, epsilon=mechanism.epsilon))

    batches = draw_batches(training.tokens, size=plan.batch_size, steps=steps, rng=rng)
    for losses in trainer.follow(batches, descend, rate=lambda step: scale_rate(step, steps, rise=RISE)):
        on_step(trainer.steps, steps, losses)
    tensors = {name: item.detach().cpu().numpy() for name, item in lesson.network.state_dict().items()}
    return make_reader_bundle(
        code=code,
        model=backbone.model,
        backbone_hash=backbone_hash,
        epsilons=[one.epsilon for one in mechanisms],
        attenuations=levels,
        tensors=tensors | {"plain": training.codes[:MOST_PLAIN].astype(np.float32)},
        vectors=plan.vectors,
        measures=[_measure(lesson, one, held_out, held_states, rng=rng) for one in mechanisms],
        public_texts=len(training.tokens),
    )


class TaughtReader:
    """A network that is taught, in its place before a frozen backbone."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        code: CodeBundle,
        mechanisms: Sequence[SubsetMechanism],
        attenuations: Sequence[float],
        plan: ReaderPlan,
    ) -> None:
        """Draw the network: at first every code has the vectors of words drawn from the vocabulary."""
        generator = torch.Generator().manual_seed(plan.seed)
        table, place = backbone.word_embeddings, backbone.device
        view = view_as_vocabulary(code)
        self.network = ReaderNetwork(
            dimensions=len(code.directions), width=plan.width, vectors=plan.vectors, hidden_size=backbone.embedding_size
        )
        eligible = torch.from_numpy(backbone.bundle.eligible.copy())
        words = eligible[torch.randint(len(eligible), (plan.vectors,), generator=generator)]
        with torch.no_grad():
            self.network.hidden.weight.normal_(generator=generator)
            self.network.hidden.bias.normal_(generator=generator)
            self.network.output.weight.normal_(std=float(table.std()) * plan.width**-0.5, generator=generator)
            self.network.output.bias.copy_(table[words.to(place)].flatten())
        self._reader = Reader(
            network=self.network.to(place),
            points=torch.from_numpy(view.embeddings).to(place),
            codes=code.codes,
            epsilons=tuple(one.epsilon for one in mechanisms),
            attenuations=torch.tensor(attenuations, device=place),
            first_id=len(table),
            plain=torch.empty(0, len(code.directions)),
        )
        self._teacher = backbone
        self._student = replace(backbone, bundle=view, words=backbone.bundle, code=code, reader=self._reader)

    @torch.no_grad()
    def states_in_clear(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The mean states of texts in clear, (n, h), which a code shall have as well; of a decoder nothing is asked."""
        backbone = self._teacher
        found = torch.zeros(len(texts), backbone.hidden_size, device=backbone.device)
        if backbone.kind == "decoder":
            return found
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), _AT_ONCE):
            chosen = order[start : start + _AT_ONCE]
            none = [()] * len(chosen)
            layout = lay_out(
                backbone,
                prompt_lengths=[0] * len(chosen),
                privatized_plain_tokens=none,
                texts=[texts[place] for place in chosen],
            )
            found[chosen] = pool_text(encode_with_prompts(backbone, layout, None), layout.text_mask)
        return found

    def loss(
        self,
        words: NDArray[np.int64],
        places: Sequence[int] | NDArray[np.int64],
        texts: Sequence[tuple[int, ...]],
        states: Tensor,
        *,
        epsilon: float,
    ) -> Tensor:
        """The loss of a batch, a scalar with a gradient to the network.

        Args:
            words: Codewords that were released for the texts of the batch, (B, r).
            places: Places of these texts among all, (B,).
            texts: Content tokens of all texts.
            states: Mean states in clear of all texts, (n, h).
            epsilon: ε of the release.
        """
        backbone = self._student
        records = [
            PrivatizedRecord(token_ids=self._reader.spell(row, epsilon=epsilon), target_ids=texts[place])
            for row, place in zip(words.tolist(), places, strict=True)
        ]
        by_words = backbone.language_head is not None
        name = "generation" if backbone.kind != "encoder" else "label_words" if by_words else "classification"
        task = TASKS[name]
        layout = task.lay_out(backbone, records, prompt_lengths=[0] * len(records), plain=False)
        found = encode_with_prompts(backbone, layout, None)
        loss = found.new_zeros(())
        if backbone.kind != "encoder":
            loss = loss + task.outcome(backbone, found, layout, records, nn.Identity(), label_privacy=None).loss
        elif by_words:
            logprobs = backbone.word_logits(answer_states(found, layout)).log_softmax(dim=1)
            rows = [row for row, record in enumerate(records) for _ in record.target_ids or ()]
            named = [token for record in records for token in record.target_ids or ()]
            loss = loss - logprobs[rows, named].mean()
        if backbone.kind != "decoder":
            wanted = states[torch.as_tensor(places, device=states.device)]
            spread = states.var(dim=0, correction=0).mean().clamp_min(1e-6)
            loss = loss + (pool_text(found, layout.text_mask) - wanted).square().mean() / spread
        return loss


@torch.no_grad()
def _measure(
    lesson: TaughtReader, mechanism: SubsetMechanism, texts: CodedTexts, states: Tensor, *, rng: np.random.Generator
) -> ReaderMeasure:
    """The loss on held-out texts with their own codes, and with the code of the text before."""
    words = mechanism.privatize(texts.codes, rng=rng)
    found = []
    for given in (words, np.roll(words, 1, axis=0)):
        total = 0.0
        for start in range(0, len(words), _AT_ONCE):
            places = np.arange(start, min(start + _AT_ONCE, len(words)))
            loss = lesson.loss(given[places], places, texts.tokens, states, epsilon=mechanism.epsilon)
            total += loss.item() * len(places)
        found.append(total / len(words))
    return ReaderMeasure(epsilon=mechanism.epsilon, loss=found[0], blind_loss=found[1])
