"""The shapes of uploads in parts: OpenAI's."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from rapt.service.http.schemas import FileObject
from rapt.service.jobs.method_options import Request


class UploadStart(Request):
    """Body of `POST /v1/uploads`."""

    filename: Annotated[str, Field(max_length=4096)]
    purpose: Literal["fine-tune"]
    bytes: Annotated[int, Field(ge=1, le=2**53)]
    mime_type: Annotated[str, Field(max_length=256, description="not looked at: the file says what it is")]


class PartRequest(BaseModel):
    """Form of a part."""

    model_config = ConfigDict(extra="forbid")

    data: UploadFile = Field(description="some bytes of the file")


class CompleteRequest(Request):
    """Body of the end of an upload."""

    part_ids: Annotated[
        list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=10_000, fail_fast=True)
    ]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$", description="of the whole file, to be checked")] | None = (
        None
    )


class PartObject(BaseModel):
    """A part that has arrived."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class UploadObject(BaseModel):
    """An upload in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["fine-tune"]
    status: str = Field(description="pending, completed, cancelled or expired")
    file: FileObject | None
