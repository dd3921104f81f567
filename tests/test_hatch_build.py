"""The wheel: with the search kernel where there is a compiler, pure Python and as right without one."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rapt.local.nearest_kernel import load_kernel

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(
    COMPILER is None or os.uname().machine != "x86_64", reason="no C compiler here that the kernel is written for"
)
# What the build reads, and nothing that it would have to leave out.
SOURCES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "src")
# Run against an unpacked wheel: which screen was taken, and what it finds.
SEARCH = """
import json, sys
import numpy as np
from rapt.local.nearest import NearestToken
rng = np.random.default_rng(3)
table = rng.standard_normal((500, 24)).astype(np.float32)
search = NearestToken(table, np.arange(500))
print(json.dumps({"screen": search.screen, "found": search.search(rng.standard_normal((400, 24))).tolist()}))
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what a wheel is built from, without the kernel that was built here."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(tree, **environment):
    """The wheel of that tree, built in a process of its own with hatchling, which asks no network."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "RAPT_NATIVE")}
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tree.parent / "dist")],
        cwd=tree,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )


def wheel_of(tree):
    (wheel,) = (tree.parent / "dist").iterdir()
    return wheel


def no_compiler(tmp_path):
    """A search path with Python on it and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python3").symlink_to(sys.executable)
    return str(folder)


def searched_with(wheel, tmp_path):
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    done = subprocess.run(
        [sys.executable, "-c", SEARCH], env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def truly_nearest():
    rng = np.random.default_rng(3)
    table = rng.standard_normal((500, 24)).astype(np.float32).astype(np.float64)
    vectors = rng.standard_normal((400, 24))
    return [int(np.square(table - vector).sum(axis=1).argmin()) for vector in vectors]


def kernels_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(".so")]


@needs_compiler
def test_with_a_compiler_the_wheel_is_for_this_platform_and_holds_the_kernel(tree, tmp_path):
    done = build(tree, RAPT_NATIVE="require")
    assert done.returncode == 0, done.stderr
    wheel = wheel_of(tree)
    assert "-py3-none-" in wheel.name
    assert "x86_64" in wheel.name
    assert kernels_in(wheel) == ["rapt/local/native/_nearest.so"]
    found = searched_with(wheel, tmp_path)
    assert found["screen"] == ("float32" if load_kernel() is None else "int8")
    assert found["found"] == truly_nearest()


def test_without_a_compiler_the_wheel_is_pure_and_finds_the_same(tree, tmp_path):
    done = build(tree, PATH=no_compiler(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "the search kernel is left out, and the search is slower: no C compiler" in done.stdout + done.stderr
    wheel = wheel_of(tree)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert kernels_in(wheel) == []
    assert searched_with(wheel, tmp_path) == {"screen": "float32", "found": truly_nearest()}


# The hook alone, as hatchling calls it.


@pytest.fixture
def hook_of(tmp_path, monkeypatch):
    """A function that makes the hook for a tree of nothing but the kernel's source, and what hatchling gives it."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("RAPT_NATIVE", raising=False)
    spec = importlib.util.spec_from_file_location("hatch_build_of_rapt", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    source = tmp_path / module.SOURCE
    source.parent.mkdir(parents=True)
    shutil.copy(ROOT / module.SOURCE, source)

    def made(target="wheel"):
        hook = module.KernelBuild(str(tmp_path), {}, None, None, str(tmp_path / "dist"), target)
        return hook, tmp_path / module.LIBRARY

    return made


def test_forbidden_it_is_left_out_and_an_older_one_is_taken_away(hook_of, monkeypatch):
    hook, library = hook_of()
    library.write_bytes(b"of an earlier build")
    monkeypatch.setenv("RAPT_NATIVE", "0")
    data = {}
    hook.initialize("standard", data)
    assert data == {}
    assert not library.exists()


@pytest.mark.parametrize(
    ("compiler", "reason"), [("/nonexistent/cc", "No such file"), ("false", "false ended with 1"), (None, "no C comp")]
)
def test_required_and_impossible_it_fails_with_the_reason(hook_of, monkeypatch, tmp_path, compiler, reason):
    hook, library = hook_of()
    monkeypatch.setenv("RAPT_NATIVE", "require")
    if compiler is None:
        monkeypatch.setenv("PATH", no_compiler(tmp_path))
    else:
        monkeypatch.setenv("CC", compiler)
    with pytest.raises(RuntimeError, match=f"the search kernel must be built, got: .*{reason}"):
        hook.initialize("standard", {})
    assert not library.exists()


@pytest.mark.parametrize("compiler", ["/nonexistent/cc", "false"])
def test_a_compiler_that_fails_is_as_good_as_none(hook_of, monkeypatch, compiler):
    hook, library = hook_of()
    monkeypatch.setenv("CC", compiler)
    data = {}
    hook.initialize("standard", data)
    assert data == {}
    assert not library.exists()
    assert list(library.parent.glob("*.partial")) == []


@pytest.mark.parametrize("content", ["no C at all", ""])
def test_a_source_that_does_not_compile_leaves_no_library_behind(hook_of, content):
    hook, library = hook_of()
    library.with_name("nearest.c").write_text(content or "int half(")
    data = {}
    hook.initialize("standard", data)
    assert data == {}
    assert not library.exists()


def test_a_source_archive_is_not_compiled_for(hook_of):
    hook, library = hook_of(target="sdist")
    data = {}
    hook.initialize("standard", data)
    assert data == {}
    assert not library.exists()
