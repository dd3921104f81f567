"""Every document of the wire, bent in any way: a value that can be kept and shown again, or one line that says why."""

import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_material import codes_manifest
from hostile_documents import MARKER, mutations_of, value_or_refusal
from rapt.errors import MechanismError, WireError
from rapt.wire.adapter_files import AdapterCard, dump_card, pack_adapter, parse_card, unpack_adapter
from rapt.wire.manifest import LabelPrivacy, Manifest, PlainTokens, Randomness, dump_manifest, parse_manifest
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import (
    PrivatizedFile,
    PrivatizedRecord,
    dump_query,
    parse_query,
    parse_record,
    read_privatized_lines,
)
from rapt.wire.privatized_writer import PrivatizedFileWriter, write_privatized_file
from rapt.wire.strict_json import check_json, dump_line, parse_document

RECORDS = tuple(
    PrivatizedRecord(
        token_ids=(1, 2, 3),
        label=position % 2,
        privatized_plain_tokens=(8, 9),
        plain_tokens=(5, 6),
        second_token_ids=(4,),
        target_ids=(7, 7),
    )
    for position in range(3)
)
MANIFEST = Manifest(
    model="a-model",
    vocabulary_hash="sha256:" + "ab" * 32,
    mechanism=MechanismSetting(name="exponential", parameters={"eta": 60.0, "calibrated": True, "prior": "uniform"}),
    randomness=Randomness(source="of the operating system", insecure_seed=3),
    plain_tokens=PlainTokens(count=2, pool=(5, 6, 7), fixed=None),
    labels=("no", "yes"),
    label_privacy=LabelPrivacy(epsilon=1.0),
    records=0,
    tokens=0,
    records_sha256="",
    created_by="rapt 0.1",
    pairs=True,
    targets="privatized",
)
CARD = AdapterCard(
    model="a-model",
    vocabulary_hash=MANIFEST.vocabulary_hash,
    kind="encoder",
    method="prompt_tuning",
    task="classification",
    pairs=True,
    labels=("no", "yes"),
    mechanism=MANIFEST.mechanism,
    plain_tokens=2,
    prompt_length=10,
    training={"epochs": 3, "learning_rate": 0.1, "lora_targets": "", "init": None},
    metrics={"task_loss": 0.5},
    weights_sha256="ab" * 32,
    created_by="rapt 0.1",
)
QUERY = dump_query(PrivatizedFile(manifest=MANIFEST, records=RECORDS))
CODES = PrivatizedFile(
    manifest=codes_manifest(codes=2, pairs=True, label_privacy=LabelPrivacy(epsilon=1.0)),
    records=(PrivatizedRecord(token_ids=(0, 11), second_token_ids=(3, 3), label=1),) * 3,
)
QUERY_OF_CODES = dump_query(CODES)
ARCHIVE = pack_adapter({"rapt.json": dump_line(dump_card(CARD)).encode(), "adapter_model.safetensors": bytes(200)})


def written():
    stream = io.BytesIO()
    writer = PrivatizedFileWriter(stream, MANIFEST)
    for record in RECORDS:
        writer.write(record)
    writer.finish()
    return stream.getvalue()


FILE = written()


def shown_again(value):
    """What was read can be kept as JSON, read again, and written in UTF-8 by anybody."""
    check_json(value, what="it")
    return parse_document(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8"), what="it")


@given(mutations_of(QUERY["manifest"]) | mutations_of(QUERY_OF_CODES["manifest"]))
def test_a_manifest_is_read_and_can_be_shown_again_or_is_refused(value):
    manifest = value_or_refusal(lambda: parse_manifest(value) if isinstance(value, dict) else None)
    if manifest is not None:
        assert parse_manifest(shown_again(dump_manifest(manifest))) == manifest


@given(mutations_of(dump_card(CARD)))
def test_a_card_is_read_and_can_be_shown_again_or_is_refused(value):
    card = value_or_refusal(lambda: parse_card(value) if isinstance(value, dict) else None)
    if card is not None:
        assert parse_card(shown_again(dump_card(card))) == card


@given(mutations_of(QUERY["records"][0]))
def test_a_record_is_read_or_refused(value):
    record = value_or_refusal(lambda: parse_record(value, position=0) if isinstance(value, dict) else None)
    if record is not None:
        assert all(0 <= token_id < 2**31 for token_id in record.token_ids)


@given(mutations_of(QUERY) | mutations_of(QUERY_OF_CODES))
def test_a_query_is_read_and_can_be_shown_again_or_is_refused(value):
    def read():
        return parse_query(value["manifest"], value["records"])

    parts = value if isinstance(value, dict) else {}
    if not isinstance(parts.get("manifest"), dict) or not isinstance(parts.get("records"), list):
        return  # the schema of a request refuses it
    if all(isinstance(record, dict) for record in parts["records"]) and (query := value_or_refusal(read)) is not None:
        shown_again(dump_query(query))


@given(mutations_of(QUERY) | mutations_of(QUERY_OF_CODES), st.booleans())
def test_a_file_is_read_and_can_be_written_again_or_is_refused(value, ascii_only):
    parts = value if isinstance(value, dict) else {"manifest": value, "records": []}
    records = parts.get("records") if isinstance(parts.get("records"), list) else [parts.get("records")]
    lines = [json.dumps(item, ensure_ascii=ascii_only) for item in (parts.get("manifest"), *records)]
    raw = [f"{line}\n".encode("utf-8", "surrogatepass") for line in lines]
    file = value_or_refusal(lambda: read_privatized_lines(raw))
    if file is not None:
        shown_again(dump_query(file))


@given(st.integers(0, len(FILE) - 1), st.binary(max_size=4) | st.just(MARKER.encode()), st.integers(0, 4))
def test_a_file_with_other_bytes_anywhere_is_refused(place, inserted, removed):
    bent = FILE[:place] + inserted + FILE[place + removed :]
    file = value_or_refusal(lambda: read_privatized_lines(bent.splitlines(keepends=True)))
    assert file is None or file.records == RECORDS


@given(st.integers(0, len(ARCHIVE) - 1), st.binary(max_size=4) | st.just(MARKER.encode()), st.integers(0, 4))
def test_an_archive_with_other_bytes_anywhere_is_refused_or_no_larger_than_it_is(place, inserted, removed):
    bent = ARCHIVE[:place] + inserted + ARCHIVE[place + removed :]
    files = value_or_refusal(lambda: unpack_adapter(bent))
    assert files is None or sum(map(len, files.values())) <= len(bent)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("eta", MARKER), ("eta", f"{MARKER}" * 10**6), ("eta", 1e400), ("eta", 10**401), ("eta", "1\n"),
        ("\ud800", 1), ("metric\x00", 1), ("Metric", 1), ("m" * 65, 1), ("prior", "\ud800"), ("prior", "\x00"),
        ("prior", "a\nb"), ("prior", "a" * 257), ("prior", ""), ("prior", [1]), ("penalty", 2**64), ("penalty", None),
    ],
)  # fmt: skip
def test_what_would_poison_a_list_of_files_is_no_parameter(name, bad):
    value = dump_manifest(MANIFEST)
    value["mechanism"]["parameters"][name] = bad
    with pytest.raises((WireError, MechanismError)) as refused:
        parse_manifest(value)
    assert MARKER not in str(refused.value)


def test_no_mechanism_has_parameters_by_the_thousand():
    value = dump_manifest(MANIFEST)
    value["mechanism"]["parameters"] |= {f"p{number}": number for number in range(14)}
    with pytest.raises(WireError, match="at most 16 parameters"):
        parse_manifest(value)


@pytest.mark.parametrize("labels", [["\ud800", "a"], ["a\x00", "b"], ["\x1b[2J", "b"]])
def test_a_manifest_that_no_reader_takes_is_not_begun(tmp_path, labels):
    with (
        pytest.raises(WireError, match="control character"),
        write_privatized_file(tmp_path / "file", replace(MANIFEST, labels=tuple(labels))),
    ):
        raise AssertionError("the block must not begin")
    assert list(tmp_path.iterdir()) == []
