"""Hooks of the site: pages from the root of the repository, links that hold in both places, and no outside request.

The documents are written for a plain view of the repository. On the site SECURITY.md, CONTRIBUTING.md and CHANGELOG.md
become pages, links to them and to the README are turned to those pages, and a link to any other file outside of docs/
becomes its words, because the site does not have that file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
FROM_ROOT = {"SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES = {**FROM_ROOT, "README.md": "README.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
# Markdown on the usual hosts begins a list right below a paragraph; Python's wants a line between them.
LIST_BELOW = re.compile(r"^((?![ |#>-]|\d+\. ).+\n)(?=- |1\. )", re.MULTILINE)
# What a browser asks for by itself, as opposed to a link that somebody may follow.
ASKED_FOR = re.compile(r"""(?:\ssrc=|url\(|@import\s|<link\b[^>]*?\bhref=)\s*["']?((?:https?:)?//[^"')\s>]+)""")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand in the root of the repository."""
    for name, page in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links that leave docs/, and links of pages from the root, to pages of the site."""
    here = page.file.src_uri
    if here.startswith("decisions/") or here == "changelog.md":
        page.meta["search"] = {"boost": 0.3}  # who searches wants to do something first, and its reasons later
    from_root = here in FROM_ROOT.values()
    folder = "" if from_root else posixpath.join("docs", posixpath.dirname(here))

    def turn(found: re.Match[str]) -> str:
        words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if path in PAGES:
            path = PAGES[path]
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
            path += "/README.md" if (ROOT / "docs" / path).is_dir() else ""
        else:
            return words
        address = posixpath.relpath(path, posixpath.dirname(here) or ".")
        return f"[{words}]({address}{'#' if anchor else ''}{anchor})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)  # blocks of code stay as they are
    return "".join(
        part if place % 2 else LIST_BELOW.sub(r"\1\n", LINK.sub(turn, part)) for place, part in enumerate(parts)
    )


def on_post_build(config: Any) -> None:
    """Refuse a site of which a page asks another host for anything.

    Raises:
        PluginError: A page or style sheet names a script, a style, a font or a picture elsewhere.
    """
    for path in Path(config.site_dir).rglob("*"):
        if path.suffix in (".html", ".css"):
            found = ASKED_FOR.findall(path.read_text(encoding="utf-8"))
            if found:
                raise PluginError(f"{path.relative_to(config.site_dir)} asks another host: {found[0]}")
