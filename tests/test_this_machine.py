from rapt.this_machine import find_cache_folder


def test_the_cache_is_where_its_variables_say(monkeypatch, tmp_path):
    monkeypatch.delenv("RAPT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_cache_folder() == tmp_path / "rapt"
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "own"))
    assert find_cache_folder() == tmp_path / "own"
