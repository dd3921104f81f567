import io
import zipfile

import pytest

from rapt.errors import WireError
from rapt.wire.adapter_archive import pack_adapter, unpack_adapter

FILES = {"rapt.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 40}


def test_files_come_out_of_an_archive_as_they_went_in():
    assert unpack_adapter(pack_adapter(FILES)) == FILES
    assert unpack_adapter(pack_adapter({})) == {}


def test_the_same_files_are_the_same_archive_in_whatever_order_they_come():
    assert pack_adapter(FILES) == pack_adapter(dict(reversed(FILES.items())))
    assert pack_adapter(FILES) != pack_adapter(FILES | {"rapt.json": b"[]"})


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -30])
def test_a_torn_archive_is_refused(cut):
    with pytest.raises(WireError, match="must be whole"):
        unpack_adapter(pack_adapter(FILES)[:cut])


def test_an_archive_that_could_swell_is_not_opened():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rapt.json", bytes(10**6))
    with pytest.raises(WireError, match="must not be compressed"):
        unpack_adapter(packed.getvalue())
