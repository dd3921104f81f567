from dataclasses import replace

import pytest

from rapt.errors import MechanismError, UsageError, VocabularyError, WireError
from rapt.local.mechanisms import MECHANISMS
from rapt.service.http.admission import Gate
from rapt.service.tuning.tuner import TuningConfig, tune
from rapt.wire.adapter_files import AdapterCard
from rapt.wire.manifest import LONGEST_LABEL, MOST_LABELS, PlainTokens
from rapt.wire.mechanism_setting import KNOWN_MECHANISMS, MechanismSetting
from rapt.wire.privatized_file import (
    MAX_LINE_BYTES,
    PrivatizedFile,
    PrivatizedRecord,
    dump_query,
    parse_query,
    remove_labels,
    seal_manifest,
)
from running_service import save_privatized
from tuning_material import manifest_for, separable_file


@pytest.fixture(scope="module")
def backbone(backbones):
    return backbones["bert-tiny"]


@pytest.fixture(scope="module")
def gate(backbone):
    return Gate([backbone.bundle])


@pytest.fixture
def admit(gate, tmp_path):
    def admit_file(file):
        return gate.admit_file(save_privatized(file, tmp_path / "file.jsonl"))

    return admit_file


def one_record(backbone, *token_ids, **changes):
    return PrivatizedFile(
        manifest=replace(manifest_for(backbone), **changes), records=(PrivatizedRecord(token_ids=token_ids, label=0),)
    )


def test_every_mechanism_of_the_trusted_side_is_known_to_the_service():
    assert KNOWN_MECHANISMS.keys() >= MECHANISMS.keys()


def test_a_parameter_that_no_mechanism_has_is_refused_and_not_repeated(admit, backbone):
    setting = MechanismSetting(name="laplace", parameters={"eta": 1.0, "patient": 1})
    with pytest.raises(MechanismError, match="laplace must have no parameters but eta") as error:
        admit(one_record(backbone, 2204, mechanism=setting))
    assert "patient" not in str(error.value)


def test_a_good_file_is_admitted_with_its_longest_record(admit, training_file):
    summary = admit(training_file)
    assert summary.manifest == training_file.manifest
    assert summary.longest == max(len(record.token_ids) for record in training_file.records)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text,label\nthe patient said,1\n",
        b'{"text": "the patient said"}\n',
        b'{"schema": "rapt.privatized/2"}\n',
        "patient: \u00fc".encode("latin-1"),
        b"\x00" * 100,
        b"[" * 100_000,
        b"x" * (MAX_LINE_BYTES + 10),
    ],
    ids=["empty", "csv", "jsonl", "newer", "latin-1", "zeros", "nested", "endless"],
)
def test_what_is_not_a_privatized_file_is_refused_without_a_word_of_it(gate, tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(WireError) as error:
        gate.admit_file(tmp_path / "file")
    assert "patient" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_cut_off_anywhere_is_refused(gate, tmp_path, training_path):
    content = training_path.read_bytes()
    for length in range(0, len(content) - 1, len(content) // 40):
        (tmp_path / "file").write_bytes(content[:length])
        with pytest.raises(WireError):
            gate.admit_file(tmp_path / "file")


def test_an_unknown_mechanism_is_refused_by_the_list_and_not_by_its_name(admit, backbone):
    setting = MechanismSetting(name="the patient said", parameters={"eta": 1.0})
    with pytest.raises(MechanismError, match="laplace") as error:
        admit(one_record(backbone, 2204, mechanism=setting))
    assert "patient" not in str(error.value)


@pytest.mark.parametrize("eta", [0, -1, 1e400, "5", True, None])
def test_an_eta_that_is_no_guarantee_is_refused(gate, tmp_path, training_path, eta):
    written = {1e400: b"Infinity", "5": b'"5"', True: b"true", None: b"null"}.get(eta, str(eta).encode())
    content = training_path.read_bytes()
    assert content.count(b'"eta":60.0') == 1
    (tmp_path / "file").write_bytes(content.replace(b'"eta":60.0', b'"eta":' + written))
    with pytest.raises((MechanismError, WireError)):
        gate.admit_file(tmp_path / "file")


def test_a_file_for_another_vocabulary_is_refused_with_what_is_served(admit, backbone):
    with pytest.raises(VocabularyError, match="bert-tiny"):
        admit(one_record(backbone, 2204, vocabulary_hash="sha256:" + "0" * 64))


def test_a_file_without_records_is_refused(admit, backbone):
    with pytest.raises(UsageError, match="records=0"):
        admit(PrivatizedFile(manifest=manifest_for(backbone), records=()))


@pytest.mark.parametrize("bad", [0, 101, 102, 30_522, 2**63, 10**30], ids=str)
def test_ids_that_no_mechanism_puts_out_are_refused(admit, backbone, bad):
    # 0, 101 and 102 are [PAD], [CLS] and [SEP]; 30,522 is the size of the table.
    with pytest.raises(VocabularyError if bad < 2**31 else WireError, match="record 1"):
        admit(one_record(backbone, 2204, bad))


def test_privatized_plain_tokens_are_held_to_the_same(admit, backbone):
    plain = PlainTokens(count=1, pool=(2204,), fixed=(2204,))
    record = PrivatizedRecord(token_ids=(2204,), label=0, privatized_plain_tokens=(101,))
    with pytest.raises(VocabularyError, match="record 1"):
        admit(PrivatizedFile(manifest=manifest_for(backbone, plain_tokens=plain), records=(record,)))


def test_a_pool_outside_the_vocabulary_is_refused(admit, backbone):
    plain = PlainTokens(count=1, pool=(2204, 99_999), fixed=(2204,))
    record = PrivatizedRecord(token_ids=(2204,), label=0, privatized_plain_tokens=(2204,))
    with pytest.raises(VocabularyError, match="plain tokens"):
        admit(PrivatizedFile(manifest=manifest_for(backbone, plain_tokens=plain), records=(record,)))


def test_a_record_must_fit_and_the_longest_that_fits_does(admit, backbone):
    longest = backbone.bundle.max_tokens - 2
    assert admit(one_record(backbone, *[2204] * longest)).longest == longest
    with pytest.raises(UsageError, match="record 1 must fit into 512 positions, got 513"):
        admit(one_record(backbone, *[2204] * (longest + 1)))


def test_an_empty_record_is_refused(admit, backbone):
    with pytest.raises(UsageError, match="record 1 must have at least one token"):
        admit(one_record(backbone))


def with_parts(backbone, *, pairs=False, targets=None, **parts):
    manifest = replace(manifest_for(backbone), pairs=pairs, targets=targets)
    return PrivatizedFile(manifest=manifest, records=(PrivatizedRecord(token_ids=(2204,), label=0, **parts),))


def test_the_other_texts_of_a_record_are_held_to_the_same(admit, backbone):
    pair = {"pairs": True, "second_token_ids": (2204, 2919)}
    assert admit(with_parts(backbone, **pair, targets="privatized", target_ids=(2204,))).longest == 3
    with pytest.raises(VocabularyError, match="record 1 must have ids that a mechanism can put out"):
        admit(with_parts(backbone, pairs=True, second_token_ids=(101,)))
    with pytest.raises(VocabularyError, match="record 1 must have ids that a mechanism can put out"):
        admit(with_parts(backbone, targets="privatized", target_ids=(101,)))
    with pytest.raises(UsageError, match="record 1 must have at least one token in each of its texts"):
        admit(with_parts(backbone, pairs=True, second_token_ids=()))
    with pytest.raises(UsageError, match="record 1 must have at least one token in each of its texts"):
        admit(with_parts(backbone, targets="public", target_ids=()))
    with pytest.raises(UsageError, match="record 1 must fit into 512 positions, got 513"):
        admit(with_parts(backbone, pairs=True, second_token_ids=(2204,) * 510))


def test_a_public_target_may_be_any_token_of_the_vocabulary_and_no_other(admit, backbone):
    assert admit(with_parts(backbone, targets="public", target_ids=(101, 2204)))
    with pytest.raises(VocabularyError, match="record 1 must have a public target of this vocabulary"):
        admit(with_parts(backbone, targets="public", target_ids=(30_522,)))


@pytest.mark.parametrize("labels", [tuple(map(str, range(MOST_LABELS + 1))), ("x" * (LONGEST_LABEL + 1), "y")])
def test_labels_that_look_like_texts_are_refused_and_not_repeated(admit, backbone, labels):
    with pytest.raises(WireError, match="label column") as error:
        admit(one_record(backbone, 2204, labels=labels))
    assert "xxx" not in str(error.value)


def card_of(file, **changes):
    return replace(
        AdapterCard(
            model="bert-tiny",
            vocabulary_hash=file.manifest.vocabulary_hash,
            kind="encoder",
            method="prompt_tuning",
            task="classification",
            pairs=file.manifest.pairs,
            labels=("no", "yes"),
            mechanism=file.manifest.mechanism,
            plain_tokens=file.manifest.plain_tokens.count,
            prompt_length=4,
            training={},
            metrics={},
            weights_sha256="",
            created_by="test",
        ),
        **changes,
    )


def test_a_query_is_held_to_the_card_of_its_model(gate, training_file):
    query = remove_labels(training_file)
    gate.admit_query(query, card=card_of(query))
    other = MechanismSetting(name="laplace", parameters={"eta": 61.0})
    with pytest.raises(UsageError, match=r"eta=61, got another setting"):
        gate.admit_query(query, card=card_of(query, mechanism=other))
    with pytest.raises(UsageError, match="plain tokens 5, got plain_tokens=4"):
        gate.admit_query(query, card=card_of(query, plain_tokens=5))
    with pytest.raises(VocabularyError, match="model's vocabulary"):
        gate.admit_query(query, card=card_of(query, vocabulary_hash="sha256:" + "0" * 64))


def test_a_query_has_as_many_texts_a_record_as_the_training_text_had(gate, backbone):
    singles = separable_file(backbone, records=2)
    pairs = tuple(replace(record, second_token_ids=(2204,)) for record in singles.records)
    paired = PrivatizedFile(manifest=seal_manifest(replace(singles.manifest, pairs=True), pairs), records=pairs)
    for query, other in ((singles, paired), (paired, singles)):
        gate.admit_query(query, card=card_of(query, pairs=query.manifest.pairs))
        with pytest.raises(UsageError, match="as the training text had"):
            gate.admit_query(query, card=card_of(query, pairs=other.manifest.pairs))


def test_the_card_of_a_tuned_model_says_how_many_texts_a_record_has(backbone):
    config = TuningConfig(method="prompt_tuning", prompt_length=1, epochs=1, batch_size=2)
    adapter = tune(backbone, separable_file(backbone, records=2), config=config)
    assert not adapter.card.pairs


def test_a_model_without_reconstruction_takes_queries_with_any_plain_tokens(gate, training_file):
    gate.admit_query(remove_labels(training_file), card=card_of(training_file, plain_tokens=0))


def test_a_query_survives_json_and_has_no_labels(training_file):
    query = remove_labels(training_file)
    value = dump_query(query)
    assert parse_query(value["manifest"], value["records"]) == query
    assert value["manifest"]["labels"] is None
    assert not any("label" in record for record in value["records"])


def test_a_part_of_a_file_is_a_query_once_sealed(backbone):
    whole = separable_file(backbone, records=10, plain=2)
    part = PrivatizedFile(manifest=whole.manifest, records=whole.records[3:5])
    value = dump_query(part)
    assert value["manifest"]["records"] == 2
    assert parse_query(value["manifest"], value["records"]).records == part.records


def test_a_query_that_is_not_what_its_manifest_counts_is_refused(backbone):
    value = dump_query(separable_file(backbone, records=4))
    with pytest.raises(WireError, match="3 of 4 records"):
        parse_query(value["manifest"], value["records"][:3])
    swapped = [value["records"][1], value["records"][0], *value["records"][2:]]
    with pytest.raises(WireError, match="digest"):
        parse_query(value["manifest"], swapped)


def test_sealing_again_changes_nothing(training_file):
    assert seal_manifest(training_file.manifest, training_file.records) == training_file.manifest
