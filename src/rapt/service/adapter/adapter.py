"""The adapter: what tuning leaves behind, parts for a forward pass and a task head, with a card. A value, never a mode.

On disk it has PEFT's layout (`adapter_model.safetensors`, `adapter_config.json`, tensors by PEFT's names) and our card,
`rapt.json`. PEFT computes the same numbers with a LoRA, others with a prompt in a BERT or with a prefix: it puts a
prompt before [CLS], and shifts the text by the length of a prefix. A prefix of an encoder-decoder has no
`adapter_config.json`, because PEFT would put all of it into the decoder, and a head alone has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save as save_tensors
from torch import Tensor

from rapt.errors import TuningError, UsageError, VocabularyError, WireError, name_record
from rapt.service.adapter.adapter_check import (
    HEAD_BIAS,
    HEAD_SHARES,
    HEAD_WEIGHT,
    TAUGHT_BIAS,
    TAUGHT_WEIGHT,
    check_card,
    check_numbers,
    check_peft_config,
    compares,
    read_tensors,
)
from rapt.service.adapter.methods import METHODS
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.steering import Tuned
from rapt.whole_files import write_folder
from rapt.wire.adapter_files import AdapterCard, dump_card, parse_card
from rapt.wire.strict_json import dump_line, parse_document
from rapt.wire.vocabulary_bundle import shorten_hash

WEIGHTS: Final = "adapter_model.safetensors"
CARD: Final = "rapt.json"
PEFT_CONFIG: Final = "adapter_config.json"
_PEFT_TASKS: Final = {"encoder": "FEATURE_EXTRACTION", "encoder-decoder": "SEQ_2_SEQ_LM", "decoder": "CAUSAL_LM"}


@dataclass(frozen=True, eq=False)
class Adapter:
    """Tuned tensors and their task head.

    Attributes:
        tuned: Tensors that it adds to a forward pass, float32.
        head_weight: Task head, (C, h), float32, or (C, 3h) if it compares; C = 0 for an adapter that generates text.
        head_bias: Bias of the task head, (C,), float32.
        card: Description and origin of the adapter.
        label_shares: Share of each label among the training records as the head sees them, (C,), float32; None but for
            a head over codes that was solved. Answers at home need it (`rapt.at_home`).
        taught: Weight (C, h) and bias (C,) of a head over whole states of the code's encoder, taught on public text
            (`rapt.teaching`), float32; for answers at home alone. None where the service had no public text.
    """

    tuned: Tuned
    head_weight: Tensor
    head_bias: Tensor
    card: AdapterCard
    label_shares: Tensor | None = None
    taught: tuple[Tensor, Tensor] | None = None

    @property
    def compares(self) -> bool:
        """Whether the head reads how the two texts of a pair differ (`task_head.compare_texts`)."""
        return compares(self.card)

    @property
    def prompt(self) -> Tensor:
        """The soft prompt that the adapter adds, (P, h); it has no rows where there is none."""
        return self.head_weight[:0] if self.tuned.prompt is None else self.tuned.prompt


def save_adapter(adapter: Adapter, folder: Path) -> AdapterCard:
    """Write the files of an adapter; the folder appears whole or not at all. Returns the card as written.

    Args:
        adapter: Adapter to save.
        folder: Must not exist yet.
    """
    card, files = _write_files(adapter)
    write_folder(folder, files)
    return card


def load_adapter(folder: Path, *, backbone: Backbone) -> Adapter:
    """The adapter in a folder. Raises as `adapter_from_files`."""
    files = {}
    for name in (CARD, WEIGHTS, PEFT_CONFIG):
        with suppress(OSError):
            files[name] = (folder / name).read_bytes()
    return adapter_from_files(files, backbone=backbone)


def adapter_to_files(adapter: Adapter) -> dict[str, bytes]:
    """The files of an adapter, by name.

    Raises:
        TuningError: The weights are not finite, or larger than `adapter_from_files` takes: the run has diverged.
    """
    return _write_files(adapter)[1]


def adapter_from_files(files: Mapping[str, bytes], *, backbone: Backbone) -> Adapter:
    """The adapter in files by name, on the backbone's device.

    Raises:
        WireError: A file is missing, damaged, edited, or of an unknown version.
        VocabularyError: It was tuned on another backbone.
    """
    if CARD not in files or WEIGHTS not in files:
        raise WireError(f"an adapter must have {CARD} and {WEIGHTS}; tune again or copy both")
    card, weights = read_card(files[CARD]), files[WEIGHTS]
    if card.model != backbone.model:
        raise VocabularyError(
            f"an adapter must meet the backbone it was tuned on, got {backbone.model!r} for one of another; "
            "load that backbone"
        )
    if card.vocabulary_hash != backbone.bundle.hash:  # what a stranger's card says instead is not repeated
        raise VocabularyError(
            f"an adapter must be of its backbone's vocabulary {shorten_hash(backbone.bundle.hash)}, got another; load "
            "that backbone, or tune again"
        )
    if card.reader != (None if backbone.reader is None else backbone.reader.hash):
        raise VocabularyError(
            f"an adapter must meet the reader it was tuned behind, got {'another' if card.reader else 'one for none'}; "
            "serve that reader, or tune again"
        )
    check_card(card, backbone=backbone)
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise WireError("an adapter's weights must match the digest in its card; copy both files again")
    tensors = read_tensors(weights, card, backbone=backbone)
    adapter = Adapter(
        tuned=METHODS[card.method].form.from_tensors(tensors, card, backbone),
        head_weight=tensors[HEAD_WEIGHT],
        head_bias=tensors[HEAD_BIAS],
        card=card,
        label_shares=tensors.get(HEAD_SHARES),
        taught=(tensors[TAUGHT_WEIGHT], tensors[TAUGHT_BIAS]) if TAUGHT_WEIGHT in tensors else None,
    )
    if PEFT_CONFIG in files:
        check_peft_config(parse_document(files[PEFT_CONFIG], what=PEFT_CONFIG), make_peft_config(adapter))
    return adapter


def read_card(content: bytes) -> AdapterCard:
    """The card in a file. Raises `WireError` or `MechanismError`."""
    return parse_card(parse_document(content, what="the adapter card"))


def check_plain_tokens(adapter: Adapter | None, privatized: Sequence[int], *, position: int) -> None:
    """Refuse a record without the plain tokens that its adapter was tuned with (`UsageError`)."""
    expected = 0 if adapter is None else adapter.card.plain_tokens
    if len(privatized) != expected:
        raise UsageError(
            f"{name_record(position)} must have {expected} privatized plain tokens as in tuning, "
            f"got {len(privatized)}; privatize queries with the settings of the training file"
        )


def _write_files(adapter: Adapter) -> tuple[AdapterCard, dict[str, bytes]]:
    tensors = {HEAD_WEIGHT: adapter.head_weight, HEAD_BIAS: adapter.head_bias}
    if adapter.label_shares is not None:
        tensors[HEAD_SHARES] = adapter.label_shares
    if adapter.taught is not None:
        tensors |= dict(zip((TAUGHT_WEIGHT, TAUGHT_BIAS), adapter.taught, strict=True))
    tensors |= METHODS[adapter.card.method].form.to_tensors(adapter.tuned)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    try:
        check_numbers(tensors)
    except WireError as error:
        raise TuningError(f"{error}; the run has diverged: lower its learning rate") from None
    weights = save_tensors(tensors)
    card = replace(adapter.card, weights_sha256=hashlib.sha256(weights).hexdigest())
    files = {WEIGHTS: weights, CARD: dump_line(dump_card(card)).encode()}
    config = make_peft_config(adapter)
    if config is not None:
        files[PEFT_CONFIG] = json.dumps(config, indent=2).encode()
    return card, files


def make_peft_config(adapter: Adapter) -> dict[str, Any] | None:
    """PEFT's configuration of an adapter; None where PEFT has no such adapter."""
    card = adapter.card
    own = METHODS[card.method].form.peft(card, adapter.tuned)
    if own is None:
        return None
    task = _PEFT_TASKS[card.kind]
    return {"task_type": task, "base_model_name_or_path": card.model, "inference_mode": True} | own
