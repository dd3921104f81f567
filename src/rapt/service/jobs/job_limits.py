"""Limits and cost of one job, before any of it is done: one that is too large is refused at once.

Memory is estimated from the shapes of the backbone and of the longest row, and is meant to be above what is measured
(tests/service/jobs/test_job_limits.py): what a training pass keeps for its gradient grows with batch times positions,
so one request could take all memory of a machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from rapt.errors import LimitError
from rapt.service.adapter.methods import METHODS
from rapt.service.backbone.backbone import Backbone
from rapt.service.storage.file_rows import StoredFile
from rapt.service.storage.job_runs import MOST_DEATHS
from rapt.service.tuning.tasks import TASKS
from rapt.service.tuning.tuner import batches_per_epoch
from rapt.service.tuning.tuning_config import TuningConfig
from rapt.wire.manifest import Manifest

Checkpointing = Literal["auto", "always", "never"]

MEBIBYTE: Final = 1024 * 1024
_FLOAT: Final = 4
# Of what is trained: the value, its gradient, two moments, a copy in a state with both, the best one, and the bytes of
# the state while it is written.
_COPIES_OF_PARAMETERS: Final = 12
# What a pass keeps of each position for its gradient, beside attention: so many times what the linear layers put out,
# in float32. Measured 1.5, 2.2, 2.4 and 4.0: GPT-2's activation is written out in many steps.
_KEPT: Final[Mapping[str, float]] = {"bert": 2.0, "t5": 2.8, "llama": 2.9, "gpt2": 4.8}
_KEPT_BY_OTHERS: Final = 4.8
# Bytes of a score of attention: on the way by torch's own kernel; where attention is written out, on the way, and kept
# in two precisions by every layer.
_BYTES_A_SCORE: Final = 4
_BYTES_A_WRITTEN_SCORE: Final = 18
_BYTES_A_KEPT_SCORE: Final = 7
# Of what a pass keeps: what one layer among L takes beside the inputs of all of them, in parts of an L-th.
_LAYERS_AT_ONCE: Final = 1.5
# Logits, their softmax and both gradients.
_COPIES_OF_LOGITS: Final = 5
# A token id of a record in Python, and a record beside its ids.
_BYTES_A_TOKEN: Final = 40
_BYTES_A_RECORD: Final = 800
# What a run takes whatever its sizes are.
_LEAST: Final = 32 * MEBIBYTE


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """How much one job may take; a larger one is refused when it is asked for.

    Attributes:
        memory_bytes: Most memory of a run beside the base model.
        hidden_size: Widest network of P-tuning, of a prefix, or of reconstruction.
        virtual_tokens: Longest prompt or prefix.
        rank: Highest rank of LoRA.
        classes: Most labels, or plain tokens to choose among.
        steps: Most steps of a run.
        records: Most records that a run reads: those of its file times its epochs.
        validation_records: Most records of its validation file, which is read in one go after each epoch.
        gradient_checkpointing: Whether layers are computed again on the way back, in place of keeping what they hold:
            `auto` does so for a run that would need more memory than it may have.
    """

    memory_bytes: int
    hidden_size: int = 4096
    virtual_tokens: int = 256
    rank: int = 256
    classes: int = 10_000
    steps: int = 5_000_000
    records: int = 100_000_000
    validation_records: int = 50_000
    gradient_checkpointing: Checkpointing = "auto"


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How jobs are run.

    Attributes:
        tenant_bytes: Most bytes of a tenant without a quota of its own; beyond it checkpoints are left out.
        limits: Limits of one job.
        seconds_between_run_states: Work that a crash may cost, s.
        slice_seconds: After so long a job gives way to a waiting one of another tenant, s; 0 never.
        most_deaths: A job that has killed what runs it so often, without getting any further, fails.
        log_folder: Folder for TensorBoard's event files of jobs; None keeps none.
        logger: The provider's function that makes loggers of jobs, as `module:function`.
    """

    tenant_bytes: int
    limits: JobLimits
    seconds_between_run_states: float = 15.0
    slice_seconds: float = 300.0
    most_deaths: int = MOST_DEATHS
    log_folder: str | None = None
    logger: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a run that its memory depends on.

    Attributes:
        batch: Records of the largest step.
        text: Tokens of the longest record, of both texts.
        second: Tokens between two texts.
        target: Tokens of the longest target.
        plain_tokens: m that take part.
        pool: Plain tokens to choose among.
        classes: Number of labels.
        tokens: Tokens of all files.
        records: Records of all files.
    """

    batch: int
    text: int
    second: int
    target: int
    plain_tokens: int
    pool: int
    classes: int
    tokens: int
    records: int


def check_cost(
    config: TuningConfig,
    *,
    files: Sequence[StoredFile],
    manifest: Manifest | None,
    backbone: Backbone,
    limits: JobLimits,
    longest_target: int = 0,
) -> bool:
    """Refuse a run that takes more than one job may; say whether it must compute layers again to keep within it.

    Args:
        config: Settings of the run.
        files: Training file, and validation file if there is one.
        manifest: Manifest of the training file, with the pool of plain tokens; None before it was read.
        backbone: Backbone of the run.
        limits: Limits of one job.
        longest_target: Tokens of the longest target of both files, as far as it is known.

    Returns:
        Whether the run must compute its layers again on the way back, to take no more memory than it may.

    Raises:
        LimitError: It takes more; `param` names what to change.
    """
    training = files[0]
    network = config.reparametrization_size if config.reparametrization != "none" else 0
    for asked, limit, name, field in (
        (network, limits.hidden_size, "encoder_hidden_size", "job_hidden_size"),
        (0 if config.reconstruction is None else config.reconstruction.head_size, limits.hidden_size,
         "reconstruction.hidden_size", "job_hidden_size"),
        (config.prompt_positions + config.prefix_positions, limits.virtual_tokens, "num_virtual_tokens",
         "job_virtual_tokens"),
        (config.lora_rank if config.asks("lora_rank") else 0, limits.rank, "r", "job_rank"),
    ):  # fmt: skip
        if asked > limit:
            raise _make_too_large_error(config, name, f"{name} must be at most {limit} here, got {asked}", field)
    pool = 0 if manifest is None or config.reconstruction is None else len(manifest.plain_tokens.pool)
    if config.reconstruction is not None:
        pool = max(pool, backbone.plain_texts)
    if max(training.labels, pool) > limits.classes:
        raise LimitError(
            f"a run must choose among at most {limits.classes} classes, got labels={training.labels} and "
            f"plain tokens={pool}; use fewer, or ask the provider for a higher job_classes"
        )
    steps = config.epochs * batches_per_epoch(training.records, size=config.batch_size)
    reads = config.epochs * sum(file.records for file in files)
    if steps > limits.steps:
        raise _make_too_large_error(
            config, "n_epochs", f"a run must have at most {limits.steps} steps, got {steps}", "job_steps"
        )
    if reads > limits.records:
        raise _make_too_large_error(
            config, "n_epochs", f"a run must read at most {limits.records} records, got {reads}", "job_records"
        )
    validated = sum(file.records for file in files[1:])
    if validated > limits.validation_records:
        error = LimitError(
            f"a validation file must have at most {limits.validation_records} records here, got {validated}; leave "
            "some out, or ask the provider for a higher job_validation_records"
        )
        error.param = "validation_file"
        raise error
    sizes = Sizes(
        # Plain texts behind a reader are rows of their own.
        batch=min(config.batch_size, max(file.records for file in files))
        * (2 if config.reconstruction is not None and backbone.plain_texts else 1),
        text=max(file.longest for file in files) * backbone.vectors_per_id,
        second=len(backbone.frame.between),
        target=longest_target,
        plain_tokens=0 if config.reconstruction is None else training.plain_tokens,
        pool=pool,
        classes=training.labels,
        tokens=sum(file.tokens * backbone.vectors_per_id + file.records * file.plain_tokens for file in files),
        records=sum(file.records for file in files),
    )
    needed = 0
    for recompute in {"auto": (False, True), "always": (True,), "never": (False,)}[limits.gradient_checkpointing]:
        needed = bound_memory(backbone, config, sizes=sizes, recompute=recompute)
        if needed <= limits.memory_bytes:
            return recompute
    raise _make_too_large_error(
        config,
        "batch_size",
        f"a run must need at most {limits.memory_bytes // MEBIBYTE} MiB of memory, got about "
        f"{needed // MEBIBYTE} MiB for batch_size={config.batch_size} of records of up to {sizes.text} tokens",
        "job_memory_bytes",
    )


def bound_memory(backbone: Backbone, config: TuningConfig, *, sizes: Sizes, recompute: bool = False) -> int:
    """Most bytes that a run takes beside its backbone, an estimate from above; less where it recomputes its layers."""
    trained = _COPIES_OF_PARAMETERS * _FLOAT * parameters_of(backbone, config, sizes=sizes)
    read = _BYTES_A_TOKEN * sizes.tokens + _BYTES_A_RECORD * sizes.records
    return _LEAST + trained + read + _bound_memory_of_a_step(backbone, config, sizes=sizes, recompute=recompute)


def parameters_of(backbone: Backbone, config: TuningConfig, *, sizes: Sizes) -> int:
    """How many numbers a run trains."""
    width = backbone.hidden_size
    found = METHODS[config.method].parameters(backbone, config)
    if config.reparametrization != "none":  # what the network makes has a gradient as well
        each = sum(2 * site.key_heads * site.head_size for site in backbone.sites.attention)
        found += config.prompt_positions * width + config.prefix_positions * each
    if config.task == "classification":
        found += sizes.classes * (3 * width + 1)
    if config.reconstruction is not None:
        found += config.reconstruction.head_size * (width + sizes.pool)
    return found


def _bound_memory_of_a_step(backbone: Backbone, config: TuningConfig, *, sizes: Sizes, recompute: bool) -> int:
    """Most bytes of the forward and the backward pass of one batch."""
    width, rows, frame = backbone.hidden_size, sizes.batch, backbone.frame
    around = len(frame.start) + len(frame.end) + len(TASKS[config.task].cue(backbone)) + sizes.second
    positions = around + config.prompt_positions + sizes.plain_tokens + sizes.text
    written = sizes.target + 1 if config.task == "generation" else 0
    halves = backbone.kind == "encoder-decoder"
    if not halves:
        positions += max(0, written - 1)
    elif config.task != "classification":
        written = max(written, 2)  # the decoder's start, and what it is asked
    # A decoder's cross-attention has keys of the positions of the encoder, so its layers are counted for the longer.
    beside = max(positions, written) if halves and written else 0
    first = _PassSizes.of(backbone, second_half=False)
    passes = [(first, positions), *([(_PassSizes.of(backbone, second_half=True), beside)] if beside else [])]
    prefix = config.prefix_positions
    heads = backbone.sites.model.config.num_attention_heads
    factor = _KEPT.get(backbone.architecture, _KEPT_BY_OTHERS)
    kept = 12 * _FLOAT * rows * positions * width  # vectors that are put in, states that come out
    for half, length in passes:
        held = factor * _FLOAT * rows * length * half.outputs
        seen = heads * (length + prefix)
        scores = _BYTES_A_SCORE * rows * length * seen  # of one layer at a time
        if backbone.dtype == torch.bfloat16:
            scores = _BYTES_A_WRITTEN_SCORE * rows * length * seen
            held += _BYTES_A_KEPT_SCORE * half.sites * rows * length * seen
        if config.asks("lora_rank"):
            held += _FLOAT * rows * length * half.layers * config.lora_rank + 2 * _FLOAT * rows * length * half.sums
        if recompute and half.depth:
            held = held * min(1.0, _LAYERS_AT_ONCE / half.depth) + 2 * _FLOAT * rows * length * width * half.depth
        kept += int(held) + scores
        if prefix:
            kept += 3 * _FLOAT * rows * (length + 2 * prefix) * half.keys
    logits = rows * (sizes.classes + sizes.plain_tokens * sizes.pool + written * len(backbone.word_embeddings))
    if config.task != "generation":
        logits -= rows * written * len(backbone.word_embeddings)
    if config.reconstruction is not None:
        logits += rows * sizes.plain_tokens * (config.reconstruction.head_size + width)
    return kept + _COPIES_OF_LOGITS * _FLOAT * logits


@dataclass(frozen=True)
class _PassSizes:
    """Sizes of one half of a backbone, or of all of one that has no halves.

    Attributes:
        outputs: Numbers that its linear layers put out for a position.
        sums: Numbers that go into them and come out.
        layers: Number of linear layers.
        sites: Number of attention sites.
        keys: Numbers of the keys and values of a position, at all sites.
        depth: Number of layers that can be computed again, one after the other; 0 where none can.
    """

    outputs: int
    sums: int
    layers: int
    sites: int
    keys: int
    depth: int

    @classmethod
    def of(cls, backbone: Backbone, *, second_half: bool) -> _PassSizes:
        halves = backbone.kind == "encoder-decoder"

        def is_here(name: str) -> bool:
            return not halves or ("decoder." in name) == second_half

        # The head over all words is counted by itself.
        linear = [
            size for name, size in backbone.sites.linear.items() if is_here(name) and not name.endswith("lm_head")
        ]
        sites = [site for site in backbone.sites.attention if is_here(site.name)]
        times = backbone.sites.repeats  # a layer that is passed through many times holds as much each time
        return cls(
            outputs=times * sum(outputs for _, outputs in linear),
            sums=times * sum(inputs + outputs for inputs, outputs in linear),
            layers=times * len(linear),
            sites=times * len(sites),
            keys=times * sum(2 * site.key_heads * site.head_size for site in sites),
            depth=times * sum(is_here(name) for name in backbone.sites.layers),
        )


def _make_too_large_error(config: TuningConfig, name: str, rule: str, setting: str) -> LimitError:
    error = LimitError(f"{rule}; lower {name}, or ask the provider for a higher {setting}")
    error.param = f"method.{config.method}.hyperparameters.{name}"
    return error
