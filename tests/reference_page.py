"""Writes docs/reference.md, the public names of `rapt` from their docstrings, which a test compares.

`make help-pages` runs it. Run as `python tests/reference_page.py`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

import rapt

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
GROUPS = {
    "Texts in memory": ("privatize", "Privatized", "RaptClassifier"),
    "Files of texts": (
        "privatize_corpus", "read_corpus", "LabelledText", "read_privatized_file", "write_privatized_file",
    ),
    "Settings, part by part": (
        "load_vocabulary", "Vocabulary", "MECHANISMS", "make_mechanism", "Mechanism", "plan_plain_tokens",
        "PlainTokens", "NO_PLAIN_TOKENS", "Privatizer", "load_code_privatizer", "CodePrivatizer", "LabelPrivacy",
        "Policy", "open_ledger",
    ),
    "Random numbers": ("secure_stream", "insecure_stream", "RandomStream"),
    "What a setting promises": (
        "state_privacy", "PrivacyStatement", "state_text_privacy", "TextStatement", "calibrate_unchanged",
        "calibrate_epsilon", "measure_deniability", "weigh_running_text", "weigh_common_words",
    ),
    "A service": ("ServiceClient", "AsyncServiceClient", "follow_job"),
    "What leaves": ("PrivatizedFile", "PrivatizedRecord", "Manifest"),
    "Errors": (
        "RaptError", "UsageError", "CorpusError", "WireError", "VocabularyError", "MechanismError", "BudgetError",
        "LedgerError", "TuningError", "AuditError", "ServiceError", "NotFoundError", "UnavailableError",
    ),
}  # fmt: skip
_INTRODUCTION = """\
# Reference

The public names of `rapt`, from their docstrings; `make help-pages` writes this page. [Python](python.md) shows them at
work, and the [glossary](glossary.md) says what their words mean. Nothing else is public: other modules may change at
any time.
"""
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Guarantee|Not covered):\s*(.*)")
_ENTRY = re.compile(r"(\*{0,2}\w+): (.*)")


def write_reference() -> str:
    """The page."""
    parts = [_INTRODUCTION]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [_write_name(name) for name in names]
    return "\n".join(parts)


def _write_name(name: str) -> str:
    value = getattr(rapt, name)
    if not callable(value):
        kind = type(value).__name__
        doc = "Names of the mechanisms." if name == "MECHANISMS" else "The setting without plain tokens."
        return f"### {name}\n\n{doc} A `{kind}`.\n"
    lines = [f"### {name}\n"]
    if inspect.isclass(value) and issubclass(value, Exception):
        return "\n".join([*lines, f"{_doc(value)} Exit code {value.exit_code} of the command line.\n"])
    if _is_called(value):
        lines.append(f"```text\n{_sign(name, value)}\n```\n")
    lines += _rewrite(_doc(value))
    if inspect.isclass(value):
        for method, what in _methods(value):
            lines += [f"#### {name}.{method}\n", f"```text\n{_sign(method, what)}\n```\n", *_rewrite(_doc(what))]
    return "\n".join(lines)


def _doc(value: object) -> str:
    doc = inspect.getdoc(value)
    assert doc, f"{value!r} has no docstring"
    return doc


def _is_called(value: Callable[..., object]) -> bool:
    """Whether a user calls it: a protocol is not called, nor a class with fields that `rapt` alone fills in."""
    fields = inspect.signature(value).parameters
    return not getattr(value, "_is_protocol", False) and not any(name.startswith("_") for name in fields)


def _methods(value: type) -> Iterator[tuple[str, Callable[..., object]]]:
    for name, what in vars(value).items():
        found = what.__func__ if isinstance(what, classmethod | staticmethod) else what
        if not name.startswith("_") and inspect.isfunction(found) and found.__doc__:
            yield name, found


def _sign(name: str, value: Callable[..., object]) -> str:
    """The call of a function, on one line where it fits into 100 characters."""
    signature = inspect.signature(value)
    words: list[str] = []
    for one in signature.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        default = " = " + _write_default(one.default)
        kind = "" if one.annotation is one.empty else ": " + _write_type(one.annotation)
        words.append(one.name + kind + ("" if one.default is one.empty else default))
    back = _write_type(signature.return_annotation)
    back = "" if inspect.isclass(value) or signature.return_annotation is signature.empty else f" -> {back}"
    line = f"{name}({', '.join(words)}){back}"
    return line if len(line) <= 100 else "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){back}"])


def _write_default(value: object) -> str:
    if isinstance(value, Enum):
        return str(value)
    return "..." if repr(value).startswith("<") else repr(value)  # a function, or a value made for each call


def _write_type(annotation: object) -> str:
    return annotation.strip("'\"") if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _rewrite(doc: str) -> Iterator[str]:
    """A docstring as Markdown: sections become a word in bold, entries a list."""
    for block in doc.split("\n\n"):
        lines = block.split("\n")
        heading = _SECTION.fullmatch(lines[0])
        if heading is None:
            yield "\n".join(line.removeprefix("    ") for line in lines) + "\n"
            continue
        yield f"**{heading[1]}**\n"
        if heading[2]:
            yield " ".join([heading[2], *(line.strip() for line in lines[1:])]) + "\n"
            continue
        entries: list[str] = []
        for line in lines[1:]:
            found = _ENTRY.fullmatch(line.strip()) if re.match(r" {4}\S", line) else None
            if found and heading[1] in ("Args", "Attributes", "Raises"):
                entries.append(f"- {found[1]}: {found[2]}" if found[1] == "Others" else f"- `{found[1]}`: {found[2]}")
            elif entries:
                entries[-1] += f" {line.strip()}"
            else:
                entries.append(line.strip())
        yield "\n".join(entries) + "\n"


if __name__ == "__main__":
    PAGE.write_text(write_reference(), encoding="utf-8")
