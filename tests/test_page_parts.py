"""Files of both pages: they are there, load nothing from elsewhere, run nothing inline, and have the common colours."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from rapt.own_page.routes import ASSETS as OWN
from rapt.page_parts import ENTRY, SHARED, read_contents
from rapt.service.page import ASSETS as OF_SERVICE
from rapt.severity import PALETTE

PAGES = {"rapt.own_page": OWN, "rapt.service.page": OF_SERVICE}
TEXTS = {
    page: {name: content.decode() for name, content in read_contents(page, assets).items()}
    for page, assets in PAGES.items()
}


@pytest.mark.parametrize("page", PAGES)
def test_the_list_of_files_is_what_lies_in_the_folders_and_git_keeps_them(page):
    own, shared = ({item.name for item in (files(at) / "static").iterdir()} for at in (page, "rapt.page_parts"))
    assert (set(PAGES[page]), set(SHARED)) == (own | shared, shared)
    ignored = (Path(__file__).parents[1] / ".gitignore").read_text(encoding="utf-8").split()
    # The wheel takes what git keeps.
    assert not [name for name in PAGES[page] if f"*{Path(name).suffix}" in ignored]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_another_names_is_there(page):
    linked = {name for _, name in re.findall(r'(href|src)="page/([^"]+)"', TEXTS[page][ENTRY])}
    scripts = [text for name, text in TEXTS[page].items() if name.endswith(".js")]
    imported = {name for text in scripts for name in re.findall(r'from "\./([^"]+)"', text)}
    assert linked | imported | {ENTRY} == set(PAGES[page])


@pytest.mark.parametrize(("page", "name"), [(page, name) for page in PAGES for name in sorted(PAGES[page])])
def test_no_file_names_another_host_or_writes_html_from_a_string(page, name):
    text = TEXTS[page][name].replace("http://www.w3.org/2000/svg", "")  # a name, which nobody fetches
    assert not re.findall(r"https?:|//\w+\.\w+|@import|url\(", text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    assert not re.findall(r"localStorage|document\.cookie|console\.|indexedDB|sendBeacon", text)
    if name.endswith(".html"):
        assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", text)


@pytest.mark.parametrize("page", PAGES)
def test_one_file_alone_talks_to_where_a_page_came_from(page):
    assert [name for name, text in TEXTS[page].items() if "fetch(" in text] == ["connection.js"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_colours_of_the_reports_and_none_of_its_own(page):
    assert TEXTS[page]["style.css"].startswith(PALETTE)
    styles = [text.removeprefix(PALETTE) for name, text in TEXTS[page].items() if name.endswith(".css")]
    assert not re.search(r"#[0-9a-f]{6}\b", "".join(styles))


def test_the_own_page_asks_only_routes_that_are_in_its_table_and_they_are_there():
    table = dict(re.findall(r'(\w+): "([A-Z]+ [^"]+)",', TEXTS["rapt.own_page"]["gateway.js"]))
    used = {name for text in TEXTS["rapt.own_page"].values() for name in re.findall(r"ROUTES\.(\w+)", text)}
    assert used == set(table)
    routes = (Path(str(files("rapt.own_page"))) / "routes.py").read_text(encoding="utf-8")
    for route in table.values():
        method, path = route.split()
        assert path == "/v1/models" or f'("{method}", "{path}"' in routes, route
