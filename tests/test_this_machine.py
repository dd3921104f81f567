from rapt.this_machine import find_cache_folder, measure_available_memory, measure_half_of_memory


def test_the_cache_is_where_its_variables_say(monkeypatch, tmp_path):
    monkeypatch.delenv("RAPT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_cache_folder() == tmp_path / "rapt"
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "own"))
    assert find_cache_folder() == tmp_path / "own"


def test_half_of_the_memory_is_some_of_it_and_what_is_free_is_no_more_than_all():
    half = measure_half_of_memory()
    assert 2**20 <= half < 2**50
    assert 0 < measure_available_memory() <= 2 * half


def test_where_the_system_does_not_tell_its_memory_little_is_counted_on(monkeypatch):
    monkeypatch.delattr("os.sysconf")
    assert 2**20 <= measure_half_of_memory() <= 2 * 2**30
