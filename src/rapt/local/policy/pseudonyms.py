"""Pseudonyms: the same word in place of the same name, made with a secret key, and the map that leads back.

A pseudonym is a function of the key, the kind and the name, spelled as it stands, and of nothing else: no counter, no
table of names seen before. So what one text says changes no pseudonym of another text, and a guarantee for one text
stays one (`rapt.local.policy.policy_privatizer`). Without the key nobody can check a guess of the name.

The map from pseudonyms to names stays here, encrypted by AES-256-GCM of the library `cryptography`, in a file for its
owner alone. Its key lies beside it unless another place is chosen, as that of a ledger does; the secret for pseudonyms
and the one for the file are derived from it by HKDF-SHA256.
"""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_bytes
from threading import Lock
from typing import Any, Final

from rapt.errors import CorpusError, LedgerError, UsageError
from rapt.local.ledger_key import KeyOwner, KeyPlace, LedgerKey, has_key, locate_key, make_key, name_key, read_key
from rapt.whole_files import open_alone, write_whole

SCHEMA: Final = "rapt.pseudonyms/1"
MOST_BYTES: Final = 128 * 1024 * 1024  # of a map in clear: a million names and more
OWNER: Final = KeyOwner("a pseudonym map", "key in [pseudonyms] of the policy")
_HEADER: Final = f"{SCHEMA}\n".encode("ascii")
_NONCE: Final = 12
_MARK: Final = b"mark of a map"  # no kind and name: a kind ends with a byte 0
# Without I, L, O and U, as Crockford's base 32: nobody reads one letter for another.
_SIGNS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# 50 bits: among a million names two have one pseudonym with probability 0.04 %, and such a text is refused.
_LENGTH: Final = 10
# Characters that models write for the hyphen, and the backslash that Markdown puts before it.
_HYPHENS: Final = "-_\u2010\u2011"
_END_OF_LINK: Final = re.compile(r"[\s\"<>]")
# Longer than another process ever holds the lock: it reads and writes one file.
_PATIENCE: Final = 5.0


class PseudonymMap:
    """Pseudonyms of names, and the way back; its `repr` shows how many there are, and no name.

    One value serves many threads.
    """

    def __init__(self, key: LedgerKey, *, path: Path | None = None) -> None:
        """Begin an empty map.

        Args:
            key: Secret that pseudonyms are made with.
            path: File that `save` writes; None for a map in memory alone.

        Raises:
            UsageError: The package `cryptography` is not installed.
        """
        try:
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ImportError:
            raise UsageError(
                "pseudonyms need the package cryptography; run in the checkout: pip install -e '.[policy]'"
            ) from None
        secrets = HKDF(algorithm=SHA256(), length=64, salt=None, info=_HEADER).derive(key.secret)
        self._naming, self._sealing = secrets[:32], secrets[32:]
        self._begin(path)

    def _begin(self, path: Path | None) -> None:
        self._path = path
        self._names: dict[str, str] = {}
        self._kinds: frozenset[str] = frozenset()
        self._bytes = 0
        self._saved = 0
        self._lock = Lock()

    @property
    def mark(self) -> str:
        """The same for two maps that give the same pseudonyms, and for no others; it tells nothing of their secret."""
        return hmac.digest(self._naming, _MARK, "sha256").hex()

    def __repr__(self) -> str:
        """The number of names."""
        return f"PseudonymMap({len(self._names)} names)"

    def __len__(self) -> int:
        """The number of names."""
        return len(self._names)

    def __getstate__(self) -> dict[str, Any]:
        """What a process of this one's own needs to give the same pseudonyms: no name, and no file to write."""
        return {"_naming": self._naming, "_sealing": self._sealing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin an empty map with the same secrets."""
        self._naming, self._sealing = state["_naming"], state["_sealing"]
        self._begin(None)

    @classmethod
    def open(cls, path: Path | str, *, key: KeyPlace | None = None) -> PseudonymMap:
        """Read the map at `path`; where there is none, begin one, with a new key unless one lies there.

        Args:
            path: File of the map.
            key: Place of its key: a file, or an entry of the keyring; None is `NAME.key` beside the map.

        Raises:
            LedgerError: The key is missing, readable by others or no key; or the map is damaged, or of another key.
            UsageError: The package `cryptography` is not installed, or the map is too large.
        """
        path = Path(path)
        place = locate_key(path, key)
        with _hold_lock(path):
            if not path.exists() and not has_key(place, owner=OWNER):
                secret = make_key(place, owner=OWNER)
            else:
                secret = read_key(place, owner=OWNER)
            found = cls(secret, path=path)
            found._take(found._read())
        found._saved = len(found._names)
        return found

    def pseudonym(self, kind: str, name: str) -> str:
        """The pseudonym of a name, such as `Person-7QK2M9X4TB`, which the map leads back from now on.

        Raises:
            UsageError: Another name has the same one, or the map is full.
        """
        message = f"{kind}\0{name}".encode("utf-8", "surrogatepass")
        drawn = int.from_bytes(hmac.digest(self._naming, message, "sha256")[:8], "big")
        code = "".join(_SIGNS[drawn >> (5 * place) & 31] for place in range(_LENGTH))
        found = f"{kind.capitalize()}-{code}"
        with self._lock:
            self._take({found: name})
        return found

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the map; none where it is in memory alone."""
        return () if self._path is None else (self._path, name_key(self._path), _name_lock(self._path))

    def find(self, pseudonym: str) -> str | None:
        """The name of a pseudonym; None for one that the map does not have."""
        return self._names.get(pseudonym)

    @property
    def kinds(self) -> frozenset[str]:
        """What pseudonyms begin with."""
        return self._kinds

    def save(self) -> None:
        """Write the map, whole or not at all, with what other processes wrote meanwhile; nothing where none is new.

        Raises:
            LedgerError: It cannot be written, or what lies there is of another key.
        """
        if self._path is None:
            return
        with self._lock:
            if len(self._names) == self._saved and self._path.exists():
                return
            with _hold_lock(self._path):
                self._take(self._read())
                try:
                    write_whole(self._path, self._seal(), private=True)
                except OSError as error:
                    raise LedgerError(
                        f"a pseudonym map must be writable, got {error.strerror}; choose another folder"
                    ) from None
            self._saved = len(self._names)

    def _take(self, names: Mapping[str, str]) -> None:
        for pseudonym, name in names.items():
            if (known := self._names.get(pseudonym)) is None:
                self._bytes += len(pseudonym) + len(name.encode("utf-8", "surrogatepass")) + 6
                if self._bytes > MOST_BYTES:
                    raise UsageError(f"a pseudonym map must have at most {MOST_BYTES:,} bytes; begin another one")
                self._names[pseudonym] = name
                self._kinds |= {pseudonym[: -_LENGTH - 1]}
            elif known != name:
                raise UsageError("two names must not have one pseudonym, got such a pair; begin another map")

    def _seal(self) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = token_bytes(_NONCE)
        plain = json.dumps(self._names, separators=(",", ":")).encode("ascii")
        return _HEADER + nonce + AESGCM(self._sealing).encrypt(nonce, plain, _HEADER)

    def _read(self) -> dict[str, str]:
        """What lies on the disk; nothing where there is no file."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        assert self._path is not None
        try:
            with self._path.open("rb") as stream:
                sealed = stream.read(8 * MOST_BYTES)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LedgerError(f"a pseudonym map must be readable, got {error.strerror}; mend its mode") from None
        if not sealed.startswith(_HEADER):
            raise LedgerError(f"a pseudonym map must begin with its schema {SCHEMA!r}; name the file of one")
        nonce = sealed[len(_HEADER) :][:_NONCE]
        try:
            plain = AESGCM(self._sealing).decrypt(nonce, sealed[len(_HEADER) + _NONCE :], _HEADER)
            names = json.loads(plain)
        except (InvalidTag, ValueError):
            raise LedgerError(
                "a pseudonym map must be whole and of its key, got a damaged one or another key; restore both together"
            ) from None
        assert isinstance(names, dict)  # nobody without the key can have written it
        return names


def _name_lock(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a map, which another process may have for a moment."""
    lock = _name_lock(path)
    deadline = time.monotonic() + _PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(open_alone(lock))
                break
            except CorpusError:
                if time.monotonic() > deadline:
                    raise LedgerError("a pseudonym map must not be in use elsewhere for long; try again") from None
                time.sleep(0.01)
            except OSError as error:
                raise LedgerError(
                    f"a pseudonym map must be writable, got {error.strerror}; make its folder, or choose another"
                ) from None
        yield


def leave_as_it_is(name: str) -> str:
    """Return the name unchanged."""
    return name


class PseudonymRestorer:
    """Puts names back into an answer that comes in pieces, a pseudonym that is cut between two of them included.

    A pseudonym in an address of the web stays: a program that shows the answer would otherwise fetch an image, say,
    from an address that a hostile model wrote around the name, and so send the name away.

    Case and the sort of hyphen do not count, because models change them. What is no pseudonym of the map stays.
    """

    def __init__(self, names: PseudonymMap, *, escape: Callable[[str], str] = leave_as_it_is) -> None:
        """Begin an answer, of which no piece has come.

        Args:
            names: Map of the pseudonyms.
            escape: Writes a name as its surroundings demand, such as `escape_json` within a string of JSON.
        """
        self._map = names
        self._escape = escape
        self._waiting = ""
        self._in_link = False
        self._last = ""
        self._kinds: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        """Nothing of the answer."""
        return "PseudonymRestorer()"

    def feed(self, piece: str) -> str:
        """What can be said of the answer so far; the end of it may wait for the next piece."""
        self._look_for(self._map.kinds)
        if not self._kinds:
            return piece
        text = self._waiting + piece
        held = len(text)
        if (begun := self._begun.search(text, max(0, len(text) - self._longest))) is not None:
            held = begun.start()
        # A pseudonym that is whole goes out, though its end could begin another one.
        for found in self._whole.finditer(text, max(0, held - self._longest)):
            held = max(held, found.end()) if found.start() < held else held
        self._waiting = text[held:]
        return self._restore(text[:held])

    def finish(self) -> str:
        """The rest of the answer."""
        text, self._waiting = self._waiting, ""
        return self._restore(text)

    def restore(self, answer: str) -> str:
        """A whole answer with its names."""
        return self.feed(answer) + self.finish()

    def _look_for(self, kinds: frozenset[str]) -> None:
        """Make the patterns of whole pseudonyms and of begun ones, where there are new kinds."""
        if kinds == self._kinds:
            return
        self._kinds = kinds
        signs, hyphen = f"[{_SIGNS}]", rf"\\?[{_HYPHENS}]"
        written = "|".join(map(re.escape, kinds))
        self._whole = re.compile(rf"({written}){hyphen}({signs}{{{_LENGTH}}})", re.IGNORECASE)
        begun = [_begin(kind, rf"(?:\\|{hyphen}{signs}{{0,{_LENGTH - 1}}})?") for kind in kinds]
        self._begun = re.compile(rf"(?:{'|'.join(begun)})\Z", re.IGNORECASE)
        self._longest = max(map(len, kinds)) + 2 + _LENGTH

    def _restore(self, text: str) -> str:
        if not text:
            return text
        parts, start = [], 0
        for found in self._whole.finditer(text):
            self._follow(text[start : found.start()])
            name = self._map.find(f"{found[1].capitalize()}-{found[2].upper()}")
            parts.append(text[start : found.start()])
            parts.append(found[0] if name is None or self._in_link else self._escape(name))
            self._follow(found[0])
            start = found.end()
        self._follow(text[start:])
        return "".join([*parts, text[start:]])

    def _follow(self, text: str) -> None:
        """Note whether what comes next stands in an address."""
        # Only the last end matters: a copy of the rest for each would make a text of spaces quadratic.
        end = max((found.end() for found in _END_OF_LINK.finditer(text)), default=0)
        run = text[end:]
        if end > 0:
            self._in_link, self._last = False, ""
        self._in_link = self._in_link or "//" in self._last + run
        self._last = (self._last + run)[-1:]


def escape_json(name: str) -> str:
    """The name as it stands within the quotes of a string of JSON."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def _begin(word: str, rest: str) -> str:
    """A pattern of every beginning of a word, a letter at least, and of `rest` behind all of it."""
    pattern = rest
    for sign in reversed(word[1:]):
        pattern = f"(?:{re.escape(sign)}{pattern})?"
    return re.escape(word[0]) + pattern
