import errno
import json
from dataclasses import replace

import pytest

from code_material import codes_manifest
from manifest_material import hand_made_manifest
from rapt.errors import CorpusError, MechanismError, WireError
from rapt.wire.manifest import LabelPrivacy, Manifest, PlainTokens, dump_manifest, parse_manifest
from rapt.wire.mechanism_setting import check_eta
from rapt.wire.privatized_file import (
    MAX_LINE_BYTES,
    PrivatizedFile,
    PrivatizedRecord,
    count_privatized_tokens,
    iterate_privatized_lines,
    read_privatized_file,
    read_privatized_lines,
    remove_labels,
)
from rapt.wire.privatized_writer import write_privatized_file

SECRET = "zanzibarsecret"


FRESH = PlainTokens(count=2, pool=(5, 6, 7), fixed=None)
FIXED = PlainTokens(count=2, pool=(5, 6, 7), fixed=(7, 7))
CASES = {
    "bare": (hand_made_manifest(labels=None), [PrivatizedRecord(token_ids=(1, 2)), PrivatizedRecord(token_ids=())]),
    "labelled": (
        hand_made_manifest(),
        [PrivatizedRecord(token_ids=(1, 2), label=1), PrivatizedRecord(token_ids=(9,), label=0)],
    ),
    "fixed plain tokens": (
        hand_made_manifest(plain_tokens=FIXED),
        [PrivatizedRecord(token_ids=(3,), label=0, privatized_plain_tokens=(8, 9))],
    ),
    "fresh plain tokens": (
        hand_made_manifest(plain_tokens=FRESH),
        [PrivatizedRecord(token_ids=(3,), label=0, privatized_plain_tokens=(8, 9), plain_tokens=(5, 7))],
    ),
    "no records": (hand_made_manifest(), []),
    "pairs": (
        replace(hand_made_manifest(plain_tokens=FIXED), pairs=True),
        [PrivatizedRecord(token_ids=(3, 4), label=0, privatized_plain_tokens=(8, 9), second_token_ids=(5,))],
    ),
    "privatized targets": (
        replace(hand_made_manifest(labels=None), targets="privatized"),
        [PrivatizedRecord(token_ids=(3,), target_ids=(5, 6))],
    ),
    "pairs with public targets": (
        replace(hand_made_manifest(), pairs=True, targets="public"),
        [PrivatizedRecord(token_ids=(3,), label=1, second_token_ids=(7,), target_ids=(5, 6))],
    ),
    "codes": (
        codes_manifest(),
        [PrivatizedRecord(token_ids=(11,), label=1), PrivatizedRecord(token_ids=(0,), label=0)],
    ),
    "pairs of two codes each": (
        codes_manifest(codes=2, labels=None, pairs=True),
        [PrivatizedRecord(token_ids=(3, 3), second_token_ids=(0, 11))],
    ),
}


def write(path, manifest, records):
    with write_privatized_file(path, manifest, overwrite=True) as writer:
        for record in records:
            writer.write(record)
    return path


@pytest.fixture
def good(tmp_path):
    records = [PrivatizedRecord(token_ids=tuple(range(i + 1)), label=i % 2) for i in range(20)]
    return write(tmp_path / "good.jsonl", hand_made_manifest(), records)


@pytest.mark.parametrize("case", CASES)
def test_what_was_written_is_read(tmp_path, case):
    manifest, records = CASES[case]
    read = read_privatized_file(write(tmp_path / "file", manifest, records))
    assert list(read.records) == records
    tokens = sum(count_privatized_tokens(record, manifest) for record in records)
    assert read.manifest == replace(
        manifest, records=len(records), tokens=tokens, records_sha256=read.manifest.records_sha256
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_lines_are_ascii_json_and_the_first_is_the_manifest(good):
    lines = good.read_bytes().splitlines()
    assert len(lines) == 21
    assert all(line.isascii() for line in lines)
    assert json.loads(lines[0])["schema"] == "rapt.privatized/1"
    assert json.loads(lines[1]) == {"token_ids": [0], "label": 0}


def test_the_manifest_is_known_before_the_records_are_read(good):
    items = iterate_privatized_lines(good.read_bytes().splitlines(keepends=True))
    assert isinstance(next(items), Manifest)
    assert isinstance(next(items), PrivatizedRecord)


def test_a_file_of_lines_in_memory_is_the_same(good):
    read = read_privatized_lines(good.read_bytes().splitlines(keepends=True))
    assert isinstance(read, PrivatizedFile)
    assert read == read_privatized_file(good)


def test_a_file_cut_off_anywhere_is_refused(good, tmp_path):
    content = good.read_bytes()
    cut = tmp_path / "cut"
    for length in [0, 1, 100, *range(content.index(b"\n"), len(content), 37), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(WireError):
            read_privatized_file(cut)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"token_ids":[0,1],', b'{"token_ids":[0,2],'),
        (b'"label":1}\n{"token_ids":[0,1,2],', b'"label":0}\n{"token_ids":[0,1,2],'),
        (b'"records":20', b'"records":21'),
        (b'"records":20', b'"records":19'),
        (b'"tokens":210', b'"tokens":211'),
    ],
)
def test_an_edited_file_is_refused(good, old, new):
    content = good.read_bytes()
    assert content.count(old) == 1
    good.write_bytes(content.replace(old, new))
    with pytest.raises(WireError, match="edited"):
        read_privatized_file(good)


def test_two_records_that_changed_places_are_noticed(good):
    lines = good.read_bytes().splitlines(keepends=True)
    lines[3], lines[5] = lines[5], lines[3]
    with pytest.raises(WireError, match="must match the digest in its manifest"):
        read_privatized_lines(lines)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="a privatized file must be readable, got No such file"):
        read_privatized_file(tmp_path / "none")


@pytest.mark.parametrize(
    "line",
    [
        SECRET.encode(),
        b'{"token_ids": [1], "label": 0, "text": "' + SECRET.encode() + b'"}',
        b'{"' + SECRET.encode() + b'": 1, "token_ids": [1]}',
        b'["' + SECRET.encode() + b'"]',
        b'{"token_ids": "' + SECRET.encode() + b'", "label": 0}',
        b'{"token_ids": ["' + SECRET.encode() + b'"], "label": 0}',
        b'{"token_ids": [1], "label": "' + SECRET.encode() + b'"}',
        b'{"token_ids": [-1], "label": 0}',
        b'{"token_ids": [1.0], "label": 0}',
        b'{"token_ids": [true], "label": 0}',
        b'{"token_ids": [1], "token_ids": [2], "label": 0}',
        b'{"token_ids": [NaN], "label": 0}',
        b'{"label": 0}',
        b'{"token_ids": [1], "label": true}',
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
    ],
)
def test_a_damaged_record_is_refused_by_its_position_and_never_quoted(good, line):
    lines = good.read_bytes().splitlines(keepends=True)
    lines[4] = line + b"\n"
    with pytest.raises(WireError, match="record 4") as caught:
        read_privatized_lines(lines)
    assert SECRET not in str(caught.value) + repr(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_plain_text_is_not_a_privatized_file(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text(f"text,label\n{SECRET},1\n")
    with pytest.raises(WireError, match="the first line must be one JSON object") as caught:
        read_privatized_file(path)
    assert SECRET not in str(caught.value)


def test_an_enormous_line_is_refused(good):
    lines = good.read_bytes().splitlines(keepends=True)
    with pytest.raises(WireError, match=f"record 1 must be at most {MAX_LINE_BYTES} bytes"):
        read_privatized_lines([lines[0], b" " * MAX_LINE_BYTES + b"\n"])
    with pytest.raises(WireError, match=f"the manifest must be at most {MAX_LINE_BYTES} bytes"):
        read_privatized_lines([b" " * MAX_LINE_BYTES + b"\n"])


# Records that contradict their manifest are refused on both sides.

CONTRADICTIONS = {
    "a label without names": (hand_made_manifest(labels=None), PrivatizedRecord(token_ids=(1,), label=0), "no label"),
    "no label": (hand_made_manifest(), PrivatizedRecord(token_ids=(1,)), "a label from 0 to 1"),
    "a label out of range": (hand_made_manifest(), PrivatizedRecord(token_ids=(1,), label=2), "a label from 0 to 1"),
    "plain tokens that were not announced": (
        hand_made_manifest(),
        PrivatizedRecord(token_ids=(1,), label=0, privatized_plain_tokens=(5,)),
        "0 privatized plain tokens, got 1",
    ),
    "too few plain tokens": (
        hand_made_manifest(plain_tokens=FIXED),
        PrivatizedRecord(token_ids=(1,), label=0, privatized_plain_tokens=(5,)),
        "2 privatized plain tokens, got 1",
    ),
    "fresh ones that are missing": (
        hand_made_manifest(plain_tokens=FRESH),
        PrivatizedRecord(token_ids=(1,), label=0, privatized_plain_tokens=(5, 6)),
        "2 plain tokens of its own",
    ),
    "fresh ones outside the pool": (
        hand_made_manifest(plain_tokens=FRESH),
        PrivatizedRecord(token_ids=(1,), label=0, privatized_plain_tokens=(5, 6), plain_tokens=(5, 8)),
        "of the manifest's pool",
    ),
    "a second text that was not announced": (
        hand_made_manifest(),
        PrivatizedRecord(token_ids=(1,), label=0, second_token_ids=(2,)),
        "must have no second text",
    ),
    "a second text that is missing": (
        replace(hand_made_manifest(), pairs=True),
        PrivatizedRecord(token_ids=(1,), label=0),
        "must have a second text",
    ),
    "a target that was not announced": (
        hand_made_manifest(),
        PrivatizedRecord(token_ids=(1,), label=0, target_ids=(2,)),
        "must have no target",
    ),
    "a target that is missing": (
        replace(hand_made_manifest(), targets="privatized"),
        PrivatizedRecord(token_ids=(1,), label=0),
        "must have a target",
    ),
    "its own although they are fixed": (
        hand_made_manifest(plain_tokens=FIXED),
        PrivatizedRecord(token_ids=(1,), label=0, privatized_plain_tokens=(5, 6), plain_tokens=(5, 6)),
        "no plain tokens of its own",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_record_that_contradicts_its_manifest_is_not_written_and_leaves_nothing(tmp_path, case):
    manifest, record, message = CONTRADICTIONS[case]
    with pytest.raises(WireError, match=message):
        write(tmp_path / "file", manifest, [record])
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_no_partial_file_and_keeps_the_earlier_one(tmp_path):
    path = write(tmp_path / "file", *CASES["labelled"])
    before = path.read_bytes()

    def records():
        yield PrivatizedRecord(token_ids=(1,), label=0)
        assert (tmp_path / "file.partial").exists()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(path, hand_made_manifest(), records())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    def records():
        yield PrivatizedRecord(token_ids=(1,), label=0)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CorpusError, match="the output must be writable, got No space left on device"):
        write(tmp_path / "file", hand_made_manifest(), records())
    assert list(tmp_path.iterdir()) == []


# The manifest.


@pytest.mark.parametrize("case", CASES)
def test_a_manifest_survives_json(case):
    manifest = CASES[case][0]
    assert parse_manifest(json.loads(json.dumps(dump_manifest(manifest)))) == manifest


def test_a_file_of_single_texts_keeps_the_first_schema_to_the_byte(good):
    first = json.loads(good.read_bytes().splitlines()[0])
    assert first["schema"] == "rapt.privatized/1"
    assert not {"pairs", "targets"} & first.keys()
    assert dump_manifest(replace(hand_made_manifest(), pairs=True))["schema"] == "rapt.privatized/2"


@pytest.mark.parametrize(("targets", "tokens"), [("privatized", 2 + 1 + 3), ("public", 2 + 1)])
def test_tokens_are_those_that_went_through_the_mechanism(tmp_path, targets, tokens):
    record = PrivatizedRecord(token_ids=(1, 2), label=0, second_token_ids=(3,), target_ids=(4, 5, 6))
    path = write(tmp_path / "file", replace(hand_made_manifest(), pairs=True, targets=targets), [record])
    assert read_privatized_file(path).manifest.tokens == tokens


def test_a_query_has_neither_label_nor_target():
    records = (PrivatizedRecord(token_ids=(1,), label=0, second_token_ids=(3,), target_ids=(4,)),)
    manifest = replace(hand_made_manifest(), pairs=True, targets="privatized")
    query = remove_labels(PrivatizedFile(manifest=manifest, records=records))
    assert query.records == (PrivatizedRecord(token_ids=(1,), second_token_ids=(3,)),)
    assert (query.manifest.pairs, query.manifest.targets, query.manifest.tokens) == (True, None, 2)


HIDDEN = {"mechanism": "randomized-response", "epsilon": 1.0}


def changed(**fields):
    return {**dump_manifest(hand_made_manifest(plain_tokens=FIXED)), **fields}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "must be a manifest of schema 'rapt.privatized/1'"),
        (changed(schema="rapt.privatized/3"), "must be a manifest of schema 'rapt.privatized/1'"),
        (changed(schema="rapt.privatized/2"), "must have the field 'pairs'"),
        (changed(pairs=True), "has a field this version does not know"),
        (changed(schema="rapt.privatized/2", pairs=False, targets=None), "schema 'rapt.privatized/1' when records"),
        (changed(schema="rapt.privatized/2", pairs=1, targets=None), "pairs of type bool, got int"),
        (changed(schema="rapt.privatized/2", pairs=True, targets=SECRET), "privatized or public, or null"),
        (changed(schema="rapt.privatized/2", pairs=True, targets=[]), "privatized or public, or null"),
        (changed(surprise=SECRET), "has a field this version does not know"),
        (changed(records="1"), "must have records of type int, got str"),
        (changed(records=-1), "must have records from 0"),
        (changed(labels=[1]), "labels as a list of names"),
        (changed(labels=["a", "a"]), "name each label once"),
        (changed(mechanism={"name": "laplace", "parameters": {}}), "must state eta"),
        (
            changed(mechanism={"name": "laplace", "parameters": {"eta": 1, "x": [SECRET]}}),
            "numbers, words or true/false",
        ),
        (changed(randomness={"source": 3, "insecure_seed": None}), "source of type str, got int"),
        (changed(randomness={"source": "x", "insecure_seed": "3"}), "insecure_seed of type int, got str"),
        (changed(label_privacy=1), "label_privacy of type dict, got int"),
        (changed(label_privacy={"mechanism": "randomized-response"}), "must have the field 'epsilon'"),
        (changed(label_privacy={"mechanism": "randomized-response", "epsilon": "1"}), "epsilon of type float, got str"),
        (changed(labels=None, label_privacy=HIDDEN), "at least two labels"),
        (changed(labels=["one"], label_privacy=HIDDEN), "at least two labels"),
        (changed(plain_tokens={"count": 1, "pool": [], "fixed": None}), "must come from a pool"),
        (changed(plain_tokens={"count": 1, "pool": [5, 5], "fixed": None}), "each id once in the pool"),
        (changed(plain_tokens={"count": 2, "pool": [5], "fixed": [5]}), "2 ids of the pool when fixed, got 1"),
        (changed(plain_tokens={"count": 1, "pool": [5], "fixed": [6]}), "ids of the pool when fixed"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(value, message):
    with pytest.raises(WireError, match=message) as caught:
        parse_manifest(value)
    assert SECRET not in str(caught.value)


def test_a_manifest_says_how_its_labels_were_privatized():
    manifest = replace(hand_made_manifest(), label_privacy=LabelPrivacy(epsilon=1))
    stated = dump_manifest(manifest)
    assert stated["label_privacy"] == {"mechanism": "randomized-response", "epsilon": 1.0}
    assert parse_manifest(json.loads(json.dumps(stated))) == manifest
    assert parse_manifest(dump_manifest(hand_made_manifest())).label_privacy is None


@pytest.mark.parametrize("epsilon", [0, -1, 1e-7, float("nan"), float("inf"), True, "1", None])
def test_an_epsilon_of_labels_outside_its_domain_is_refused(epsilon):
    with pytest.raises(MechanismError, match="the epsilon of labels must be finite and at least"):
        LabelPrivacy(epsilon=epsilon)


def test_an_unknown_mechanism_for_labels_is_refused():
    with pytest.raises(MechanismError, match="upgrade rapt") as caught:
        parse_manifest(changed(label_privacy={"mechanism": SECRET, "epsilon": 1}))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in dump_manifest(hand_made_manifest()) if name != "schema"])
def test_a_manifest_without_one_of_its_fields_is_refused(name):
    value = changed()
    del value[name]
    with pytest.raises(WireError, match=f"must have the field '{name}'"):
        parse_manifest(value)


@pytest.mark.parametrize("eta", [0, -3, float("nan"), float("inf"), True, "75", None])
def test_an_eta_outside_its_domain_is_refused(eta):
    with pytest.raises(MechanismError, match="eta must be a finite number above 0"):
        check_eta(eta)


def test_an_eta_that_is_whole_is_a_float_afterwards():
    assert type(check_eta(75)) is float


def test_a_file_whose_lines_end_as_on_windows_is_the_same_file(good, tmp_path):
    converted = tmp_path / "converted.jsonl"
    converted.write_bytes(good.read_bytes().replace(b"\n", b"\r\n"))
    assert read_privatized_file(converted) == read_privatized_file(good)
    converted.write_bytes(
        converted.read_bytes().replace(b'"label": 1', b'"label": 0').replace(b'"label":1', b'"label":0')
    )
    with pytest.raises(WireError, match="take it as it was written"):
        read_privatized_file(converted)


def test_a_manifest_of_codes_says_what_its_unit_is_and_has_a_schema_of_its_own():
    manifest = codes_manifest()
    described = dump_manifest(manifest)
    assert list(described)[:2] == ["schema", "unit"]
    assert (described["schema"], described["unit"]) == ("rapt.codes/1", "text")
    assert (manifest.unit, manifest.mechanism.epsilon) == ("text", 4.0)
    assert manifest.mechanism.describe_strength() == "epsilon=4"
    assert (hand_made_manifest().unit, hand_made_manifest().mechanism.describe_strength()) == ("token", "eta=75")
    with pytest.raises(MechanismError, match="protects whole texts"):
        _ = manifest.mechanism.eta
    with pytest.raises(MechanismError, match="one that protects tokens"):
        _ = hand_made_manifest().mechanism.epsilon


@pytest.mark.parametrize("epsilon", [0, -1.0, 64.5, 10**401, float("nan"), float("inf"), "4", True, None])
def test_no_manifest_of_codes_has_an_epsilon_outside_its_domain(epsilon):
    described = dump_manifest(codes_manifest())
    described["records_sha256"] = "0" * 64
    described["mechanism"]["parameters"]["epsilon"] = epsilon
    with pytest.raises((MechanismError, WireError)) as refused:
        parse_manifest(described)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"preferred": 12}, "fewer preferred codewords than codewords"),
        ({"preferred": 0}, "fewer preferred codewords than codewords"),
        ({"codewords": 65_537}, "codewords from 0 to 65536"),
        ({"codes": 0}, "at least one code"),
        ({"codes": 65}, "codes from 0 to 64"),
        ({"codes": True}, "of type int"),
        ({"surprise": 1}, "a field this version does not know"),
    ],
)
def test_parameters_that_define_no_law_are_refused(changes, reason):
    described = dump_manifest(codes_manifest())
    described["mechanism"]["parameters"] |= changes
    with pytest.raises(WireError, match=reason):
        parse_manifest(described)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unit": "token"}, "unit as text"),
        ({"targets": "public"}, "no targets"),
        ({"plain_tokens": {"count": 1, "pool": [1], "fixed": None}}, "no plain tokens"),
        ({"plain_tokens": {"count": 0, "pool": [1], "fixed": None}}, "no plain tokens"),
        ({"records": 2, "tokens": 3}, "2 tokens for records=2"),
        ({"mechanism": {"name": "laplace", "parameters": {"eta": 3}}}, "protects whole texts"),
        ({"schema": "rapt.privatized/2", "pairs": True}, "does not know"),
        ({"schema": "rapt.codes/2"}, "must be a manifest of schema"),
    ],
)
def test_what_no_file_of_codes_has_is_refused(changes, reason):
    with pytest.raises(WireError, match=reason):
        parse_manifest(dump_manifest(codes_manifest()) | changes)


def test_a_mechanism_of_whole_texts_is_in_no_file_of_tokens():
    described = dump_manifest(hand_made_manifest()) | {"mechanism": dump_manifest(codes_manifest())["mechanism"]}
    with pytest.raises(WireError, match="and no other, must have a mechanism that protects whole texts"):
        parse_manifest(described)


@pytest.mark.parametrize("ids", [(), (1,), (1, 2, 3), (1, 12), (1, -1), (1, 2**31)])
@pytest.mark.parametrize("part", ["first", "second"])
def test_every_text_of_a_file_of_codes_has_its_number_of_codewords(tmp_path, ids, part):
    manifest = codes_manifest(codes=2, labels=None, pairs=True)
    texts = {"token_ids": (1, 2), "second_token_ids": (1, 2)}
    texts["token_ids" if part == "first" else "second_token_ids"] = ids
    with pytest.raises(WireError, match="record 1 must have 2 codes below 12 for each text"):
        write(tmp_path / "file", manifest, [PrivatizedRecord(**texts)])
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_file_of_codes_is_continued(tmp_path):
    manifest, record = codes_manifest(labels=None), PrivatizedRecord(token_ids=(3,))
    write(tmp_path / "f", manifest, [record])
    (tmp_path / "f").rename(tmp_path / "f.partial")
    with write_privatized_file(tmp_path / "f", manifest, resume=True) as out:
        assert list(out.kept()) == [record]
        out.write(record)
    assert read_privatized_file(tmp_path / "f").records == (record, record)
