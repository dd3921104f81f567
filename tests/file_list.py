"""Writes the list of files of docs/architecture.md from their docstrings; `make help-pages` runs it.

The line of a file is the first sentence of its module. Run as `python tests/file_list.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "rapt"
PAGE = ROOT / "docs" / "architecture.md"
BEGINNING, END = "<!-- files -->\n", "<!-- end of files -->\n"


def source_files() -> Iterator[Path]:
    """Every file of code, with the packages' own files first."""
    found = [path for suffix in ("py", "c") for path in SOURCE.rglob(f"*.{suffix}")]
    yield from sorted(found, key=lambda path: (path.parent, path.name != "__init__.py", path.name))


def first_sentence(path: Path) -> str:
    """What a file says of itself, on one line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".c":
        words = re.sub(r"^/\*+|\*/.*|^\s*//+", "", text.strip().split("\n\n")[0], flags=re.DOTALL)
    else:
        words = ast.get_docstring(ast.parse(text)) or ""
    line = " ".join(words.split("\n\n")[0].split())
    return re.split(r"(?<=[.?]) (?=[A-Z`])", line)[0].replace("|", "\\|")


def write_list() -> str:
    """Tables of files, one for each folder."""
    parts, folder = [], None
    for path in source_files():
        if not (sentence := first_sentence(path)):
            continue
        if path.parent != folder:
            folder = path.parent
            parts.append(f"\n**`{folder.relative_to(SOURCE.parent)}/`**\n\n| file | what it is |\n|---|---|\n")
        parts.append(f"| `{path.relative_to(SOURCE)}` | {sentence} |\n")
    return "".join(parts)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.index(BEGINNING) + len(BEGINNING), page.index(END)
    PAGE.write_text(f"{page[:before]}{write_list()}\n{page[after:]}", encoding="utf-8")
