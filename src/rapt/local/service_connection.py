"""The connection to a service: its address, who is trusted to be it, and what each kind of answer means.

What is sent is decided in `client`; here it is sent, again if it comes too early, and the answer is JSON or an error of
the tree.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

import httpx2

from rapt.errors import (
    AccessError,
    BusyError,
    ForbiddenError,
    LimitError,
    NotFoundError,
    RaptError,
    ServiceError,
    UnavailableError,
    UsageError,
)
from rapt.local.service_objects import not_understood, refusal
from rapt.wire.addresses import is_loopback

# The last two are what a host name that cannot be one becomes.
_NO_ANSWER: Final = (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError)
# How often a request is sent while the service says that it is busy, and the longest wait that is obeyed, s.
_ATTEMPTS: Final = 5
_LONGEST_WAIT: Final = 60
_KEY: Final = re.compile(r"[!-~]+")
_KINDS: Final[Mapping[int, type[ServiceError]]] = {
    kind.status: kind for kind in (NotFoundError, AccessError, ForbiddenError, LimitError, UnavailableError)
}


class Connection:
    """Requests to one service; close it."""

    def __init__(self, url: str, *, api_key: str | None, ca_file: Path | None, timeout: float) -> None:
        """Prepare it; nothing is sent yet. Arguments and errors as of `ServiceClient`."""
        if api_key is not None and not _KEY.fullmatch(api_key):
            raise UsageError("an API key must be one word of printable ASCII; copy it again")
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError):
            parsed = httpx2.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError("the service must be given as a URL, such as http://127.0.0.1:8420")
        self._http = httpx2.Client(
            base_url=parsed,
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            timeout=httpx2.Timeout(timeout, connect=10.0),
            verify=_trusted(ca_file),
            # A proxy of the environment must not get to see what is meant for this machine.
            trust_env=not is_loopback(parsed.host),
            follow_redirects=False,
        )

    def close(self) -> None:
        """Close it."""
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
        data: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, IO[bytes], str]] | None = None,
    ) -> dict[str, Any]:
        """One request; the JSON object in its answer. One that comes too early is sent again when it may come.

        Raises:
            ServiceError: The service refused, gave no answer, or one that is not of the API.
        """
        for left in reversed(range(_ATTEMPTS)):
            try:
                response = self._http.request(method, path, json=json, params=params, data=data, files=files)
            except _NO_ANSWER as error:
                raise _no_answer(error) from None
            after = _retry_after(response)
            # An upload would have to be read again from its start.
            if after is None or not left or files is not None:
                break
            time.sleep(after)
        if not response.is_success:
            raise _refused(response)
        value = _json(response)
        if not isinstance(value, dict):
            raise not_understood()
        return value

    def download(self, path: str, target: Path) -> None:
        """The bytes of an answer, into a file. Raises as `ask`, and `OSError` where it cannot be written."""
        try:
            with self._http.stream("GET", path) as response, target.open("wb") as stream:
                if response.is_success:
                    for chunk in response.iter_bytes():
                        stream.write(chunk)
                    return
                response.read()
        except _NO_ANSWER as error:
            raise _no_answer(error) from None
        raise _refused(response)


def path_part(name: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return quote(name, safe=":")


def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Who may vouch for the service: those of the file alone, else `SSL_CERT_FILE` or the usual ones."""
    if ca_file is None:
        return httpx2.create_ssl_context(trust_env=True)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(
            f"the CA file must hold certificates in PEM, got {type(error).__name__}; ask the provider for it"
        ) from None


def _json(response: httpx2.Response) -> object:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _retry_after(response: httpx2.Response) -> float | None:
    """When a service that is busy wants to be asked again, s; None if it is not, or wants it too late."""
    after = response.headers.get("retry-after", "")
    if response.status_code != BusyError.status or not after.isdecimal() or int(after) > _LONGEST_WAIT:
        return None
    return float(after)


def _refused(response: httpx2.Response) -> RaptError:
    if response.status_code == BusyError.status:
        message = f"the service is busy or a quota is used up: {refusal(_json(response))}"
        return BusyError(message, retry_after=_retry_after(response))
    kind = _KINDS.get(response.status_code, ServiceError)
    return kind(f"the service refused, status={response.status_code}: {refusal(_json(response))}")


def _no_answer(error: Exception) -> UnavailableError:
    return UnavailableError(f"the service must be reachable, got {type(error).__name__}; is it running at that URL?")
