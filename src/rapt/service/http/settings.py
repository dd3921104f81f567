"""The settings of a service: read once, from arguments and the environment (`RAPT_...`), then frozen.

A service that listens on more than loopback must have a key, and the check is here: one that breaks the rule is never
built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rapt.errors import UsageError
from rapt.public_models import PUBLIC_MODELS
from rapt.wire.addresses import is_loopback

MEBIBYTE: Final = 1024 * 1024
SHORTEST_KEY: Final = 16
_KEY: Final = re.compile(rf"[!-~]{{{SHORTEST_KEY},}}")  # what fits into a header, and into one word of it
# A model's name stands between colons in `ft:{base}:{suffix}:{id}` and in a URL.
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Settings(BaseSettings):
    """Everything that a provider can set; each field is also the environment variable `RAPT_{FIELD}`."""

    model_config = SettingsConfigDict(env_prefix="RAPT_", frozen=True, validate_default=True)

    data_directory: Path = Field(Path("rapt-data"), description="the one folder that holds all state")
    host: str = Field("127.0.0.1", description="address to listen on; other than loopback only with a key")
    port: int = Field(8420, ge=0, le=65535, description="0 takes a free one")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("minilm",), min_length=1, description="base models: known names or folders; in the environment, with commas"
    )
    api_key: SecretStr | None = Field(None, description=f"what clients must send, {SHORTEST_KEY} characters or more")
    max_file_bytes: int = Field(1024 * MEBIBYTE, ge=1, description="largest upload")
    max_request_bytes: int = Field(32 * MEBIBYTE, ge=1, description="largest body of any other request")
    max_records_per_request: int = Field(4096, ge=1, description="most records of one classification request")
    adapter_memory_bytes: int = Field(
        1024 * MEBIBYTE, ge=1, description="memory for tuned models kept loaded; the least used go first"
    )
    max_waiting_tokens: int = Field(
        262_144, ge=1, description="tokens of predictions that may wait for each base model; beyond, 429"
    )
    torch_threads: int | None = Field(None, ge=1, description="threads of one matrix product; default: all cores")
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
        names = [served_name(model) for model in value]
        if len(set(names)) != len(names) or not all(_NAME.fullmatch(name) for name in names):
            raise ValueError("must be names or folders, each once, of letters, digits, dots, dashes and underscores")
        return value

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _KEY.fullmatch(value.get_secret_value()):
            raise ValueError(f"must have at least {SHORTEST_KEY} characters, printable ASCII without spaces")
        return value

    @model_validator(mode="after")
    def _refuse_an_open_door(self) -> Self:
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError("a service without an api_key must listen on loopback only; set api_key or host")
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


def served_name(model: str) -> str:
    """The name under which a model is served: a folder goes by its last part, so no path of ours leaves."""
    return model if model in PUBLIC_MODELS else Path(model).resolve().name
