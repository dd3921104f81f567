"""A run state: everything a run needs to go on as if it had never stopped. safetensors and JSON, nothing pickled.

Tensors are what is trained, the optimizer's memory of it, and the best parameters so far. There is no state of a
generator: initial values and the order of records follow from the seed. A run state names the backbone, the files and
the settings of its run, and is refused by any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from rapt.errors import TuningError, VocabularyError, WireError
from rapt.service.backbone.backbone import Backbone
from rapt.service.tuning.tuning_config import TuningConfig, list_card_settings
from rapt.training import Losses
from rapt.whole_files import write_folder
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.strict_json import check_fields, dump_line, parse_object, read_field

SCHEMA: Final = "rapt.run-state/1"
TENSORS: Final = "run_state.safetensors"
STATE: Final = "run_state.json"


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """Identity of a run; a run state is good for one run only.

    Attributes:
        model: Name of the backbone.
        vocabulary_hash: Hash of the backbone's vocabulary.
        precision: Number format in which it computes; another one gives other numbers.
        training: Digest of the training file's records.
        validation: Digest of the validation file's records, or empty where there is no such file.
        settings: Digest of the settings.
    """

    model: str
    vocabulary_hash: str
    precision: str
    training: str
    validation: str
    settings: str


@dataclass(frozen=True, eq=False, kw_only=True)
class RunState:
    """A run after some of its steps.

    Attributes:
        run: Identity of the run that the state belongs to.
        step: Number of steps made.
        micro_batch_size: Records computed at once, as in the settings or fewer if memory was too small.
        tensors: `parameter/...`, `optimizer/...` and `best/...`.
        best_losses: Validation loss and accuracy of the best evaluation, by name; empty before the first.
        best_step: Step of it.
        evaluations_since: Evaluations after it.
        losses: Losses and accuracy of the latest step, by name; empty before the first.
    """

    run: RunIdentity
    step: int
    micro_batch_size: int
    tensors: Mapping[str, Tensor]
    best_losses: Losses
    best_step: int
    evaluations_since: int
    losses: Losses

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under one name, without it."""
        return {
            full.removeprefix(name + "/"): tensor
            for full, tensor in self.tensors.items()
            if full.startswith(name + "/")
        }


def identity(
    backbone: Backbone,
    config: TuningConfig,
    *,
    training: PrivatizedFile,
    validation: PrivatizedFile | None,
) -> RunIdentity:
    """Return the identity of a run with these arguments."""
    settings = dump_line({**list_card_settings(config), "init_text": config.init_text})
    return RunIdentity(
        model=backbone.model,
        # A reader's hash covers its codebook.
        vocabulary_hash=backbone.bundle.hash if backbone.reader is None else backbone.reader.hash,
        precision=str(backbone.dtype).removeprefix("torch.")
        + ("" if backbone.weights == "whole" else backbone.weights),
        training=training.manifest.records_sha256,
        validation="" if validation is None else validation.manifest.records_sha256,
        settings=hashlib.sha256(settings.encode()).hexdigest(),
    )


def check_same_run(state: RunState, run: RunIdentity) -> None:
    """Refuse a run state of another run.

    Raises:
        VocabularyError: The run state was made on another backbone.
        TuningError: The run state was made with another precision, other files or other settings.
    """
    was = state.run
    if (was.model, was.vocabulary_hash) != (run.model, run.vocabulary_hash):
        raise VocabularyError(
            f"a run state must be continued on the backbone it was made on, got {run.model!r} for one of "
            f"{was.model!r}; load that backbone"
        )
    for name in ("precision", "training", "validation", "settings"):
        if getattr(was, name) != getattr(run, name):
            raise TuningError(
                f"a run state must be continued as it was begun, got another {name}; repeat what it was begun with, "
                "or start a new run"
            )


def save_run_state(state: RunState, folder: Path) -> None:
    """Write the two files of a run state; the folder appears whole or not at all.

    Args:
        state: State to save.
        folder: Must not exist yet.
    """
    tensors = save_tensors({name: tensor.cpu().contiguous() for name, tensor in state.tensors.items()})
    described = {
        "schema": SCHEMA,
        "run": {name: getattr(state.run, name) for name in RunIdentity.__dataclass_fields__},
        "step": state.step,
        "micro_batch_size": state.micro_batch_size,
        "best_losses": dict(state.best_losses),  # a float is written so that it is read back to the last bit
        "best_step": state.best_step,
        "evaluations_since": state.evaluations_since,
        "losses": dict(state.losses),
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    write_folder(folder, {TENSORS: tensors, STATE: json.dumps(described, indent=2, allow_nan=False).encode()})


def pack_run_state(folder: Path) -> bytes:
    """The files of a run state in one piece: the length of the first in eight bytes, and both."""
    first, second = ((folder / name).read_bytes() for name in (STATE, TENSORS))
    return len(first).to_bytes(8, "big") + first + second


def unpack_run_state(content: bytes, folder: Path) -> None:
    """Write the files that `pack_run_state` put together; what is no run state is for `load_run_state` to refuse."""
    end = 8 + int.from_bytes(content[:8], "big")
    folder.mkdir(mode=0o700)
    (folder / STATE).write_bytes(content[8:end])
    (folder / TENSORS).write_bytes(content[end:])


def load_run_state(folder: Path) -> RunState:
    """The run state in a folder. `tune` checks that it is of the run that is to go on.

    Raises:
        WireError: A file is missing, damaged, edited, or of an unknown version.
    """
    what = "a run state"
    try:
        state = parse_object((folder / STATE).read_bytes(), what=what)
        content = (folder / TENSORS).read_bytes()
    except OSError:
        raise WireError(f"{what} must have {STATE} and {TENSORS}; start a new run") from None
    if state.get("schema") != SCHEMA:
        raise WireError(f"{what} must be of schema {SCHEMA!r}; upgrade rapt or start a new run")
    names = {"schema", "run", "step", "micro_batch_size", "best_losses", "best_step", "evaluations_since", "losses"}
    check_fields(state, required=names | {"tensors_sha256"}, optional=set(), what=what)
    if hashlib.sha256(content).hexdigest() != state["tensors_sha256"]:
        raise WireError(f"{what} must match the digest in {STATE}; start a new run")
    try:
        tensors = load_tensors(content)
    except SafetensorError:
        raise WireError(f"{what} must hold tensors in safetensors; start a new run") from None
    return RunState(
        run=_parse_identity(read_field(state, "run", dict, what=what)),
        step=read_field(state, "step", int, what=what),
        micro_batch_size=read_field(state, "micro_batch_size", int, what=what),
        tensors=tensors,
        best_losses=_read_losses(state, "best_losses", what=what),
        best_step=read_field(state, "best_step", int, what=what),
        evaluations_since=read_field(state, "evaluations_since", int, what=what),
        losses=_read_losses(state, "losses", what=what),
    )


def _read_losses(state: Mapping[str, Any], name: str, *, what: str) -> Losses:
    losses = read_field(state, name, dict, what=what)
    return {key: read_field(losses, key, float, what=what) for key in losses}


def _parse_identity(value: Mapping[str, Any]) -> RunIdentity:
    what = "the run in a run state"
    check_fields(value, required=set(RunIdentity.__dataclass_fields__), optional=set(), what=what)
    return RunIdentity(
        model=read_field(value, "model", str, what=what),
        vocabulary_hash=read_field(value, "vocabulary_hash", str, what=what),
        precision=read_field(value, "precision", str, what=what),
        training=read_field(value, "training", str, what=what),
        validation=read_field(value, "validation", str, what=what),
        settings=read_field(value, "settings", str, what=what),
    )
