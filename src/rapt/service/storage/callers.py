"""Who asks: a tenant, with a key, in a role. A value made at the door and handed to every change of the store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from rapt.errors import UsageError

Role = Literal["tenant", "admin"]
# Owner of everything in a service without keys, and of what was there before there were tenants.
LOCAL: Final = "local"
# A tenant's name stands between colons in the names of its models, and in URLs.
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        tenant: Name of the tenant that everything made belongs to, and that everything seen must belong to.
        key: Id of the API key, never the key.
        role: What else it may do.
    """

    tenant: str
    key: str
    role: Role


# The one who has the machine: a service on loopback without keys, and the command line on the data directory.
DEVELOPER: Final = Caller(tenant=LOCAL, key="development", role="admin")
OPERATOR: Final = Caller(tenant=LOCAL, key="command-line", role="admin")


def check_tenant_name(name: str) -> None:
    """Refuse a name that could not stand in a model's name. Raises `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            "a tenant's name must be 1 to 32 lower-case letters, digits and dashes, without a dash at either end"
        )
