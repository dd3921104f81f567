"""From what a request asks to what a run does, and back: every `auto` resolved once, when the job is made.

The resolved values are stored with the job, so a job that waits or restarts does what it said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from rapt.errors import TuningError, UsageError, VocabularyError
from rapt.service.jobs.method_options import MethodOptions, ReconstructionOptions
from rapt.service.model.layout import sequence_length
from rapt.service.model.tuner import PROMPT_TUNING, ReconstructionConfig, TuningConfig
from rapt.service.storage.file_rows import StoredFile
from rapt.wire.vocabulary_bundle import VocabularyBundle, short_hash

T = TypeVar("T")
DEFAULTS: Final = TuningConfig()
RECONSTRUCTION_DEFAULTS: Final = ReconstructionConfig()


def resolve_config(options: MethodOptions | None, *, file: StoredFile, seed: int) -> TuningConfig:
    """The run that a request asks for on this file.

    Raises:
        TuningError: The values cannot be trained with.
    """
    asked = (options or MethodOptions(type="prompt_tuning")).prompt_tuning.hyperparameters
    return TuningConfig(
        prompt_length=_or(asked.num_virtual_tokens, DEFAULTS.prompt_length),
        epochs=_or(asked.n_epochs, DEFAULTS.epochs),
        batch_size=_or(asked.batch_size, DEFAULTS.batch_size),
        learning_rate=float(_or(asked.learning_rate, DEFAULTS.learning_rate)),
        seed=seed,
        reconstruction=_reconstruction(asked.reconstruction, file=file),
    )


def check_run(config: TuningConfig, *, file: StoredFile, bundle: VocabularyBundle) -> None:
    """Refuse at once what the tuner would refuse later, as far as the stored facts tell.

    Raises:
        VocabularyError: The file was privatized for another model.
        TuningError: It has no labels, or no plain tokens to reconstruct.
        UsageError: Its longest record leaves no room for the prompt.
    """
    if file.vocabulary_hash != bundle.hash:
        raise VocabularyError(
            f"a training file must be privatized with the vocabulary of its model, {short_hash(bundle.hash)}, "
            f"got {short_hash(file.vocabulary_hash)}; choose the other model or privatize again"
        )
    if file.labels < 2:
        raise TuningError(
            f"a training file must name two labels at least, got labels={file.labels}; privatize with --label-column"
        )
    if config.reconstruction is not None and file.plain_tokens == 0:
        raise TuningError(
            "reconstruction needs plain tokens, got plain_tokens=0; privatize with --plain-tokens, or tune without it"
        )
    plain = 0 if config.reconstruction is None else file.plain_tokens
    needed = sequence_length(prompt_length=config.prompt_length, plain_tokens=plain, text_tokens=file.longest)
    if needed > bundle.max_tokens:
        raise UsageError(
            f"the longest record must fit into {bundle.max_tokens} positions, got {needed} with a prompt of "
            f"{config.prompt_length}; privatize with a lower --truncate, or shorten the prompt"
        )


def method_to_json(config: TuningConfig) -> dict[str, Any]:
    """A run in the shape of the API's `method`."""
    reconstruction = None
    if config.reconstruction is not None:
        reconstruction = {"weight": config.reconstruction.weight, "hidden_size": config.reconstruction.head_size}
    return {
        "type": PROMPT_TUNING,
        PROMPT_TUNING: {
            "hyperparameters": {
                "num_virtual_tokens": config.prompt_length,
                "n_epochs": config.epochs,
                "batch_size": config.batch_size,
                "learning_rate": config.learning_rate,
                "reconstruction": reconstruction,
            }
        },
    }


def config_from_json(method: Mapping[str, Any], *, seed: int) -> TuningConfig:
    """The run of a stored job: the inverse of `method_to_json`."""
    values = method[PROMPT_TUNING]["hyperparameters"]
    reconstruction = values["reconstruction"]
    return TuningConfig(
        prompt_length=values["num_virtual_tokens"],
        epochs=values["n_epochs"],
        batch_size=values["batch_size"],
        learning_rate=values["learning_rate"],
        seed=seed,
        reconstruction=None
        if reconstruction is None
        else ReconstructionConfig(weight=reconstruction["weight"], head_size=reconstruction["hidden_size"]),
    )


def _reconstruction(asked: ReconstructionOptions | str | None, *, file: StoredFile) -> ReconstructionConfig | None:
    if asked is None or (asked == "auto" and file.plain_tokens == 0):
        return None
    options = asked if isinstance(asked, ReconstructionOptions) else ReconstructionOptions()
    return ReconstructionConfig(
        weight=float(_or(options.weight, RECONSTRUCTION_DEFAULTS.weight)),
        head_size=_or(options.hidden_size, RECONSTRUCTION_DEFAULTS.head_size),
    )


def _or(asked: T | str, default: T) -> T:
    return default if isinstance(asked, str) else asked
