"""The settings of a service: read once, from arguments and the environment (`RAPT_...`), then frozen.

On loopback a service is taken to be in development. One that listens on more must have keys, which only the store can
tell (`assembly`), and must not have one that came out of a manual. A mistyped variable would be ignored without a word,
so the log names each that looks like a setting and is none.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rapt.errors import UsageError
from rapt.public_models import PUBLIC_MODELS, name_model
from rapt.service.storage.tenant_rows import MOST_FILES, MOST_MODELS
from rapt.this_machine import is_loopback

MEBIBYTE: Final = 1024 * 1024
SHORTEST_KEY: Final = 16
_KEY: Final = re.compile(rf"[!-~]{{{SHORTEST_KEY},}}")  # what fits into a header, and into one word of it
# What people put where a secret should be, and what manuals put there for them.
_PLACEHOLDERS: Final = (
    "changeme", "changethis", "password", "secret", "example", "yourapikey", "yourkey", "default", "insert", "replace",
    "placeholder", "todo", "12345678", "abcdefgh", "qwerty",
)  # fmt: skip
_FEWEST_DIFFERENT: Final = 8
# A model's name stands between colons in `ft:{base}:{suffix}:{id}` and in a URL.
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger(__name__)

_PREFIX: Final = "RAPT_"
# Read by other parts than the settings, or by tests of this project.
_OTHERS: Final = frozenset(
    "RAPT_API_KEY RAPT_CACHE_DIR RAPT_CA_FILE RAPT_DEBUG RAPT_LEDGER_KEY RAPT_NATIVE RAPT_NODE_MODULES "
    "RAPT_PROFILE RAPT_SERVICE RAPT_TEST_POSTGRESQL RAPT_TEST_S3 RAPT_TEST_SEED".split()
)
_VARIABLE: Final = re.compile(r"[A-Z0-9_]{1,64}")


# Settings that say something of a Ray cluster, and nothing without one.
_OF_CLUSTERS: Final = (
    "ray_address",
    "replicas",
    "most_replicas",
    "replica_requests",
    "replica_up_seconds",
    "replica_down_seconds",
    "replica_cores",
    "replica_gpus",
    "keep_replicas",
    "jobs_at_once",
)


class Settings(BaseSettings):
    """Everything that a provider can set; each field is also the environment variable `RAPT_{FIELD}`."""

    model_config = SettingsConfigDict(env_prefix="RAPT_", frozen=True, validate_default=True)

    data_directory: Path = Field(Path("rapt-data"), description="the one folder that holds all state")
    host: str = Field("127.0.0.1", description="address to listen on; other than loopback only with a key")
    port: int = Field(8420, ge=0, le=65535, description="0 takes a free one")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("minilm",), min_length=1, description="base models: known names or folders; in the environment, with commas"
    )
    admin_key: SecretStr | None = Field(
        None, description=f"a key of the provider's own, {SHORTEST_KEY} characters or more; tenants get theirs"
    )
    database_url: SecretStr | None = Field(
        None, description="URL of a PostgreSQL database; default: SQLite in the data directory"
    )
    database_connections: int = Field(
        10, ge=1, description="most database connections of each process; further requests wait"
    )
    blobs: SecretStr | None = Field(
        None,
        description="URL of an object store for files and adapters, as s3://bucket/prefix; without it the data "
        "directory. The same for every process of a service",
    )
    tls_cert: Path | None = Field(None, description="certificate chain in PEM, to serve HTTPS; with tls_key")
    tls_key: Path | None = Field(None, description="private key of the certificate in PEM")
    tenant_bytes: int = Field(
        16 * 1024 * MEBIBYTE,
        ge=0,
        description="most bytes of a tenant's files, models and checkpoints, unless it has its own quota",
    )
    tenant_jobs: int = Field(100, ge=0, description="most unfinished jobs of a tenant, unless it has its own quota")
    tenant_files: int = Field(MOST_FILES, ge=0, description="most files of a tenant, however small")
    tenant_models: int = Field(MOST_MODELS, ge=0, description="most tuned models of a tenant, checkpoints counted")
    tenant_tokens_per_minute: int = Field(
        10_000_000, ge=0, description="most tokens of a tenant's predictions a minute, unless it has its own quota"
    )
    max_file_bytes: int = Field(1024 * MEBIBYTE, ge=1, description="size of the largest upload")
    max_part_bytes: int = Field(64 * MEBIBYTE, ge=1, description="largest part of an upload in parts")
    max_request_bytes: int = Field(32 * MEBIBYTE, ge=1, description="largest adapter that is imported")
    max_json_bytes: int = Field(4 * MEBIBYTE, ge=1, description="largest body of JSON")
    max_connections: int = Field(
        1000, ge=8, description="connections at once, fewer where the process may not open as many files"
    )
    head_seconds: float = Field(10.0, gt=0, description="for the head of a request, and for the handshake of TLS, s")
    body_seconds: float = Field(
        30.0, gt=0, description="for the body of a request, and 1 s more for each 16 KiB of it; for an unread answer, s"
    )
    keep_alive_seconds: int = Field(
        75, ge=6, description="a connection stays open unused, s; clients ask for news every 5 s at the latest"
    )
    tenant_requests: int = Field(
        128, ge=1, description="most requests of a tenant at once, waiting ones included; beyond, 429"
    )
    tenant_uploads: int = Field(2, ge=1, description="most uploads of a tenant that are received at once; others wait")
    max_records_per_request: int = Field(4096, ge=1, description="most records of one classification request")
    adapter_memory_bytes: int = Field(
        1024 * MEBIBYTE, ge=1, description="memory for tuned models kept loaded; the least used go first"
    )
    max_waiting_tokens: int = Field(
        262_144, ge=1, description="tokens of predictions that may wait for each base model; beyond, 429"
    )
    page: bool = Field(True, description="serve the page for the provider and the tenants at /")
    worker_in_service: bool = Field(True, description="run jobs in the serving process; false: by `rapt worker` alone")
    job_process: bool = Field(
        True, description="run jobs in a process of their own, which has the base models in memory once more"
    )
    job_memory_bytes: int | None = Field(
        None,
        ge=MEBIBYTE,
        description="memory of one job beside its base model; default: half of the machine's, or of its GPU's",
    )
    job_hidden_size: int = Field(4096, ge=1, description="widest network that a job may train beside a base model")
    job_virtual_tokens: int = Field(256, ge=1, description="longest prompt or prefix of a job")
    job_rank: int = Field(256, ge=1, description="highest rank of a job's LoRA")
    job_classes: int = Field(10_000, ge=2, description="most labels, or plain tokens to choose among, of a job")
    job_steps: int = Field(5_000_000, ge=1, description="most steps of a job")
    job_records: int = Field(100_000_000, ge=1, description="records of a job's files times its epochs")
    job_validation_records: int = Field(
        50_000, ge=1, description="records of a validation file: all are read after each epoch, while others wait"
    )
    job_gradient_checkpointing: Literal["auto", "always", "never"] = Field(
        "auto", description="compute layers again in place of keeping what they hold; auto: where memory asks for it"
    )
    job_attempts: int = Field(
        3, ge=1, description="times that a job may end what runs it, without getting any further, before it fails"
    )
    job_slice_seconds: float = Field(
        300.0, ge=0, description="after so long a job gives way to a waiting one of another tenant, s; 0 never"
    )
    run_state_seconds: float = Field(15.0, ge=0, description="how much work of a job a crash may cost, s")
    job_log: Path | None = Field(
        None, description="folder for TensorBoard's event files of jobs; ids, numbers and times. Needs [tensorboard]"
    )
    job_logger: str | None = Field(
        None, description="function of your own, as module:function, that makes what takes the figures of a job"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="what computes predictions and runs jobs: this machine, or a Ray cluster; needs [ray]"
    )
    ray_address: str | None = Field(
        None, description="HOST:PORT of the head node of the Ray cluster; default: one that is started here"
    )
    replicas: int = Field(
        1, ge=1, description="replicas of the base models on the cluster; the fewest, where it scales"
    )
    most_replicas: int | None = Field(
        None, ge=1, description="most replicas: Ray Serve adds and takes away by what is asked; default: as replicas"
    )
    replica_requests: float = Field(
        8.0, gt=0, description="calls at once for each replica that Ray Serve aims at when it scales"
    )
    replica_up_seconds: float = Field(
        30.0, gt=0, description="how long more must be asked before a replica is added, s"
    )
    replica_down_seconds: float = Field(
        600.0, gt=0, description="how long less must be asked before a replica is taken away, s"
    )
    replica_cores: float = Field(1.0, ge=0, description="cores of a replica")
    replica_gpus: float = Field(0.0, ge=0, description="GPUs of a replica, or a part of one")
    keep_replicas: bool = Field(
        False, description="leave the replicas on the cluster when the service stops, for the next or another one"
    )
    jobs_at_once: int = Field(1, ge=1, le=1000, description="jobs that run at once on the cluster, a core each")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of the base models; auto measures. Name one where several processes run jobs"
    )
    device: str = Field(
        "auto", description="device of base models and jobs: cpu, cuda, cuda:N, or auto, a GPU where there is one"
    )
    weights: Literal["whole", "8bit", "4bit"] = Field(
        "whole", description="how weights of linear layers are kept in memory; 8bit and 4bit need [quantized]"
    )
    device_map: str = Field(
        "", description="devices of the layers of base models: auto, over all GPUs, or a file; needs [processes]"
    )
    torch_threads: int | None = Field(None, ge=1, description="threads of one matrix product; default: all cores")
    debug: bool = Field(
        False, description="print tracebacks with their messages, which may hold private text; also --debug"
    )
    ready_file: Path | None = Field(None, description="written once the service answers: its URL and process id")

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [name_served_model(model) for model in value]
        if len(set(names)) != len(names) or not all(_NAME.fullmatch(name) for name in names):
            raise ValueError("must be names or folders, each once, of letters, digits, dots, dashes and underscores")
        return value

    @field_validator("admin_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _KEY.fullmatch(value.get_secret_value()):
            raise ValueError(f"must have at least {SHORTEST_KEY} characters, printable ASCII without spaces")
        return value

    @model_validator(mode="after")
    def _refuse_a_default_secret(self) -> Self:
        key = reveal(self.admin_key)
        if key is not None and not is_loopback(self.host) and _is_placeholder(key):
            raise ValueError(
                "the setting admin_key must be a secret of its own outside development, not a placeholder; leave it "
                "out and create keys with `rapt admin create-key`"
            )
        return self

    @model_validator(mode="after")
    def _need_what_a_cluster_needs(self) -> Self:
        if self.engine == "local":
            for name in _OF_CLUSTERS:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"the setting {name} must come with engine=ray; set both, or none")
            return self
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise ValueError("the setting most_replicas must be at least replicas; raise it, or leave it out")
        if not self.job_process:
            raise ValueError(
                "the setting job_process must be true with engine=ray: jobs run where the cluster has room"
            )
        has_store = not (reveal(self.blobs) or "file:").startswith("file:")  # states of runs are kept in no other
        if self.ray_address is not None and self.worker_in_service and not (self.database_url and has_store):
            raise ValueError(
                "jobs on a cluster must find a database and an object store from every node; set database_url and "
                "blobs, other than file://, or worker_in_service=false, or leave ray_address out"
            )
        return self

    @model_validator(mode="after")
    def _need_both_halves_of_tls(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("the settings tls_cert and tls_key must come together; set both, or none")
        return self


def load_settings(overrides: Mapping[str, object]) -> Settings:
    """The settings from the environment, with `overrides` on top; an override of None is none.

    Raises:
        UsageError: A value breaks a rule. The message names the setting, never its value: it may be the key.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # checked by the class itself
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        rule = first["msg"].removeprefix("Value error, ")
        name = ".".join(str(part) for part in first["loc"][:1])
    raise UsageError(f"the setting {name} is refused: {rule}" if name else rule)


def reveal(secret: SecretStr | None) -> str | None:
    """Return the value of a secret setting; None where it is not set."""
    return None if secret is None else secret.get_secret_value()


def name_served_model(model: str) -> str:
    """The name under which a model is served: a folder goes by its last part, so no path of ours leaves."""
    return model if model in PUBLIC_MODELS else Path(name_model(model)).name


def _is_placeholder(key: str) -> bool:
    letters = "".join(character for character in key.lower() if character.isalnum())
    return len(set(key)) < _FEWEST_DIFFERENT or any(word in letters for word in _PLACEHOLDERS)


def warn_of_unknown_variables(names: Iterable[str]) -> None:
    """Log each name that begins as a setting's and is of none, with the one that may be meant; never a value."""
    known = {f"{_PREFIX}{field.upper()}" for field in Settings.model_fields} | _OTHERS
    # Case says nothing to the settings.
    for name in sorted({name.upper() for name in names}):
        if not name.startswith(_PREFIX) or name in known or not _VARIABLE.fullmatch(name):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        meant = f"; is {close[0]} meant?" if close else ""
        log.warning("the environment variable %s is of no setting and is not looked at%s", name, meant)
