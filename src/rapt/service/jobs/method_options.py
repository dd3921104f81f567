"""What a tuning job may ask for: methods and their hyper-parameters. `auto` leaves one to the service."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]


class Request(BaseModel):
    """Base of what comes in: exact fields, exact types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ReconstructionOptions(Request):
    """Privatized token reconstruction: its share of the loss, and the width of its head."""

    weight: Annotated[float, Field(ge=0, le=10_000)] | Auto = "auto"
    hidden_size: Annotated[int, Field(ge=1, le=8192)] | Auto = "auto"


class HyperparameterOptions(Request):
    """What can be set of a run; `reconstruction` null trains without, auto with if the file has plain tokens."""

    num_virtual_tokens: Annotated[int, Field(ge=1, le=256)] | Auto = "auto"
    n_epochs: Annotated[int, Field(ge=1, le=1000)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Auto = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=100)] | Auto = "auto"
    reconstruction: ReconstructionOptions | Auto | None = "auto"


class PromptTuningOptions(Request):
    """Options of one method."""

    hyperparameters: HyperparameterOptions = Field(default_factory=HyperparameterOptions)


class MethodOptions(Request):
    """How to adapt the backbone."""

    type: Literal["prompt_tuning"]
    prompt_tuning: PromptTuningOptions = Field(default_factory=PromptTuningOptions)
