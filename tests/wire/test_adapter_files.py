import io
import zipfile
from contextlib import nullcontext

import pytest

from rapt.errors import WireError
from rapt.wire.adapter_files import pack_adapter, unpack_adapter

FILES = {"rapt.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 40}


def test_files_come_out_of_an_archive_as_they_went_in():
    assert unpack_adapter(pack_adapter(FILES)) == FILES
    assert unpack_adapter(pack_adapter({})) == {}


def test_the_same_files_are_the_same_archive_in_whatever_order_they_come():
    assert pack_adapter(FILES) == pack_adapter(dict(reversed(FILES.items())))
    assert pack_adapter(FILES) != pack_adapter(FILES | {"rapt.json": b"[]"})


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -30])
def test_a_torn_archive_is_refused(cut):
    with pytest.raises(WireError, match="must be a whole ZIP file"):
        unpack_adapter(pack_adapter(FILES)[:cut])


def test_an_archive_that_could_swell_is_not_opened():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rapt.json", bytes(10**6))
    with pytest.raises(WireError, match="must not be compressed"):
        unpack_adapter(packed.getvalue())


def test_files_that_share_their_bytes_are_not_opened():
    # Each entry of the directory at the end points to the first file: 4 names for one run of bytes.
    content = b"w" * 10_000
    packed = bytearray(pack_adapter({f"{n}.safetensors": content if n == 0 else b"" for n in range(4)}))
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        checksum = archive.infolist()[0].CRC
    at = packed.index(b"PK\x01\x02")
    for _ in range(4):
        packed[at + 16 : at + 28] = checksum.to_bytes(4, "little") + len(content).to_bytes(4, "little") * 2
        packed[at + 42 : at + 46] = (0).to_bytes(4, "little")
        at += 46 + len("0.safetensors")
    with pytest.raises(WireError, match=r"as large as its files|must be a whole ZIP file"):
        unpack_adapter(bytes(packed))


def test_a_name_that_comes_twice_and_more_names_than_an_adapter_has_are_refused():
    for names in (["rapt.json", "rapt.json"], [f"{n}" for n in range(9)]):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive, pytest.warns() if len(set(names)) == 1 else nullcontext():
            for name in names:
                archive.writestr(name, b"{}")
        with pytest.raises(WireError, match="at most 8 files, each once"):
            unpack_adapter(packed.getvalue())


def test_a_path_in_an_archive_stays_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"../up": b"1", "/root": b"2", "C:\\x": b"3"}
    assert unpack_adapter(pack_adapter(names)) == names
    assert list(tmp_path.iterdir()) == []
