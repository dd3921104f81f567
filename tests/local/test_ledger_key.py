"""The key of a ledger in a keyring: kept there and nowhere else, and refused where no secret would be kept."""

from __future__ import annotations

import sys

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import chainer, fail, null
from keyring.errors import KeyringLocked, PasswordDeleteError

from rapt.errors import LedgerError, UsageError
from rapt.local.ledger import open_ledger
from rapt.local.ledger_key import KeyringEntry, locate_key, name_key, parse_key_place
from rapt.local.ledger_report import verify_ledger


class ShelfKeyring(KeyringBackend):
    """Keeps secrets in this process, through the library's own point of extension."""

    priority = 5

    def __init__(self):
        super().__init__()
        self.kept = {}

    def get_password(self, service, username):
        return self.kept.get((service, username))

    def set_password(self, service, username, password):
        self.kept[service, username] = password

    def delete_password(self, service, username):
        if self.kept.pop((service, username), None) is None:
            raise PasswordDeleteError


class PlaintextKeyring(ShelfKeyring):
    """Has the name under which the library's companion writes in clear."""


class LockedKeyring(ShelfKeyring):
    def get_password(self, service, username):
        raise KeyringLocked("zanzibarsecret")


class ForgetfulKeyring(ShelfKeyring):
    def set_password(self, service, username, password):
        pass


class StrangeKeyring(ShelfKeyring):
    def get_password(self, service, username):
        raise ZeroDivisionError("zanzibarsecret")


class Chain(chainer.ChainerBackend):
    backends = (PlaintextKeyring(), ShelfKeyring())


@pytest.fixture
def shelf():
    """A keyring of this test's own, in use."""
    before = keyring.get_keyring()
    keyring.set_keyring(ShelfKeyring())
    yield keyring.get_keyring()
    keyring.set_keyring(before)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "releases.ledger"


def test_the_key_is_kept_in_the_keyring_and_in_no_file(shelf, path):
    for _ in range(2):
        with open_ledger(path, key=KeyringEntry()) as ledger:
            secret = ledger.key.secret
    assert shelf.kept == {("rapt ledger", str(path)): secret.hex()}
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert verify_ledger(path, key=KeyringEntry()).rows == 0
    moved = path.rename(path.with_name("moved"))
    with pytest.raises(LedgerError, match="keyring:NAME: it is the path that the ledger had"):
        verify_ledger(moved, key=KeyringEntry())
    assert verify_ledger(moved, key=KeyringEntry(str(path))).rows == 0


def test_a_ledger_that_was_removed_is_not_begun_anew_under_its_key(shelf, path):
    with open_ledger(path, key=KeyringEntry("mine")):
        pass
    path.unlink()
    with (
        pytest.raises(LedgerError, match="an older one at 'keyring:mine'"),
        open_ledger(path, key=KeyringEntry("mine")),
    ):
        pass
    assert not path.exists()


def test_the_key_of_another_ledger_is_refused(shelf, path):
    with open_ledger(path, key=KeyringEntry("mine")), open_ledger(path.with_name("b"), key=KeyringEntry("other")):
        pass
    with pytest.raises(LedgerError, match="must be its own"), open_ledger(path, key=KeyringEntry("other")):
        pass
    shelf.set_password("rapt ledger", "other", "zanzibarsecret")
    with pytest.raises(LedgerError, match="64 hex digits") as refused, open_ledger(path, key=KeyringEntry("other")):
        pass
    assert "zanzibar" not in str(refused.value)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (fail.Keyring, r"keeps secrets, got keyring\.backends\.fail\.Keyring"),
        (null.Keyring, r"keeps secrets, got keyring\.backends\.null\.Keyring"),
        (PlaintextKeyring, "keeps secrets"),
        (LockedKeyring, "must be unlocked and do what it is asked, got KeyringLocked"),
        (StrangeKeyring, "got ZeroDivisionError"),
        (ForgetfulKeyring, "must keep the key"),
    ],
)
def test_a_keyring_that_keeps_no_secret_is_refused_and_no_file_holds_one(shelf, path, backend, message):
    keyring.set_keyring(backend())
    with pytest.raises(LedgerError, match=message) as refused, open_ledger(path, key=KeyringEntry()):
        pass
    assert "zanzibar" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not name_key(path).exists()
    assert not path.exists() or path.stat().st_size == 0


def test_a_chain_is_asked_through_its_first_keyring_that_keeps_secrets(shelf, path):
    keyring.set_keyring(Chain())
    with open_ledger(path, key=KeyringEntry()):
        pass
    plain, kept = Chain.backends
    assert (len(plain.kept), len(kept.kept)) == (0, 1)


def test_a_missing_library_is_named_with_the_way_out(monkeypatch, path):
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(LedgerError, match=r"'\.\[keyring\]', or name a file"), open_ledger(path, key=KeyringEntry()):
        pass
    assert not path.exists()


def test_an_option_names_an_entry_or_a_file(tmp_path):
    assert parse_key_place("keyring") == KeyringEntry()
    assert parse_key_place("keyring:a:b") == KeyringEntry("a:b")
    assert parse_key_place("./keyring").name == "keyring"
    assert str(KeyringEntry("mine")) == "keyring:mine"
    assert locate_key(tmp_path / "a", None) == tmp_path / "a.key"
    for wrong in ("keyring:", "keyring:a\nb", "keyring:" + 1025 * "a"):
        with pytest.raises(UsageError, match="printable name of 1 to 1024"):
            parse_key_place(wrong)
