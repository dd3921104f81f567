"""Denoising by distillation: a student that sees privatized text learns the states that a teacher has of the clear one.

Both begin as the same backbone, of any architecture; of an encoder-decoder the first half, which reads the text. The
warm-up privatizes public text, batch after batch, and lets the student catch up with its teacher; the folder that it
leaves has the original's files with other weights, and a card that says which noise it expects.

Privatization replaces tokens one for one, so every position of the privatized text has a position of the clear text to
be compared with. The squared error is least for the mean of the teacher's states given the privatized text,
E[f(x)|M(x)]: the posterior mean under the public text as a prior and the mechanism as a channel, learned instead of
computed (the idea of post-processing by a denoiser is Qu et al. 2021's; theirs predicts tokens).

The table of word embeddings stays as it is, so the vocabulary and its hash do, and users notice nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rapt.denoise.plan import Explained, PublicTexts, WarmUpPlan, read_public_texts
from rapt.denoise.soft_embeddings import DRAWS, average_settings, count_word_prior, load_soft_embeddings
from rapt.errors import UsageError
from rapt.local.mechanisms import Mechanism, make_mechanism
from rapt.local.randomness import insecure_stream
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.narration import SILENT, Narrator
from rapt.public_models import find_model_folder, name_model
from rapt.service.adapter.task_head import pool_text
from rapt.service.backbone.architectures import ARCHITECTURES, Architecture
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import Layout, encode_with_prompts, lay_out
from rapt.service.backbone.noise_expected import CARD, SCHEMA, SOFT_EMBEDDINGS, make_soft_embeddings_file
from rapt.service.backbone.opening import Precision, load_backbone
from rapt.training import Losses, ParameterGroup, Trainer, back_propagate, batch_by_length, scale_rate
from rapt.version import __version__
from rapt.whole_files import write_folder
from rapt.wire.vocabulary_bundle import check_hash, read_model_bundle


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far the student is from the teacher, as a share of the teacher's own variance: 0 is perfect.

    Attributes:
        text: Error of the mean state of a text.
        tokens: Error of the states of its tokens.
    """

    text: Tensor
    tokens: Tensor

    @property
    def loss(self) -> Tensor:
        """Return the loss that training minimizes. Heads that pool need the first, heads that read words the second."""
        return self.text + self.tokens


class Student:
    """A copy of a backbone whose layers are trained, beside the frozen original."""

    def __init__(self, model: str, *, precision: Precision = "float32") -> None:
        """Load the backbone twice.

        Args:
            model: A name in `PUBLIC_MODELS` or a folder.
            precision: Type of the products in teacher and student; what is trained is kept in float32. `auto` as in
                `load_backbone`.

        Raises:
            UsageError: The architecture of the model is unknown.
            VocabularyError: The files of the model are missing.
        """
        self.teacher = load_backbone(model, precision=precision)
        if self.teacher.architecture not in ARCHITECTURES:
            raise UsageError(
                f"a model to be denoised must be of architecture {', '.join(ARCHITECTURES)}, got "
                f"{self.teacher.architecture!r}; choose another, or tune it as it is"
            )
        own: Backbone = load_backbone.__wrapped__(model, precision="float32")  # not the one everybody shares
        # The pass of our own gives the weights no gradient.
        self.backbone = replace(own, own_forward=None)
        self.layers = ARCHITECTURES[self.teacher.architecture]
        self.encoder = self.backbone.encoder
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(not name.startswith(self.layers.left_alone))
        self.soft_embeddings: Tensor | None = None

    def see_words_as(self, table: Tensor) -> None:
        """Let the student look words up in another table, (V, h) in float32: soft embeddings. The teacher does not."""
        self.soft_embeddings = table
        self.backbone = replace(self.backbone, word_embeddings=table.to(self.backbone.device))

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.encoder.named_parameters() if parameter.requires_grad}

    def measure_agreement(self, clear: Sequence[Sequence[int]], privatized: Sequence[Sequence[int]]) -> Agreement:
        """The errors on a batch; with a gradient to the student unless gradients are off.

        Args:
            clear: Content tokens of public texts, B sequences.
            privatized: The same texts privatized, token for token.
        """
        layout = self._lay_out(clear)
        with torch.no_grad():
            target = encode_with_prompts(self.teacher, layout, None)
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.teacher.dtype == torch.bfloat16):
            found = encode_with_prompts(self.backbone, self._lay_out(privatized), None)
        mask = layout.text_mask
        text = (pool_text(target, mask) - pool_text(found, mask)).square().mean()
        tokens = ((target - found).square().mean(dim=2) * mask).sum() / mask.sum()
        return Agreement(
            text=text / pool_text(target, mask).var(dim=0, correction=0).mean().clamp_min(1e-6),
            tokens=tokens / target[mask > 0].var(dim=0, correction=0).mean().clamp_min(1e-6),
        )

    def _lay_out(self, texts: Sequence[Sequence[int]]) -> Layout:
        count = len(texts)
        return lay_out(
            self.teacher, prompt_lengths=[0] * count, privatized_plain_tokens=[()] * count, texts=list(texts)
        )


_WEIGHTS: Final = "model.safetensors"
# Checkpoints that were converted from TensorFlow call a norm gamma and beta.
_OLD_NAMES: Final = ((".gamma", ".weight"), (".beta", ".bias"))


def check_target(folder: Path) -> None:
    """Refuse a folder that holds something, before hours of work.

    Raises:
        UsageError: The folder holds something, or is none.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError("`out` must be a new or empty folder; choose another name")


def check_source(model: str) -> None:
    """Refuse a model whose weights are in several files, before hours of work.

    Raises:
        UsageError: The weights are in several files.
        VocabularyError: The model is not here.
    """
    if not (find_model_folder(model) / _WEIGHTS).is_file():
        raise UsageError(f"a model to be denoised must have its weights in one {_WEIGHTS}; save it without shards")


def save_denoised(
    student: Student, folder: Path, *, plan: WarmUpPlan, explained: Sequence[Explained], texts: int, tokens: int
) -> None:
    """Write the folder, whole or not at all; `rapt serve --model FOLDER` serves it.

    Args:
        student: Student, as trained.
        folder: New or empty.
        plan: Plan of the warm-up.
        explained: Agreement with the teacher at each η.
        texts: Public windows trained on.
        tokens: Tokens in these windows.

    Raises:
        UsageError: The folder holds something, or cannot be written.
        VocabularyError: The result would have another vocabulary than the original.
    """
    check_target(folder)
    source = find_model_folder(plan.model)
    trained = student.encoder.state_dict()
    weights = {
        name: _replace_tensor(name, tensor, trained, layers=student.layers)
        for name, tensor in load_file(source / _WEIGHTS).items()
    }
    card: dict[str, Any] = {
        "schema": SCHEMA,
        "created_by": f"rapt {__version__}",
        "base_model": name_model(plan.model),
        "vocabulary_hash": student.teacher.bundle.hash,
        "plan": asdict(plan) | {"model": name_model(plan.model), "options": dict(plan.options)},
        "precision": str(student.teacher.dtype).removeprefix("torch."),
        "public_texts": texts,
        "public_tokens": tokens,
        "explained": [asdict(item) for item in explained],
    }
    files = {path.name: path.read_bytes() for path in source.glob("*.json") if path.is_file()}
    files[_WEIGHTS] = save_tensors(weights, metadata={"format": "pt"})
    if student.soft_embeddings is not None:
        files[SOFT_EMBEDDINGS] = make_soft_embeddings_file(student.soft_embeddings)
    files[CARD] = _make_card_file(card)
    _write(folder, files, vocabulary_hash=student.teacher.bundle.hash)


def _make_card_file(card: Mapping[str, Any]) -> bytes:
    return json.dumps(card, indent=1, allow_nan=False).encode() + b"\n"


def _write(folder: Path, files: Mapping[str, bytes], *, vocabulary_hash: str) -> None:
    try:
        write_folder(folder, files)
    except OSError as error:
        raise UsageError(
            f"`out` must be writable, got {error.strerror or type(error).__name__}; choose another"
        ) from None
    check_hash(read_model_bundle(folder, model=folder.name), expected=vocabulary_hash)


def _replace_tensor(name: str, tensor: Tensor, trained: Mapping[str, Tensor], *, layers: Architecture) -> Tensor:
    """The trained tensor of that name in a checkpoint, or the tensor as it was: of a head, or of the embeddings."""
    inner = name.removeprefix(layers.prefix)
    for old, new in _OLD_NAMES:
        inner = inner.removesuffix(old) + new if inner.endswith(old) else inner
    if inner not in trained or inner.startswith(layers.left_alone):
        return tensor
    return trained[inner].detach().to("cpu", tensor.dtype).contiguous()


RISE: Final = 0.05  # share of the steps that the rate takes to its peak
_SORTED_TOGETHER: Final = 16  # batches: texts of one length share a batch, in an order that stays random enough

Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class DenoisedBackbone:
    """A backbone that was made to expect noise.

    Attributes:
        folder: Folder that `rapt serve --model` serves.
        texts: Public windows trained on.
        tokens: Tokens in them.
        explained: Agreement with the teacher at each η.
    """

    folder: Path
    texts: int
    tokens: int
    explained: tuple[Explained, ...]


def denoise_model(
    plan: WarmUpPlan,
    public: Sequence[Path],
    *,
    out: Path,
    text_column: str = "text",
    precision: Precision = "auto",
    threads: int | None = None,
    narrator: Narrator = SILENT,
) -> DenoisedBackbone:
    """Teach a backbone to understand privatized text and write its folder, whole or not at all.

    Args:
        plan: Plan of the warm-up, with the model.
        public: Files of public text; never a user's.
        out: New or empty folder.
        text_column: Column that holds the text.
        precision: Precision of the products; what is trained stays float32.
        threads: Threads of torch; None leaves them.
        narrator: Takes the progress.

    Raises:
        UsageError: The folder holds something, or the model cannot be trained.
        CorpusError: There is too little public text.
        MechanismError: The mechanism is unknown, or its options do not fit.
        TuningError: The loss is not finite.
        VocabularyError: The model is not here.
    """
    check_target(out)
    check_source(plan.model)
    if threads is not None:
        torch.set_num_threads(threads)
    vocabulary = load_vocabulary(plan.model)
    texts = read_public_texts(public, vocabulary=vocabulary, text_column=text_column)
    student = Student(plan.model, precision=precision)
    with narrator.meter("denoising", unit="steps") as meter:
        explained = warm_up(
            student,
            texts,
            vocabulary=vocabulary,
            plan=plan,
            on_step=lambda step, steps, losses: meter(step, total=steps, note=f"error {losses['text_error']:.2f}"),
        )
    count, tokens = len(texts.training), sum(len(text) for text in texts.training)
    save_denoised(student, out, plan=plan, explained=explained, texts=count, tokens=tokens)
    narrator.say(f"backbone: {out}")
    return DenoisedBackbone(folder=out, texts=count, tokens=tokens, explained=explained)


def privatize(mechanism: Mechanism, texts: Tokens, *, rng: np.random.Generator) -> list[list[int]]:
    """The texts privatized, token for token, in one call."""
    flat = np.array([token for text in texts for token in text], dtype=np.int64)
    ends = np.cumsum([len(text) for text in texts])
    return [ids.tolist() for ids in np.split(mechanism.privatize(flat, rng=rng), ends[:-1])]


def draw_batches(texts: Tokens, *, size: int, steps: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Places of so many batches, pass after pass, of two texts or more: the variance of one text is no measure."""
    lengths, done = [len(text) for text in texts], 0
    while done < steps:
        for places in batch_by_length(lengths, size=size, permute=rng.permutation, sorted_together=_SORTED_TOGETHER):
            if len(places) > 1:
                yield places
                done += 1
            if done == steps:
                return


def warm_up(
    student: Student,
    texts: PublicTexts,
    *,
    vocabulary: Vocabulary,
    plan: WarmUpPlan,
    soft_draws: int = DRAWS,
    on_step: Callable[[int, int, Losses], None] = lambda step, steps, losses: None,
) -> tuple[Explained, ...]:
    """Train the student in place; returns what it explains of held-out text at each η, before and after.

    Args:
        student: Student of the plan's model.
        texts: Public texts.
        vocabulary: Vocabulary of the same model.
        plan: Plan of the warm-up.
        soft_draws: Draws for soft embeddings at each η, where the channel has no closed form.
        on_step: Called after each step with its number, their number, and the loss and `text_error` of its batch.

    Raises:
        MechanismError: The mechanism is unknown or its options do not fit.
        TuningError: The loss is not finite.
    """
    rng = insecure_stream(plan.seed).generator
    noise = [
        make_mechanism(plan.mechanism, vocabulary=vocabulary, eta=eta, options=dict(plan.options), allow_unproved=True)
        for eta in plan.etas
    ]
    # The same noise before and after, so the two differ by the student alone.
    queries = [privatize(mechanism, texts.held_out, rng=rng) for mechanism in noise]
    before = [_measure_explained(student, texts.held_out, query) for query in queries]
    if plan.soft_embeddings:
        prior = count_word_prior(texts.training, vocabulary=vocabulary)
        settings = [
            load_soft_embeddings(vocabulary, mechanism, prior=prior, seed=plan.seed, draws=soft_draws)
            for mechanism in noise
        ]
        student.see_words_as(torch.from_numpy(average_settings(settings)))
    steps = math.ceil(plan.epochs * len(texts.training) / plan.batch_size)
    # No dropout: fresh noise in every batch is what keeps the student from learning texts by heart.
    trainer = Trainer([ParameterGroup(student.trained(), plan.learning_rate)], fused=True)

    def descend(places: NDArray[np.int64]) -> Losses:
        batch = [texts.training[place] for place in places]
        noisy = privatize(noise[int(rng.integers(len(noise)))], batch, rng=rng)
        found = student.measure_agreement(batch, noisy)
        return back_propagate(found.loss) | {"text_error": found.text.item()}

    batches = draw_batches(texts.training, size=plan.batch_size, steps=steps, rng=rng)
    for losses in trainer.follow(batches, descend, rate=lambda step: scale_rate(step, steps, rise=RISE)):
        on_step(trainer.steps, steps, losses)
    after = [_measure_explained(student, texts.held_out, query) for query in queries]
    return tuple(
        Explained(eta=eta, before=first, after=last) for eta, first, last in zip(plan.etas, before, after, strict=True)
    )


@torch.no_grad()
def _measure_explained(student: Student, clear: Tokens, noisy: Tokens) -> float:
    agreement = student.measure_agreement(clear, noisy)
    return 1.0 - agreement.text.item()
