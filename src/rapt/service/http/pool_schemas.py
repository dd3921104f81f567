"""The shapes of pools, their contributions, and the keys of those who contribute."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from rapt.service.http.admin_schemas import NewKeyObject
from rapt.service.jobs.method_options import Request
from rapt.service.storage.pool_rows import MOST_CONTRIBUTIONS


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
