"""Every error that `rapt` raises on purpose, in one tree.

    RaptError                      exit 1
    ├── UsageError                 exit 2   an argument breaks a rule before any work starts
    ├── CorpusError                exit 3   a file of texts cannot be read or written
    ├── WireError                  exit 4   a privatized file, manifest or card is malformed, truncated or unknown
    ├── VocabularyError            exit 5   a vocabulary is missing, damaged, or not the one that was promised
    ├── MechanismError             exit 6   a privacy parameter is outside its domain
    ├── TuningError                exit 7   tuning cannot start or had to stop
    ├── AuditError                 exit 8   an audit cannot say anything true about this input
    ├── ServiceError               exit 9   the service refused, or could not be reached
    │   ├── NotFoundError                   no such object, or one of another tenant: the two look the same
    │   ├── AccessError                     the API key is missing or invalid
    │   ├── ForbiddenError                  the API key is valid, and may not do this
    │   ├── LimitError                      the request is larger than the service takes
    │   ├── BusyError                       the service has too much to do; the same request may pass later
    │   │   └── QuotaError                  the tenant has used up its room or its share of a minute
    │   ├── UnavailableError                no answer
    │   └── DamagedError                    stored bytes are missing, or do not match their digest
    ├── LedgerError                exit 10  a ledger of releases is damaged, busy, or not what it was
    │   └── BudgetError                     a release would spend more than the ledger allows
    └── ClusterError               exit 11  a Ray cluster could not be joined, or was lost

A message is one line: rule, name=value, way out; lower case, no full stop. It never holds a user's text, tokens or
keys: positions and counts only. The command line prints the message and leaves with `exit_code`; the service
answers with `status` and `code`.

A caller who wants all of them writes:

    try:
        ...
    except rapt.RaptError as error:
        log.error("%s", error)
"""

from __future__ import annotations

from typing import ClassVar


class RaptError(Exception):
    """Base of every deliberate error; never raised itself."""

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    # Name of the field of a request that has to be changed, where there is one.
    param: str | None = None


class UsageError(RaptError):
    """An argument breaks a rule before any work starts."""

    exit_code = 2
    status = 400
    code = "invalid_request"


class CorpusError(RaptError):
    """A file of texts cannot be read or written: a missing column, bad UTF-8, nothing in it."""

    exit_code = 3
    status = 400
    code = "invalid_file"


class WireError(RaptError):
    """A privatized file, manifest or adapter card is malformed, truncated, or of an unknown version."""

    exit_code = 4
    status = 400
    code = "invalid_wire_format"


class VocabularyError(RaptError):
    """A vocabulary is missing, damaged, or not the one that was promised."""

    exit_code = 5
    status = 409
    code = "vocabulary_mismatch"


class MechanismError(RaptError):
    """A privacy parameter is outside its domain, or a mechanism is unknown."""

    exit_code = 6
    status = 400
    code = "invalid_mechanism"


class TuningError(RaptError):
    """Tuning cannot start, or had to stop."""

    exit_code = 7
    status = 400
    code = "tuning_failed"


class AuditError(RaptError):
    """An audit cannot say anything true about this input."""

    exit_code = 8
    status = 400
    code = "invalid_audit"


class ServiceError(RaptError):
    """The service refused, or could not be reached."""

    exit_code = 9
    status = 502
    code = "service_error"


class NotFoundError(ServiceError):
    """The object does not exist or belongs to another tenant: the two look the same."""

    status = 404
    code = "not_found"


class AccessError(ServiceError):
    """The API key of the request is missing or invalid."""

    status = 401
    code = "invalid_api_key"


class ForbiddenError(ServiceError):
    """The API key is valid, and may not do this."""

    status = 403
    code = "permission_denied"


class LimitError(ServiceError):
    """The request is larger than the service takes at once."""

    status = 413
    code = "too_large"


class BusyError(ServiceError):
    """Too many requests wait, in all or of one tenant; the same request may pass later."""

    status = 429
    code = "busy"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Take how many seconds from now a retry may pass; None if time alone will not help."""
        super().__init__(message)
        self.retry_after = retry_after


class QuotaError(BusyError):
    """The tenant has used up its room or its share of a minute."""

    code = "rate_limit_exceeded"


class UnavailableError(ServiceError):
    """The service gave no answer."""

    status = 503
    code = "unavailable"


class DamagedError(ServiceError):
    """Stored bytes are missing, or do not match their digest."""

    status = 500
    code = "damaged"


class LedgerError(RaptError):
    """A ledger of releases is damaged, busy, without its key, or not what it was."""

    exit_code = 10
    status = 400
    code = "ledger_error"


class BudgetError(LedgerError):
    """A release would spend more than the ledger allows; nothing was released."""

    code = "budget_exhausted"


class ClusterError(RaptError):
    """A Ray cluster could not be joined, was lost, or has no room for the work."""

    exit_code = 11
    status = 503
    code = "cluster_error"


def name_record(position: int) -> str:
    """Return what messages call the record at a position from 0: records count from 1, as lines of a file do."""
    return f"record {position + 1}"
