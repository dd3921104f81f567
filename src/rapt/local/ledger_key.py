"""The key of a ledger: what stands for a text, for its tokens and for a row, to whoever does not have it.

The key turns a text into a hash that only its holder can recompute. A plain hash of a text is not secret: whoever
guesses the text can check the guess. With a random key of 256 bits, readable by its owner only, the ledger alone
answers no guess. Key and ledger together do: they are to be kept like the texts themselves. The key lies beside the
ledger unless another place is chosen: another file, or an entry of the operating system's keyring
(docs/decisions/0027). Losing it means that the ledger no longer recognizes a text: it is refused then.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unicodedata import normalize

from rapt.errors import LedgerError, UsageError

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

SCHEMA: Final = "rapt.ledger/2"
# Tokens of a run. Of a released text every eighth run is kept, so that what another text has in common with it is found
# whenever it is as long as two runs, less one token.
RUN: Final = 8
_JSON: Final = json.JSONEncoder(separators=(",", ":"))
_BYTES: Final = 32
# Word that names the keyring of the operating system in place of a file, and the service of its entries there.
KEYRING: Final = "keyring"
SERVICE: Final = "rapt ledger"
_MOST_NAME: Final = 1024


@dataclass(frozen=True)
class LedgerKey:
    """A secret of 32 bytes. Its `repr` shows nothing of it."""

    secret: bytes = field(repr=False)

    def text_hash(self, texts: Sequence[str]) -> bytes:
        """Return the hash that stands for a text as it is spelled, whatever it is released with, 32 bytes.

        Case, white space and compatible characters do not count: spellings that differ in these alone are one text.

        Args:
            texts: Text, or all texts of a record, in clear; not kept.
        """
        plain = [" ".join(normalize("NFKC", text).casefold().split()) for text in texts]
        # In ASCII a lone surrogate is an escape: the vocabulary refuses such a text, and can say where it stands.
        return self._hash(b"text", json.dumps(plain).encode("ascii"))

    def content_hash(self, contents: Sequence[Sequence[int]], *, vocabulary_hash: str) -> bytes:
        """Return the hash that stands for the tokens that a mechanism sees, 32 bytes.

        Args:
            contents: Token ids of the text after truncation, or of all texts of a record.
            vocabulary_hash: Hash of the vocabulary that the ids belong to.
        """
        return self._hash(b"content\0" + vocabulary_hash.encode(), _JSON.encode(list(map(list, contents))).encode())

    def release_hash(self, content_hash: bytes, *, setting: str, copy: int = 0) -> bytes:
        """Return the hash that stands for the tokens of a text released with a setting, 32 bytes.

        Args:
            content_hash: Hash of the tokens.
            setting: Everything that the release depends on beside them, as JSON.
            copy: Number of texts of the same record before this one that have the same tokens.
        """
        return self._hash(b"release", content_hash + f"{copy}\0{setting}".encode())

    def run_hashes(self, content: Sequence[int], *, vocabulary_hash: str) -> tuple[int, ...]:
        """Return the hash that stands for each run of `RUN` tokens, in order, 64 bits each."""
        purpose = b"run\0" + vocabulary_hash.encode()
        packed = struct.pack(f"<{len(content)}q", *content)
        starts = range(0, 8 * (len(content) - RUN + 1), 8)
        hashes = (self._hash(purpose, packed[start : start + 8 * RUN]) for start in starts)
        return tuple(int.from_bytes(found[:8], "little", signed=True) for found in hashes)

    def key_check(self, ledger_id: str) -> bytes:
        """Return a value by which a ledger recognizes its key without holding it, 32 bytes."""
        return self._hash(b"key", ledger_id.encode())

    def first_digest(self, ledger_id: str) -> bytes:
        """Return the digest that stands before the first row; rows of one ledger do not fit another."""
        return self._hash(b"first", f"{SCHEMA} {ledger_id}".encode())

    def next_digest(self, previous: bytes, values: tuple[Any, ...]) -> bytes:
        """Return the digest of a row from that of the row before and the row's columns, all but the last, in order."""
        plain = [value.hex() if isinstance(value, bytes) else value for value in values]
        return self._hash(b"row", previous + _JSON.encode(plain).encode())

    def head_check(self, ledger_id: str, *, rows: int, digest: bytes) -> bytes:
        """Return what shows that a ledger had so many rows, the last one with this digest, 32 bytes."""
        return self._hash(b"head", f"{ledger_id} {rows} {digest.hex()}".encode())

    def _hash(self, purpose: bytes, value: bytes) -> bytes:
        return hmac.digest(self.secret, purpose + b"\0" + value, "sha256")


@dataclass(frozen=True)
class KeyringEntry:
    """An entry of the operating system's keyring.

    Attributes:
        name: Name of the entry; None for the path of the ledger.
    """

    name: str | None = None

    def __str__(self) -> str:
        """Return the entry as an option names it."""
        return KEYRING if self.name is None else f"{KEYRING}:{self.name}"


# Where a key lies.
KeyPlace = Path | KeyringEntry


@dataclass(frozen=True)
class KeyOwner:
    """What a key is of, in messages.

    Attributes:
        name: Name of what it is of.
        option: Option or argument by which the user names its place.
    """

    name: str
    option: str


LEDGER: Final = KeyOwner("a ledger", "`key`")


def parse_key_place(given: str) -> KeyPlace:
    """Parse `keyring`, `keyring:NAME`, or the path of a file; a file of the name `keyring` is `./keyring`.

    Raises:
        UsageError: The name of the entry is empty, too long, or not printable.
    """
    word, colon, name = given.partition(":")
    if word != KEYRING:
        return Path(given)
    if not colon:
        return KeyringEntry()
    if not (0 < len(name) <= _MOST_NAME and name.isprintable()):
        raise UsageError(
            f"an entry of the keyring must have a printable name of 1 to {_MOST_NAME} characters, got {len(name)}; "
            "write keyring:NAME, or keyring alone"
        )
    return KeyringEntry(name)


def name_key(ledger: Path) -> Path:
    """Return the place of a ledger's key unless another one is chosen: beside it."""
    return ledger.with_name(ledger.name + ".key")


def locate_key(ledger: Path, key: KeyPlace | None) -> KeyPlace:
    """Return the place of a ledger's key: the one that is chosen, else beside the ledger."""
    if key is None:
        return name_key(ledger)
    return KeyringEntry(str(ledger.resolve())) if key == KeyringEntry() else key


def refuse_old_key(key: KeyPlace, *, owner: KeyOwner = LEDGER) -> None:
    """Refuse to begin a ledger with a key that is there, because what its own ledger spent would be forgotten.

    Raises:
        LedgerError: A key lies there, or the keyring cannot be asked.
    """
    if has_key(key, owner=owner):
        raise LedgerError(
            f"{owner.name} that is new must have a new key, got an older one at {str(key)!r}; "
            "restore what it belongs to, or move it away"
        )


def has_key(key: KeyPlace, *, owner: KeyOwner = LEDGER) -> bool:
    """Whether a key lies there. Raises `LedgerError` where the keyring cannot be asked."""
    return key.exists() if isinstance(key, Path) else _ask_keyring(key, owner) is not None


def make_key(place: KeyPlace, *, owner: KeyOwner = LEDGER) -> LedgerKey:
    """Make a fresh key, readable for nobody else. The caller holds the lock of what it is of.

    Raises:
        LedgerError: A key lies there already, the folder cannot be written, or the keyring does not keep the key.
    """
    refuse_old_key(place, owner=owner)
    secret = secrets.token_bytes(_BYTES)
    if isinstance(place, KeyringEntry):
        with _open_keyring(owner) as backend:
            backend.set_password(SERVICE, str(place.name), secret.hex())
        if _ask_keyring(place, owner) != secret.hex():
            raise LedgerError(f"the keyring must keep the key of {owner.name}, got another back; name a file instead")
        return LedgerKey(secret)
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise LedgerError(
            f"the key of {owner.name} must be writable, got {error.strerror}; choose another folder"
        ) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secret.hex() + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return LedgerKey(secret)


def remove_key(place: KeyPlace) -> None:
    """Remove the key of a ledger that could not be begun.

    Raises:
        LedgerError: The keyring cannot be asked.
    """
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
        return
    with _open_keyring() as backend:
        backend.delete_password(SERVICE, str(place.name))


def read_key(place: KeyPlace, *, owner: KeyOwner = LEDGER) -> LedgerKey:
    """Read the key at its place.

    Raises:
        LedgerError: It is missing, readable by others, or not a key; or the keyring cannot be asked.
    """
    content = _read_file(place, owner) if isinstance(place, Path) else _ask_keyring(place, owner)
    if content is None:
        raise LedgerError(
            f"{owner.name} must have its key, got none at {str(place)!r}; name the entry with {owner.option} "
            f"keyring:NAME: it is the path that the {owner.name[2:]} had when it was begun, unless another was given"
        )
    try:
        secret = bytes.fromhex(content.strip())
    except ValueError:  # its own message would quote the key
        secret = b""
    if len(secret) != _BYTES:
        raise LedgerError(f"the key of {owner.name} must be {2 * _BYTES} hex digits; restore {str(place)!r}")
    return LedgerKey(secret)


def _read_file(path: Path, owner: KeyOwner) -> str:
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(2 * _BYTES + 2)
    except OSError as error:
        raise LedgerError(
            f"{owner.name} must have its key, got {error.strerror} for {str(path)!r}; restore both together, or name "
            f"the key with {owner.option}"
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise LedgerError(
            f"the key of {owner.name} must be for its owner only, got mode={mode & 0o777:03o}; run: chmod 600 {path}"
        )
    return content.decode("ascii", errors="replace")


def check_keyring() -> None:
    """Refuse a machine without a keyring that keeps secrets (`LedgerError`)."""
    with _open_keyring():
        pass


def _ask_keyring(entry: KeyringEntry, owner: KeyOwner) -> str | None:
    with _open_keyring(owner) as backend:
        return backend.get_password(SERVICE, str(entry.name))


@contextmanager
def _open_keyring(owner: KeyOwner = LEDGER) -> Iterator[KeyringBackend]:
    """The keyring of this machine. Its errors become ours without their text, which may quote what it was given.

    Raises:
        LedgerError: There is none that keeps secrets, or it does not do what it is asked.
    """
    try:
        import keyring
        from keyring.backends.chainer import ChainerBackend
    except ImportError:
        raise LedgerError(
            "a key in the keyring needs the package keyring; run in the checkout: pip install -e '.[keyring]', or name "
            f"a file with {owner.option}"
        ) from None
    name = "none"
    try:
        found = keyring.get_keyring()
        # A chain writes to the first that takes the secret, whichever that is.
        several = list(found.backends) if isinstance(found, ChainerBackend) else [found]
        name = ", ".join(f"{type(backend).__module__}.{type(backend).__qualname__}" for backend in several) or name
        chosen = next((backend for backend in several if _keeps_secrets(backend)), None)
        if chosen is not None:
            yield chosen
            return
    except Exception as error:  # another project's code for each system, which raises whatever it likes
        raise LedgerError(
            f"the keyring must be unlocked and do what it is asked, got {type(error).__name__} from {name}; unlock it, "
            f"or name a file with {owner.option}"
        ) from None
    raise LedgerError(
        f"a key in the keyring must have a keyring that keeps secrets, got {name}; log in to a desktop with one, or "
        f"name a file with {owner.option}"
    )


def _keeps_secrets(backend: KeyringBackend) -> bool:
    """Whether a backend is neither none, nor one that throws away, nor one that writes in clear or nearly so."""
    kinds = type(backend).__mro__
    names = {kind.__name__.lower() for kind in kinds}
    if any(kind.__module__ in ("keyring.backends.fail", "keyring.backends.null") for kind in kinds):
        return False
    if type(backend).__module__.startswith("keyrings.alt.") and "encryptedkeyring" not in names:
        return False
    return not any("plaintext" in name for name in names)
