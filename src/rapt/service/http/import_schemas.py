"""The shape of an adapter that comes in."""

from __future__ import annotations

from typing import Annotated

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field


class AdapterRequest(BaseModel):
    """Form of `POST /v1/adapters`."""

    model_config = ConfigDict(extra="forbid")

    card: UploadFile = Field(description="rapt.json")
    weights: UploadFile = Field(description="adapter_model.safetensors")
    config: UploadFile | None = Field(None, description="adapter_config.json; checked against the weights")
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
