import json
import tracemalloc
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapt.errors import CorpusError, UsageError
from rapt.local.corpus import ReadingProgress, read_columns, read_corpus

SECRET = "zanzibarsecret"
TEXTS = ["good film", "naïve 你好 🎉", "two\nlines"]


def parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def dataset(folder, columns, *, files=1, **state):
    """A folder as `datasets` 5 saves it: Arrow streams, and a state that names them."""
    folder.mkdir()
    table = pa.table(columns)
    rows = -(-table.num_rows // files)
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    for i, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(i * rows, rows))
    described = {"_data_files": [{"filename": name} for name in names], "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(described))
    (folder / "dataset_info.json").write_text("{}")
    return folder


MAKE = {"a.parquet": parquet, "saved": dataset}


def rows(path, **arguments):
    return [(record.text, record.label) for record in read_corpus(path, **arguments)]


@pytest.fixture(params=MAKE)
def make(request, tmp_path):
    return lambda columns, **options: MAKE[request.param](tmp_path / request.param, columns, **options)


def shards(folder, names, *, columns=lambda place: {"text": [f"text {place}"] * 2}):
    folder.mkdir()
    for place, name in enumerate(names):
        parquet(folder / name, columns(place))
    return folder


SHARDS = [f"train-0000{place}-of-00003.parquet" for place in range(3)]


@pytest.mark.parametrize("names", [SHARDS, [f"train-0000{i}-of-00002-0a1b.parquet" for i in (0, 1)], ["b.parquet"]])
def test_a_folder_of_shards_is_read_as_one_file(tmp_path, names):
    folder = shards(tmp_path / "data", names)
    (folder / "README.md").write_text("a data set")
    expected = [(f"text {place}", None) for place in range(len(names)) for _ in range(2)]
    reading = ReadingProgress()
    assert rows(folder, label_column=None, reading=reading) == expected
    assert (reading.done, reading.total) == (len(expected), len(expected))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([SHARDS[0], SHARDS[2]], "must have all of its shards, got 2 of 3"),
        (["train-00000-of-99999999.parquet"], "must have all of its shards, got 1 of 99999999"),
        ([*SHARDS, "test-00000-of-00001.parquet"], "must hold those of one split, got 4 files of 2"),
        ([*SHARDS, "more.parquet"], "must hold those of one split, got 4 files of 1"),
    ],
)
def test_a_folder_of_other_shards_than_those_of_one_split_is_refused(tmp_path, names, message):
    with pytest.raises(CorpusError, match=message):
        rows(shards(tmp_path / "data", names), label_column=None)


def test_a_fault_in_a_later_shard_is_named_by_its_place_in_all(tmp_path):
    folder = shards(
        tmp_path / "data",
        SHARDS,
        columns=lambda place: {"text": pa.array([None if place == 2 else "fine"], pa.string())},
    )
    with pytest.raises(CorpusError, match="record 3 must have a text in 'text', got null"):
        rows(folder, label_column=None)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["yes", "no", "yes"], ["yes", "no", "yes"]),
        ([1, 0, 1], ["1", "0", "1"]),
        (pa.array(["yes", "no", "yes"]).dictionary_encode(), ["yes", "no", "yes"]),
        (pa.array(["yes", "no", "yes"], pa.large_string()), ["yes", "no", "yes"]),
    ],
)
def test_records_are_read_from_columns(make, labels, names):
    path = make({"other": [[1], [2], []], "label": labels, "text": TEXTS})
    assert rows(path) == list(zip(TEXTS, names, strict=True))
    assert rows(path, label_column=None) == [(text, None) for text in TEXTS]


def test_who_shows_progress_learns_how_much_was_read(make):
    reading, shares = ReadingProgress(), []
    for _ in read_corpus(make({"text": [f"text {i}" for i in range(3_000)]}), label_column=None, reading=reading):
        shares.append(reading.share)
    assert shares == sorted(shares)
    assert shares[-1] > 0.9
    assert reading.total > 0


def test_batches_and_files_are_read_in_order(tmp_path):
    texts = [f"text {i}" for i in range(3_000)]
    assert [
        text
        for text, _ in rows(parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=700), label_column=None)
    ] == texts
    assert [text for text, _ in rows(dataset(tmp_path / "b", {"text": texts}, files=3), label_column=None)] == texts


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence": [SECRET], "label": [1]}, "'text' among them, got 2 columns without it"),
        ({"text": [{"a": SECRET}], "label": [1]}, "column 'text' must not be nested"),
        ({"text": [[SECRET]], "label": [1]}, "column 'text' must not be nested"),
        ({"text": [SECRET], "label": [[1]]}, "column 'label' must not be nested"),
        ({"text": [3], "label": [1]}, "column 'text' must hold text, got another type"),
        ({"text": [SECRET.encode()], "label": [1]}, "column 'text' must hold text, got another type"),
        ({"text": [SECRET], "label": [0.5]}, "column 'label' must hold text or whole numbers"),
        ({"text": [SECRET], "label": [True]}, "column 'label' must hold text or whole numbers"),
        ({"text": [SECRET, None], "label": [1, 1]}, "record 2 must have a text in 'text', got null"),
        ({"text": [SECRET, "b"], "label": ["1", None]}, "record 2 must have a label in 'label'"),
        ({"text": [SECRET, "b"], "label": ["1", ""]}, "record 2 must have a label, got an empty one"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "at least one record"),
    ],
)
def test_bad_columns_are_one_clear_line(make, columns, message):
    with pytest.raises(CorpusError, match=message) as caught:
        rows(make(columns))
    assert SECRET not in str(caught.value)


def test_a_column_that_stands_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="column 'text' must stand once in the header, got it 2 times"):
        rows(tmp_path / "a.parquet", label_column=None)


@pytest.mark.parametrize("content", [b"", SECRET.encode(), b"PAR1" + SECRET.encode() + b"PAR1"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="damaged or cut off") as caught:
        rows(path)
    assert SECRET not in str(caught.value)


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": TEXTS * 100})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match="damaged or cut off"):
        rows(path, label_column=None)


def test_a_file_with_damage_in_its_middle_is_refused_as_damaged(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": [f"good film {i}" for i in range(1_000)]})
    content = bytearray(path.read_bytes())
    content[10:60] = b"\xff" * 50  # the header of the first page; the footer is whole, so the file can be opened
    path.write_bytes(bytes(content))
    with pytest.raises(CorpusError, match="damaged or cut off") as caught:
        rows(path, label_column=None)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    path = parquet(tmp_path / "a.parquet", {"text": bad})
    with pytest.raises(CorpusError, match="one of 1 records from record 1 on must be utf-8"):
        rows(path, label_column=None)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="a corpus must be readable, got No such file"):
        rows(tmp_path / "none.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(CorpusError, match="must hold some, got none"):
        rows(tmp_path / "folder.parquet")


@pytest.mark.parametrize(
    "state",
    [
        {"_data_files": []},
        {"_data_files": [{"filename": "../a.arrow"}]},
        {"_data_files": [3]},
        {"_indices_files": [{"filename": "i.arrow"}]},
    ],
)
def test_a_folder_that_is_no_saved_dataset_is_refused(tmp_path, state):
    with pytest.raises(CorpusError, match="must be a dataset as save_to_disk"):
        rows(dataset(tmp_path / "a", {"text": TEXTS}, **state), label_column=None)


def test_a_folder_of_splits_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(CorpusError, match="must be one split; give the folder of train"):
        rows(tmp_path)


def test_a_missing_or_damaged_part_is_refused(tmp_path):
    folder = dataset(tmp_path / "a", {"text": TEXTS}, files=2)
    (folder / "data-00001-of-00002.arrow").write_bytes(b"damaged")
    with pytest.raises(CorpusError, match="whole arrow files"):
        rows(folder, label_column=None)
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(CorpusError, match="must be readable"):
        rows(folder, label_column=None)


def test_without_pyarrow_the_extra_is_named(make, monkeypatch):
    path = make({"text": TEXTS})
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"run in the checkout: pip install -e '\.\[parquet\]'"):
        rows(path, label_column=None)


def test_memory_does_not_grow_with_the_file(tmp_path):
    texts = [f"{i} " + "word " * 60 for i in range(6_000)]
    path = parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=1_000)
    del texts
    tracemalloc.start()
    try:
        before = pa.total_allocated_bytes()
        peak = 0
        for _ in read_corpus(path, label_column=None):
            peak = max(peak, pa.total_allocated_bytes() - before)
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert python < 2_000_000
    assert peak < 2_000_000


@pytest.mark.parametrize("name", MAKE)
def test_columns_are_handed_back_as_they_stand_and_as_json_has_them(name, tmp_path):
    given = {"id": [7, None, 9], "day": [date(2024, 2, 29)] * 3, "x": [0.5, float("nan"), 2.0], "text": TEXTS}
    found = read_columns(MAKE[name](tmp_path / name, given), ["x", "id", "day"])
    assert found[0] == {"x": 0.5, "id": 7, "day": "2024-02-29"}
    assert [(row["x"], row["id"]) for row in found[1:]] == [(None, None), (2.0, 9)]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
