"""What a tuning job may ask for: methods and their hyper-parameters. `auto` leaves one to the service."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rapt.wire.manifest import MOST_LABELS
from rapt.wire.strict_json import is_text


def _kept(value: str) -> str:
    if not is_text(value):
        raise ValueError("must have no control character and no lone surrogate")
    return value


Auto = Literal["auto"]
# What is kept and shown again, or looked up in the database.
Text = Annotated[str, AfterValidator(_kept)]
Word = Annotated[Text, Field(min_length=1, max_length=64)]


class Request(BaseModel):
    """Base of what comes in: exact fields, exact types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ReconstructionOptions(Request):
    """Privatized token reconstruction: its share of the loss, and the width of its head."""

    weight: Annotated[float, Field(ge=0, le=10_000)] | Auto = "auto"
    hidden_size: Annotated[int, Field(ge=1, le=8192)] | Auto = "auto"
    schedule: Annotated[Literal["constant", "rise", "fall"] | Auto, Field(description="of the weight over the run")] = (
        "auto"
    )


class HyperparameterOptions(Request):
    """What can be set of every run; `reconstruction` null trains without, auto with if the file has plain tokens."""

    task: Literal["classification", "label_words", "generation"] | Auto = "auto"
    label_words: Annotated[
        Annotated[list[Word], Field(max_length=MOST_LABELS, fail_fast=True)] | Auto,
        Field(description="public: a word for each class, for task label_words"),
    ] = "auto"
    n_epochs: Annotated[int, Field(ge=1, le=1000)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Auto = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=100)] | Auto = "auto"
    patience: Annotated[
        Annotated[int, Field(ge=0, le=1000)] | Auto,
        Field(description="epochs without a lower validation loss after which a run stops; 0 never"),
    ] = "auto"
    reconstruction: ReconstructionOptions | Auto | None = "auto"


class PromptHyperparameters(HyperparameterOptions):
    """Of a soft prompt."""

    num_virtual_tokens: Annotated[int, Field(ge=1, le=256)] | Auto = "auto"
    initialization: Literal["vocabulary", "random", "text", "labels"] | Auto = "auto"
    init_text: Annotated[
        Annotated[Text, Field(min_length=1, max_length=4096)] | None,
        Field(description="public words for initialization text; they are sent and kept in clear"),
    ] = None


class PTuningHyperparameters(PromptHyperparameters):
    """Of a soft prompt that a network makes."""

    encoder: Literal["mlp", "lstm"] | Auto = "auto"
    encoder_hidden_size: Annotated[int, Field(ge=1, le=8192)] | Auto = "auto"


class PrefixHyperparameters(PromptHyperparameters):
    """Of a prefix; `encoder` is the network that makes it."""

    encoder: Literal["none", "mlp"] | Auto = "auto"
    encoder_hidden_size: Annotated[int, Field(ge=1, le=8192)] | Auto = "auto"


class LoraHyperparameters(HyperparameterOptions):
    """Of a low-rank change."""

    r: Annotated[int, Field(ge=1, le=256)] | Auto = "auto"
    lora_alpha: Annotated[float, Field(gt=0, le=10_000)] | Auto = "auto"
    target_modules: Annotated[
        Annotated[list[Word], Field(max_length=64, fail_fast=True)] | Auto,
        Field(description="last part of the names of linear layers"),
    ] = "auto"


class PromptTuningOptions(Request):
    """Options of one method."""

    hyperparameters: PromptHyperparameters = Field(default_factory=PromptHyperparameters)


class PTuningOptions(Request):
    """Options of one method."""

    hyperparameters: PTuningHyperparameters = Field(default_factory=PTuningHyperparameters)


class PrefixTuningOptions(Request):
    """Options of one method."""

    hyperparameters: PrefixHyperparameters = Field(default_factory=PrefixHyperparameters)


class LoraOptions(Request):
    """Options of one method."""

    hyperparameters: LoraHyperparameters = Field(default_factory=LoraHyperparameters)


class LinearProbingOptions(Request):
    """Options of one method."""

    hyperparameters: HyperparameterOptions = Field(default_factory=HyperparameterOptions)


class MethodOptions(Request):
    """How to adapt the backbone; the options of the method that `type` names are read.

    `auto` is prompt tuning, on a backbone that expects the file's noise where one is served.
    """

    type: Literal["auto", "prompt_tuning", "p_tuning", "prefix_tuning", "lora", "linear_probing"]
    auto: PromptTuningOptions = Field(default_factory=PromptTuningOptions)
    prompt_tuning: PromptTuningOptions = Field(default_factory=PromptTuningOptions)
    p_tuning: PTuningOptions = Field(default_factory=PTuningOptions)
    prefix_tuning: PrefixTuningOptions = Field(default_factory=PrefixTuningOptions)
    lora: LoraOptions = Field(default_factory=LoraOptions)
    linear_probing: LinearProbingOptions = Field(default_factory=LinearProbingOptions)

    @property
    def hyperparameters(self) -> HyperparameterOptions:
        """Those of the method that `type` names."""
        found: HyperparameterOptions = getattr(self, self.type).hyperparameters
        return found
