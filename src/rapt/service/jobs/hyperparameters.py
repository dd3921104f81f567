"""From what a request asks to what a run does, and back: every `auto` resolved once, when the job is made.

The resolved values are stored with the job, so a job that waits or restarts does what it said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from rapt.errors import TuningError, UsageError, VocabularyError
from rapt.service.adapter.adapter_check import check_method
from rapt.service.adapter.methods import METHODS, PROMPT_TUNING
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.layout import sequence_length
from rapt.service.jobs.method_options import SETTINGS, MethodOptions, ReconstructionOptions
from rapt.service.storage.file_rows import StoredFile
from rapt.service.tuning.tasks import TASKS
from rapt.service.tuning.tuning_config import ReconstructionConfig, TuningConfig, make_default_config
from rapt.wire.vocabulary_bundle import shorten_hash

T = TypeVar("T")
RECONSTRUCTION_DEFAULTS: Final = ReconstructionConfig()


def resolve_config(
    options: MethodOptions | None, *, file: StoredFile, seed: int, auto: str = PROMPT_TUNING
) -> TuningConfig:
    """The run that a request asks for on this file; `auto` is the method where none is named.

    Raises:
        TuningError: The values cannot be trained with.
        UsageError: A learning rate and a factor on the method's own are both given.
    """
    options = options or MethodOptions(type="auto")
    method = auto if options.is_left_to_the_service else options.type
    asked = options.hyperparameters
    given = {
        field: _make_field(value)
        for name, field in SETTINGS[method].items()
        if (value := getattr(asked, name)) != "auto" and value is not None
    }
    factor: Any = getattr(asked, "learning_rate_multiplier", "auto")
    if factor != "auto":
        if "learning_rate" in given:
            raise UsageError(
                "a run must have a learning_rate or a learning_rate_multiplier, which is a factor on the method's own, "
                "got both; leave one out"
            )
        given["learning_rate"] = make_default_config(method).learning_rate * factor
    none = not METHODS[method].reconstructs and asked.reconstruction == "auto"
    reconstruction = None if none else _resolve_reconstruction(asked.reconstruction, file=file)
    return replace(make_default_config(method), **given, seed=seed, reconstruction=reconstruction)


def check_run(config: TuningConfig, *, file: StoredFile, backbone: Backbone) -> None:
    """Refuse at once what the tuner would refuse later, as far as the stored facts tell.

    Raises:
        VocabularyError: The file was privatized for another model.
        TuningError: It has no labels, or no plain tokens to reconstruct; or the backbone has nothing to adapt.
        UsageError: The longest record leaves no room for the prompt.
    """
    check_method(config.method, backbone=backbone)
    if file.vocabulary_hash != backbone.bundle.hash:
        raise VocabularyError(
            f"a training file must be privatized with the vocabulary of its model, "
            f"{shorten_hash(backbone.bundle.hash)}, "
            f"got {shorten_hash(file.vocabulary_hash)}; choose the other model or privatize again"
        )
    if config.task != "generation" and file.labels < 2:
        raise TuningError(
            f"a training file must name two labels at least, got labels={file.labels}; privatize with `label_column`"
        )
    if config.reconstruction is not None and file.plain_tokens == 0 and not backbone.plain_texts:
        raise TuningError(
            "reconstruction needs plain tokens, got plain_tokens=0; privatize with `plain_tokens`, or tune without it"
        )
    check_fit(config, file=file, backbone=backbone)


def check_fit(config: TuningConfig, *, file: StoredFile, backbone: Backbone) -> None:
    """Refuse a file whose longest record leaves no room for the prompt (`UsageError`)."""
    plain = 0 if config.reconstruction is None else file.plain_tokens
    # What the row of a file does not say can only add to it, and the tuner counts it: a target, what is between two
    # texts. What is known must be counted as the tuner counts it, or a run that fits would be refused.
    frame = backbone.frame
    around = len(frame.start) + len(frame.end) + len(TASKS[config.task].cue(backbone))
    needed = sequence_length(
        prompt_length=config.prompt_positions,
        plain_tokens=plain,
        text_tokens=file.longest * backbone.vectors_per_id,
        special_tokens=around,
    )
    if needed > backbone.max_positions:
        raise UsageError(
            f"the longest record must fit into {backbone.max_positions} positions, got {needed} with a prompt of "
            f"{config.prompt_positions}; privatize with a lower `truncate_to`, or shorten the prompt"
        )


def method_to_json(config: TuningConfig) -> dict[str, Any]:
    """A run in the shape of the API's `method`."""
    values = {name: getattr(config, field) for name, field in SETTINGS[config.method].items()}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    own = config.reconstruction
    values["reconstruction"] = (
        None if own is None else {"weight": own.weight, "hidden_size": own.head_size, "schedule": own.schedule}
    )
    return {"type": config.method, config.method: {"hyperparameters": values}}


def config_from_json(method: Mapping[str, Any], *, seed: int) -> TuningConfig:
    """The run of a stored job: the inverse of `method_to_json`."""
    kind = method["type"]
    values = method[kind]["hyperparameters"]
    given = {field: _make_field(values[name]) for name, field in SETTINGS[kind].items()}
    own = values["reconstruction"]
    reconstruction = None
    if own is not None:
        reconstruction = ReconstructionConfig(
            weight=own["weight"], head_size=own["hidden_size"], schedule=own["schedule"]
        )
    return replace(make_default_config(kind), **given, seed=seed, reconstruction=reconstruction)


def _resolve_reconstruction(
    asked: ReconstructionOptions | str | None, *, file: StoredFile
) -> ReconstructionConfig | None:
    if asked is None or (asked == "auto" and file.plain_tokens == 0):
        return None
    options = asked if isinstance(asked, ReconstructionOptions) else ReconstructionOptions()
    return ReconstructionConfig(
        weight=float(_take_or(options.weight, RECONSTRUCTION_DEFAULTS.weight)),
        head_size=_take_or(options.hidden_size, RECONSTRUCTION_DEFAULTS.head_size),
        schedule=_take_or(options.schedule, RECONSTRUCTION_DEFAULTS.schedule),
    )


def _take_or(asked: T | str, default: T) -> T:
    return default if isinstance(asked, str) else asked


def _make_field(value: Any) -> Any:
    """JSON has lists where a frozen value has tuples."""
    return tuple(value) if isinstance(value, list) else value
