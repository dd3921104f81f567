"""Trees of frozen dataclasses as JSON and back: the types of the fields are the schema.

The results of an audit that was interrupted: each attack's, as soon as it is there, and the channel.

A file of results is used again only by the same audit: the fingerprint covers the privatized file, the attacker's
text, the seed and the program. Nothing here holds a token of the truth: results are counts, and the channel is public
apart from which tokens were seen, which the privatized file says as well.
"""

from __future__ import annotations

import hashlib
import io
import json
import types
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from zipfile import BadZipFile

import numpy as np

from rapt.audit.channels.estimate import ChannelEstimate
from rapt.audit.truth import Truth
from rapt.audit.view import AdversaryView
from rapt.errors import AuditError
from rapt.version import __version__
from rapt.whole_files import write_whole

T = TypeVar("T")


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values, fields in their order."""
    return asdict(value)


def from_json(kind: type[T], value: Any) -> T:
    """The dataclass that `to_json` wrote.

    Raises:
        AuditError: A field is missing, unknown, or of another type.
    """
    found: T = _read(kind, value, where="report")
    return found


def _read(kind: Any, value: Any, *, where: str) -> Any:
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, where=where)
    if get_origin(kind) is tuple:
        if type(value) not in (list, tuple):
            raise AuditError(f"{where} must be a list, got {type(value).__name__}")
        parts = get_args(kind)
        expected = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        if len(expected) != len(value):
            raise AuditError(f"{where} must have {len(expected)} items, got {len(value)}")
        return tuple(
            _read(part, item, where=f"{where}[{i}]") for i, (part, item) in enumerate(zip(expected, value, strict=True))
        )
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise AuditError(f"{where} must be of type {kind.__name__}, got {type(value).__name__}")
    return value


def _read_dataclass(kind: type[Any], value: Any, *, where: str) -> Any:
    names = {item.name for item in fields(kind)}
    if type(value) is not dict or value.keys() != names:
        raise AuditError(f"{where} must have the fields {', '.join(sorted(names))}; it was written by another version")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], value[name], where=f"{where}.{name}") for name in names})


@dataclass(frozen=True)
class KeptResults:
    """A folder, and the audit that it belongs to."""

    folder: Path
    fingerprint: str

    def read(self, name: str, kind: type[T]) -> T | None:
        """The result of that name, or None where this audit has not kept it."""
        try:
            value = json.loads(self._make_path(name, "json").read_text(encoding="utf-8"))
            return from_json(kind, value["result"]) if value["audit"] == self.fingerprint else None
        except (OSError, ValueError, KeyError, TypeError, AuditError):
            return None

    def write(self, name: str, result: Any) -> None:
        """Keep a result. Raises `AuditError` when the folder cannot be written."""
        content = json.dumps({"audit": self.fingerprint, "result": to_json(result)})
        self._write(self._make_path(name, "json"), content.encode())

    def read_channel(self) -> ChannelEstimate | None:
        """The channel, or None."""
        try:
            with self._make_path("channel", "npz").open("rb") as stream, np.load(stream, allow_pickle=False) as held:
                if str(held["audit"]) != self.fingerprint:
                    return None
                return ChannelEstimate(
                    outputs=held["outputs"],
                    sources=held["sources"],
                    likelihood=held["likelihood"],
                    unlisted=held["unlisted"] if held["unlisted"].size else None,
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def write_channel(self, channel: ChannelEstimate) -> None:
        """Keep the channel. Raises `AuditError` when the folder cannot be written."""
        content = io.BytesIO()
        np.savez(
            content,
            audit=np.array(self.fingerprint),
            outputs=channel.outputs,
            sources=channel.sources,
            likelihood=channel.likelihood,
            unlisted=np.empty(0) if channel.unlisted is None else channel.unlisted,
        )
        self._write(self._make_path("channel", "npz"), content.getvalue())

    def remove(self) -> None:
        """Forget everything: the audit is complete. What somebody else put there stays."""
        for suffix in ("json", "npz"):
            for path in self.folder.glob(f"*.{suffix}"):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _make_path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}.{suffix}"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            raise _make_unwritable_error(error) from None


def keep_results(folder: Path, view: AdversaryView, truth: Truth, *, seed: int) -> KeptResults:
    """The place of the results of one audit."""
    digest = hashlib.sha256(f"{__version__} {seed} {view.manifest.records_sha256} {view.bundle.hash}".encode())
    digest.update(view.observed.tobytes() + view.lengths.tobytes() + truth.token_ids.tobytes())
    if truth.entity is not None:
        digest.update(truth.entity.tobytes() + "|".join(truth.entity_kinds).encode())
    if truth.gone:
        digest.update(repr(truth.gone).encode())
    for content in () if view.public is None else view.public.contents:
        digest.update(content.tobytes() + b"|")
    if view.prior is not None:
        digest.update(view.prior.probabilities.tobytes())
    return KeptResults(folder, digest.hexdigest())


def _make_unwritable_error(error: OSError) -> AuditError:
    return AuditError(
        f"results must be writable, got {error.strerror or type(error).__name__}; free space or choose another folder"
    )
