"""The shapes of the API: OpenAI's objects, with what is ours under `rapt`.

A request with a field that is not here is refused, never half understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, Self, TypeVar

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rapt.errors import UsageError
from rapt.service.adapter.methods.method import Text
from rapt.service.jobs.method_options import (
    SUPERVISED,
    MethodOptions,
    OpenAIRequest,
    Request,
    SupervisedHyperparameters,
)

T = TypeVar("T")

# Whatever the settings say; a list stops at its first wrong item, or it would hold an error for each.
MOST_RECORDS: Final = 65_536
# How long a file is kept, s: an hour to 30 days, as at OpenAI.
Lifetime = Annotated[int, Field(ge=3600, le=2_592_000, description="seconds after which the file goes by itself")]


class UploadRequest(BaseModel):
    """Form of `POST /v1/files`."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile = Field(description="a privatized file, as `rapt privatize` writes it")
    purpose: Literal["fine-tune"]
    # As OpenAI's clients write an object into a form.
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: Lifetime | None = Field(None, alias="expires_after[seconds]")

    @model_validator(mode="after")
    def _need_both(self) -> Self:
        if (self.anchor is None) != (self.seconds is None):
            raise ValueError("expires_after must have anchor and seconds; send both, or none")
        return self


Metadata = Annotated[
    dict[Annotated[Text, Field(min_length=1, max_length=64)], Annotated[Text, Field(max_length=512)]],
    Field(max_length=16),
]


# A model's name may be that long: names of a base and of a tenant, a suffix, and what is around them.
Name = Annotated[Text, Field(max_length=512)]


class JobExtension(Request):
    """Settings of a job that OpenAI's shape has no place for."""

    priority: Annotated[
        int, Field(ge=-100, le=100, description="rank among the tenant's own jobs; the highest runs first")
    ] = 0


class JobDetail(JobExtension):
    """Settings and progress of a job that OpenAI's shape has no place for."""

    deaths: int = Field(description="times that what ran the job died, since it got any further")
    waits_because: str | None = Field(description="why nobody will run it for now")


class JobRequest(OpenAIRequest):
    """Body of `POST /v1/fine_tuning/jobs`."""

    harmless: ClassVar[Mapping[str, tuple[object, ...]]] = {"integrations": ([],)}

    model: Name = Field(description="name of a base model")
    training_file: Name = Field(description="id of an uploaded file")
    method: MethodOptions | None = None
    hyperparameters: (
        Annotated[
            SupervisedHyperparameters,
            Field(description="settings as older clients send them, in place of those of method `supervised`"),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    validation_file: (
        Annotated[Name, Field(description="id of another uploaded file, to choose the best epoch by")] | None
    ) = None
    metadata: Metadata | None = None
    rapt: JobExtension | None = None

    @property
    def asked_method(self) -> MethodOptions | None:
        """How to adapt the backbone, wherever in the request its settings stand.

        Raises:
            UsageError: They stand in two places.
        """
        if self.hyperparameters is None:
            return self.method
        if self.method is not None and (
            not self.method.is_left_to_the_service or self.method.model_fields_set != {"type"}
        ):
            error = UsageError("the settings of a job must be in its method alone; leave out hyperparameters beside it")
            error.param = "hyperparameters"
            raise error
        options = {"type": SUPERVISED, SUPERVISED: {"hyperparameters": self.hyperparameters}}
        return MethodOptions.model_validate(options)


class ClassifyRequest(Request):
    """Body of `POST /v1/classify`: records as in a privatized file, and the manifest that counts them."""

    model: Name = Field(description="name of a tuned model")
    manifest: dict[str, Any]
    records: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_RECORDS, fail_fast=True)


class ErrorDetail(BaseModel):
    """Description of an error."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail


class FileDetail(BaseModel):
    """Statement of a privatized file about itself."""

    vocabulary_hash: str
    mechanism: dict[str, Any]
    insecure_seed: bool = Field(description="true: the noise came from a seed, and protects nothing")
    records: int
    tokens: int
    plain_tokens: int
    labels: int
    sha256: str = Field(description="SHA-256 of the uploaded bytes, in hex; compare it before you upload again")


class FileObject(BaseModel):
    """A privatized file that was uploaded."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    rapt: FileDetail


class JobError(BaseModel):
    """Reason why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobObject(BaseModel):
    """A tuning job in OpenAI's shape."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    model: str
    training_file: str
    validation_file: str | None
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    seed: int
    suffix: str | None
    created_at: int
    finished_at: int | None
    fine_tuned_model: str | None
    trained_tokens: int | None
    error: JobError | None
    organization_id: str = Field(description="name of the tenant")
    result_files: list[str] = Field(default_factory=list)
    metadata: dict[str, str] | None
    rapt: JobDetail


class EventObject(BaseModel):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any] | None


class CheckpointObject(BaseModel):
    """Model that a job would have left at the end of an epoch."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str = Field(description="name of the checkpoint as a model")
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]


class ModelDetail(BaseModel):
    """A model's base and its kind, the hash of its vocabulary, and its card if it is tuned."""

    base: str
    kind: Literal["encoder", "encoder-decoder", "decoder"] = Field(
        description="kind of the base model; all but encoders can write text untuned"
    )
    vocabulary_hash: str
    max_tokens: int
    unit: Literal["token", "text"] = Field(
        description="what a privatized id stands for: a token, or a whole text, whose codebook is below /v1/codes"
    )
    methods: dict[str, str] = Field(description="the tuning methods of this model, each with a title for people")
    chat_template: bool = Field(description="whether a chat with the base model is put into a template of its authors")
    card: dict[str, Any] | None = None


class ModelObject(BaseModel):
    """A base model, or a tuned one."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    rapt: ModelDetail


class Deleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["file", "model", "pool"]
    deleted: Literal[True] = True


class ListOf(BaseModel, Generic[T]):
    """One page; the next one starts `after` the last id."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class PredictionObject(BaseModel):
    """The answer for one record; probabilities in the order of the labels."""

    label: str
    label_index: int
    probabilities: list[float]


class Classification(BaseModel):
    """Answers in the order of the records."""

    object: Literal["classification"] = "classification"
    model: str
    labels: list[str]
    predictions: list[PredictionObject]


class Health(BaseModel):
    """Sign that the service answers."""

    status: Literal["ok"] = "ok"
    version: str


class ExpiresAfter(Request):
    """How long the file that an upload becomes is kept."""

    anchor: Literal["created_at"]
    seconds: Lifetime


class UploadStart(Request):
    """Body of `POST /v1/uploads`."""

    filename: Annotated[str, Field(max_length=4096)]
    purpose: Literal["fine-tune"]
    bytes: Annotated[int, Field(ge=1, le=2**53)]
    mime_type: Annotated[str, Field(max_length=256, description="not looked at: the file says what it is")]
    expires_after: ExpiresAfter | None = None


class PartRequest(BaseModel):
    """Form of a part."""

    model_config = ConfigDict(extra="forbid")

    data: UploadFile = Field(description="some bytes of the file")


class CompleteRequest(Request):
    """Body of the end of an upload."""

    part_ids: Annotated[
        list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=10_000, fail_fast=True)
    ]
    md5: (
        Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$", description="MD5 of the whole file, in hex; it is checked")]
        | None
    ) = None


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


class AdapterRequest(BaseModel):
    """Form of `POST /v1/adapters`."""

    model_config = ConfigDict(extra="forbid")

    card: UploadFile = Field(description="content of rapt.json")
    weights: UploadFile = Field(description="content of adapter_model.safetensors")
    config: UploadFile | None = Field(None, description="adapter_config.json; checked against the weights")
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
