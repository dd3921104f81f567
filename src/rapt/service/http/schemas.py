"""The shapes of the API: OpenAI's objects, with what is ours under `rapt`; and tenants, keys and the audit log.

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
from rapt.service.storage.pool_rows import MOST_CONTRIBUTIONS

T = TypeVar("T")

# Whatever the settings say; a list stops at its first wrong item, or it would hold an error for each.
MOST_RECORDS: Final = 65_536
_LARGEST = 2**53  # what every JSON reader still counts exactly
Count = Annotated[int, Field(ge=0, le=_LARGEST)]


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
    """Why a job failed."""

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


class QuotasRequest(Request):
    """Quotas of a tenant; what is left out or null is as the service's settings say."""

    max_bytes: Count | None = None
    max_jobs: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    tokens_per_minute: Count | None = None


class TenantRequest(QuotasRequest):
    """A tenant to be created."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]


class KeyRequest(Request):
    """A key to be created."""

    role: Literal["tenant", "admin"] = "tenant"


class RotationRequest(Request):
    """How long the old key stays good."""

    grace_seconds: Annotated[int, Field(ge=0, le=30 * 24 * 3600)] = 0


class QuotasObject(BaseModel):
    """Quotas that hold for a tenant: its own, or the service's."""

    max_bytes: int
    max_jobs: int
    tokens_per_minute: int


class UsageObject(BaseModel):
    """Usage and quotas of a tenant."""

    object: Literal["usage"] = "usage"
    tenant: str
    bytes: int
    jobs: int = Field(description="number of jobs that have not ended")
    files: int
    models: int
    quotas: QuotasObject


class TenantObject(BaseModel):
    """A tenant. Its quotas are null where the service's settings hold."""

    id: str = Field(description="name of the tenant")
    object: Literal["tenant"] = "tenant"
    created_at: int
    max_bytes: int | None
    max_jobs: int | None
    tokens_per_minute: int | None


class DeletedTenant(BaseModel):
    """Answer to the deletion of a tenant and of all it had."""

    id: str
    object: Literal["tenant"] = "tenant"
    deleted: Literal[True] = True


class KeyObject(BaseModel):
    """Description of an API key, without the key."""

    id: str
    object: Literal["api_key"] = "api_key"
    tenant: str
    role: Literal["contributor", "tenant", "admin"]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    pool: str | None = Field(default=None, description="the pool that the key of a contributor adds to")


class NewKeyObject(KeyObject):
    """A new API key, shown this once."""

    value: str = Field(description="the key; nobody can show it again")


class AuditObject(BaseModel):
    """One line of the audit log."""

    id: str
    object: Literal["audit_entry"] = "audit_entry"
    created_at: int
    tenant: str = Field(description="tenant of the key that made the change")
    key: str = Field(description="id of the key it was done with")
    action: str
    target: str = Field(description="id of what it was done to")


class PoolRequest(Request):
    """A pool to be opened."""

    manifest: Annotated[
        dict[str, Any], Field(description="manifest of a privatized file whose setting the contributions have")
    ]
    least: Annotated[
        int, Field(ge=2, le=MOST_CONTRIBUTIONS, description="contributions below which no file is made")
    ] = 20
    most: Annotated[int, Field(ge=2, le=MOST_CONTRIBUTIONS, description="contributions that it takes")] = 100_000
    first: Annotated[
        int | None,
        Field(
            ge=2,
            le=MOST_CONTRIBUTIONS,
            description="contributions of a first round, which give the centre of the code and are in no file; "
            "null for one round",
        ),
    ] = None


class PoolKeysRequest(Request):
    """Keys for the contributors of a pool."""

    count: Annotated[int, Field(ge=1, le=1000)] = 1
    contributions: Annotated[
        int, Field(ge=1, le=MOST_CONTRIBUTIONS, description="contributions that each key may add")
    ] = 1


_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Receipt = Annotated[str, Field(pattern="^([0-9a-f]{24}|[0-9a-f]{64})$")]


class Contribution(Request):
    """A privatized record and its receipt."""

    receipt: Annotated[_Receipt, Field(description="96 or 256 random bits of the contributor, which take it back")]
    record: dict[str, Any]


class ContributionRequest(Contribution):
    """A privatized record for a pool, and others that come with it."""

    setting: Annotated[_Digest, Field(description="digest of the setting that the records were privatized by")]
    others: Annotated[
        list[Contribution],
        Field(default_factory=list, max_length=999, description="more of the same key; all are taken, or none is"),
    ]


class TakeBackRequest(Request):
    """A contribution to be taken back."""

    receipt: _Receipt


class ContributionObject(BaseModel):
    """Answer to a contribution: nothing of it but whether it is in the pool."""

    object: Literal["contribution"] = "contribution"
    pool: str
    taken: bool


class PoolObject(BaseModel):
    """A pool of contributions."""

    id: str
    object: Literal["pool"] = "pool"
    status: Literal["open", "closing", "closed"]
    manifest: dict[str, Any]
    setting: str = Field(description="digest of the setting, which a contribution names")
    least: int
    most: int
    contributions: int
    created_at: int
    file: str | None = Field(description="the file that it became, once it is closed")
    round: int = Field(description="1 while contributions give the centre of the code, and of one round; else 2")
    first: int | None = Field(description="contributions that the first of two rounds needs; null of one round")
    center: str | None = Field(description="second centre of the code that the manifest is of; null of a code as it is")


class PoolKeysObject(BaseModel):
    """New keys of contributors, shown this once."""

    object: Literal["list"] = "list"
    data: list[NewKeyObject]
