"""The key of a ledger: it turns a text into a hash that only its holder can recompute.

A plain hash of a text is not secret: whoever guesses the text can check the guess. With a random key of 256 bits beside
the ledger, readable by its owner only, the ledger alone answers no guess. Key and ledger together do, so both stay on
the trusted side, and losing the key means that the ledger no longer recognizes a text: the file is refused then.
"""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rapt.errors import LedgerError

_BYTES: Final = 32


@dataclass(frozen=True)
class LedgerKey:
    """A secret of 32 bytes. Its `repr` shows nothing of it."""

    secret: bytes = field(repr=False)

    def text_hash(self, text: str) -> bytes:
        """What stands for a text in the ledger, 32 bytes, whatever the text is released with."""
        return self._hash(b"text", text)

    def release_hash(self, text: str, *, setting: str) -> bytes:
        """What stands for a text released with a setting, 32 bytes.

        Args:
            text: In clear; not kept.
            setting: JSON in ASCII, so that it holds no zero byte and the two parts cannot run into each other.
        """
        return self._hash(b"release\0" + setting.encode("ascii"), text)

    def check(self, ledger_id: str) -> bytes:
        """A value by which a ledger recognizes its key without holding it, 32 bytes."""
        return self._hash(b"key", ledger_id)

    def _hash(self, purpose: bytes, text: str) -> bytes:
        # surrogatepass: a text that is not valid Unicode is refused by the vocabulary, which can say where it stands.
        return hmac.digest(self.secret, purpose + b"\0" + text.encode("utf-8", "surrogatepass"), "sha256")


def key_path(ledger: Path) -> Path:
    """Where the key of a ledger lies: beside it."""
    return ledger.with_name(ledger.name + ".key")


def refuse_old_key(ledger: Path) -> None:
    """Refuse to begin a ledger beside a key: its ledger is missing, and what it had spent would be forgotten.

    Raises:
        LedgerError: A key lies there.
    """
    if key_path(ledger).exists():
        raise LedgerError(
            f"a new ledger must have a new key, got an older one at {str(key_path(ledger))!r}; "
            "restore the ledger it belongs to, or move it away"
        )


def make_key(ledger: Path) -> LedgerKey:
    """A fresh key, written for the owner only. The caller holds the ledger's lock.

    Raises:
        LedgerError: A key lies there already, or the folder cannot be written.
    """
    refuse_old_key(ledger)
    secret = secrets.token_bytes(_BYTES)
    try:
        descriptor = os.open(key_path(ledger), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise LedgerError(
            f"the key of a ledger must be writable, got {error.strerror}; choose another folder"
        ) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secret.hex() + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return LedgerKey(secret)


def read_key(ledger: Path) -> LedgerKey:
    """The key beside a ledger.

    Raises:
        LedgerError: It is missing, readable by others, or not a key.
    """
    path = key_path(ledger)
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(2 * _BYTES + 2)
    except OSError as error:
        raise LedgerError(
            f"a ledger must have its key beside it, got {error.strerror} for {str(path)!r}; restore both together"
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise LedgerError(
            f"the key of a ledger must be for its owner only, got mode={mode & 0o777:03o}; run: chmod 600 {path}"
        )
    try:
        secret = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:  # its own message would quote the key
        secret = b""
    if len(secret) != _BYTES:
        raise LedgerError(f"the key of a ledger must be {2 * _BYTES} hex digits; restore {str(path)!r}")
    return LedgerKey(secret)
