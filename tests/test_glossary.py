"""Every name that the documents promise exists: code names of the glossary, tests and files that pages cite."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("guarantee", "threat_model", "glossary", "assurance")]
CODE_NAMES = re.findall(r"`(rapt(?:\.\w+)+:\w+(?:\.\w+)?)`", (ROOT / "docs" / "glossary.md").read_text("utf-8"))


def file_of(module):
    path = ROOT / "src" / Path(*module.split("."))
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


@cache
def names_in(path):
    """Names that a module defines, and `Class.member` for what its classes hold; nothing is imported."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        found |= bound_by(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for inner in node.body for name in bound_by(inner)}
    return found


def bound_by(node):
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.AnnAssign):
        return {node.target.id}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def exists(name):
    module, _, inside = name.partition(":")
    path = file_of(module)
    return path is not None and inside in names_in(path)


def test_the_glossary_has_names_to_check():
    assert len(CODE_NAMES) > 30
    rows = [line for line in (ROOT / "docs" / "glossary.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    headings = [row for row in rows if row.startswith("| term ")]
    assert len(rows) - len(headings) == len(CODE_NAMES)


@pytest.mark.parametrize("name", CODE_NAMES)
def test_a_name_of_the_glossary_exists(name):
    assert exists(name), f"{name} is in docs/glossary.md and not in the code"


@pytest.mark.parametrize(
    "name", ["rapt.local.nothing:Mechanism", "rapt.errors:Nothing", "rapt.wire.manifest:Manifest.nothing"]
)
def test_a_name_that_does_not_exist_is_noticed(name):
    assert not exists(name)


def test_terms_are_in_the_glossary_once():
    terms = re.findall(r"^\| (?!term )([^|]+?) \|", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    assert len(terms) == len(set(terms))


def test_every_test_that_a_page_cites_exists():
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in names_in(path) if name.startswith("test_")
    }
    for page in PAGES:
        cited = set(re.findall(r"`(test_\w+)`", page.read_text("utf-8")))
        assert not cited - defined, f"{page.name} cites tests that do not exist: {sorted(cited - defined)}"


def test_every_claim_has_a_check_and_a_twin_and_every_line_of_a_statement_a_claim():
    page = (ROOT / "docs" / "assurance.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| what it says")]
    assert len(rows) >= 30
    for row in rows:
        _, claim, check, twin, _ = (
            row.split(" | ") if row.count(" | ") == 4 else ("", *row.strip("| ").split(" | "), "")
        )
        assert re.search(r"`test_\w+`", check), f"no check for {claim}"
        assert re.search(r"`test_\w+`|the same test|counted by hand", twin), f"no twin for {claim}"
    for line in ("vocabulary", "table", "distances", "noise", "unchanged", "every token", "output sets", "labels"):
        assert re.search(rf"\*\*[^*]*{line}[^*]*\*\*", page), f"no claim for the line {line!r} of a statement"


def test_every_file_that_a_page_names_exists():
    for page in [*PAGES, ROOT / "SECURITY.md"]:
        text = page.read_text("utf-8")
        for link in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
        for path in re.findall(r"`(src/[\w./]+)`", text):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
