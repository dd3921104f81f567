"""The documents are tested: what they show runs, what they name exists, where they point there is something."""

from __future__ import annotations

import ast
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

import file_list
from rapt.cli.help_pages import GROUPS, write_help_pages
from rapt.cli.program import COMMANDS, name_command, run
from rapt.errors import RaptError
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from running_service import running_service

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "requirements/*.md", "benchmarks/*.md") for path in ROOT.glob(pattern)
)
README = ROOT / "README.md"
# Hosts that a document may send a reader to; everything else is a relative link or loopback.
HOSTS = {"arxiv.org", "doi.org", "github.com", "keepachangelog.com", "127.0.0.1:8420", "127.0.0.1"}
FENCE = re.compile(r"(<!-- runs -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def blocks(path: Path, language: str, *, only_runs: bool = False) -> Iterator[str]:
    for runs, name, content in FENCE.findall(path.read_text(encoding="utf-8")):
        if name == language and (runs or not only_runs):
            yield content


def calls_of_rapt(path: Path) -> Iterator[list[str]]:
    """Every call of the program in a document's shell blocks and inline code, as words."""
    text = path.read_text(encoding="utf-8")
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for call in re.findall(r"(?:^|\$\(|\| )(?:\.venv/bin/)?rapt ([^|)]*)", line):
                yield shlex.split(call, comments=True)
    for call in re.findall(r"`rapt ([^`\n]+)`", FENCE.sub("", text)):
        yield re.split(r"\s+", call)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    backbones = load_backbones(load_settings({"models": "minilm", "precision": "float32"}))
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as url:
        yield url


def test_the_help_pages_are_the_programs_own_and_name_every_exit_code():
    text = write_help_pages()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == text, "run `make help-pages`"
    for kind in RaptError.__subclasses__():
        assert f"| {kind.exit_code} |" in text


def test_the_readmes_shell_blocks_run(service, tmp_path: Path):
    rows = [f"the soup was {'good' if i % 2 else 'bad'} and so was the bread,{i % 2}\n" for i in range(12)]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(rows))
    (tmp_path / "queries.csv").write_text("text\nthe bread was good\nthe soup was bad\n")
    script = "set -euo pipefail\n" + "\n".join(blocks(README, "bash", only_runs=True))
    done = subprocess.run(
        ["bash", "-c", script.replace("http://127.0.0.1:8420", service)],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"label"') == 2
    assert (tmp_path / "audit" / "report.html").is_file()


def test_the_readmes_python_blocks_run(tmp_path: Path):
    found = list(blocks(README, "python", only_runs=True))
    assert found
    for block in found:
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_the_examples_of_the_python_page_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False)
    assert (failed, tried > 10) == (0, True)


@cache
def options_of(*command: str) -> set[str]:
    """The options that the help of a command names."""
    with redirect_stdout(io.StringIO()) as out:
        run([*command, "--help"])
    return set(re.findall(r"--[a-z-]+", out.getvalue()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_option_in_a_document_exists(path: Path):
    groups = {group.split()[0] for group in GROUPS}
    names = {name_command(command) for command in COMMANDS} | groups
    for words in calls_of_rapt(path):
        if words[0].startswith("-"):
            continue
        assert words[0] in names, f"rapt {words[0]}"
        known = options_of(*words[: 2 if words[0] in groups else 1])
        asked = {re.match(r"--[a-z-]+", word)[0] for word in words if word.startswith("--")}
        assert asked <= known, f"rapt {words[0]}: {asked - known}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_project_resolves(path: Path):
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_no_path_of_a_machine_and_no_unexpected_host(path: Path):
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|opt|work|usr|mnt|Users)/\S*", text)
    assert {host.rstrip(".") for host in re.findall(r"https?://([\w.:-]+)", text)} <= HOSTS


def test_no_text_of_ours_installs_the_package_of_that_name_from_an_index():
    """It is another project's: to install it would run a stranger's code where the plain text is."""
    named = re.compile(
        r"\b(?:install|uvx|uv add|pipx run)\s+(?:-\S+\s+)*['\"]?rapt(?![\w.-])|"
        r"rapt\[(?:service|audit|demo|dev|parquet|postgresql|tensorboard|processes|entities)\b"
    )
    texts = [
        path
        for pattern in ("src/**/*.py", "benchmarks/**/*", "examples/**/*", "Makefile")
        for path in ROOT.glob(pattern)
    ]
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in [*texts, *DOCUMENTS]
        if path.is_file() and path.suffix != ".pyc"
        for match in named.finditer(path.read_text(encoding="utf-8"))
    }
    assert not found
    for wrong in ("pip install rapt", "run: pip install 'rapt[service]'", "install rapt[entities]", "uvx rapt demo"):
        assert named.search(wrong)


def test_make_targets_in_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z-]+)`", path.read_text(encoding="utf-8")))
        assert named <= targets, (path.name, named - targets)


def test_every_test_that_the_makefile_names_exists():
    text = (ROOT / "Makefile").read_text()
    text = re.sub(
        r"\$\(addprefix ([^,]*),([^)]*)\)",
        lambda call: " ".join(call[1] + name for name in call[2].replace("\\\n", " ").split()),
        text,
    )
    named = re.findall(r"\btests/[\w/.:]+", text)
    assert len(named) > 20
    for name in named:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        assert f"def {test}(" in (ROOT / path).read_text() if test else True, name


def test_the_map_has_a_line_for_every_file_of_the_code():
    text = file_list.PAGE.read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w/.]+\.(?:py|c))` \| .", text, re.MULTILINE))
    files = {path.relative_to(file_list.SOURCE).as_posix() for path in file_list.source_files()}
    assert listed == files, "run `make help-pages`"


def test_the_map_names_files_and_functions_that_exist():
    text = file_list.PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[\w]+/)*[\w]+\.(?:py|c)|(?:\w+/)+)`", text):
        assert any((root / name).exists() for root in (file_list.SOURCE, file_list.SOURCE.parent, ROOT)), name
    named = re.findall(r"`([\w/]+\.py)`: `([\w.]+)`", text)
    assert len(named) > 50
    for path, name in named:
        body: list[ast.stmt] = ast.parse((file_list.SOURCE / path).read_text(encoding="utf-8")).body
        for part in name.split("."):
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            found = [node for node in body if isinstance(node, kinds) and node.name == part]
            assert found, f"{path} has no {name}; correct docs/architecture.md"
            body = found[0].body


def test_every_decision_is_in_the_list():
    folder = ROOT / "docs" / "decisions"
    listed = set(LINK.findall((folder / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in folder.glob("0*.md")}


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as they are made on the usual hosts."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_oldest_library_that_is_tested_is_the_oldest_that_is_allowed():
    (allowed,) = re.findall(r'"transformers>=([0-9.]+),', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    major, minor = allowed.split(".")
    assert f"OLDEST := transformers=={major}.{minor}.0\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
