"""The page as it leaves the service: its headers, its files, who may have it, and what it would ask for."""

import re

import pytest

from http_requests import error_of, open_client
from rapt.page_parts import ENTRY
from rapt.service.page import ASSETS, PAGE_PATHS, contents
from running_service import running_service

TEXTS = {name: content.decode() for name, content in contents().items()}
SCRIPTS = {name: text for name, text in TEXTS.items() if name.endswith(".js")}
KEY = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def locked(backbones, tmp_path_factory):
    """A client without a key of a service that has one."""
    settings = {"admin_key": KEY}
    with (
        running_service(tmp_path_factory.mktemp("data"), backbones=backbones, settings=settings) as url,
        open_client(url) as client,
    ):
        yield client


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_every_file_of_the_page_comes_without_a_key_and_may_load_nothing_else(locked, path):
    response = locked.get(path)
    assert response.status_code == 200
    name = path.removeprefix("/page/").removeprefix("/") or ENTRY
    assert response.headers["content-type"] == ASSETS[name]
    assert response.text == TEXTS[name]
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == policy["object-src"] == "'none'"
    assert "script-src" not in policy  # so default-src holds: nothing inline, no eval
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in response.headers
    assert response.headers["x-request-id"].startswith("req_")


def test_a_browser_that_has_the_page_is_told_that_it_is_the_same(locked):
    tag = locked.get("/").headers["etag"]
    again = locked.get("/", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert locked.get("/", headers={"if-none-match": f'"old", W/{tag}'}).status_code == 304
    assert "content-security-policy" in again.headers
    assert locked.get("/", headers={"if-none-match": '"another"'}).status_code == 200


@pytest.mark.parametrize("name", ["index.html", "serving.py", "..%2fserving.py", "%2e%2e/serving.py", "none.js"])
def test_what_is_no_file_of_the_page_is_behind_the_door(locked, name):
    error_of(locked.get(f"/page/{name}"), 401, "invalid_api_key")
    error_of(locked.get(f"/page/{name}", headers={"authorization": f"Bearer {KEY}"}), 404, "not_found")


def test_the_page_opens_no_other_door(locked):
    error_of(locked.get("/v1/files", headers={"sec-fetch-site": "same-origin"}), 401, "invalid_api_key")
    error_of(locked.get("/v1/usage"), 401, "invalid_api_key")
    error_of(locked.post("/", content=b"x"), 405, "method_not_allowed")


def test_the_description_of_the_api_has_no_page(http):
    assert not PAGE_PATHS & set(http.get("/openapi.json").json()["paths"])


def test_a_provider_can_turn_the_page_off(backbones, tmp_path):
    settings = {"page": False, "admin_key": KEY}
    with (
        running_service(tmp_path, backbones=backbones, settings=settings) as url,
        open_client(url) as client,
    ):
        for path in PAGE_PATHS:
            error_of(client.get(path), 401, "invalid_api_key")
            error_of(client.get(path, headers={"authorization": f"Bearer {KEY}"}), 404, "not_found")


def test_without_keys_the_services_own_page_may_ask_and_no_other(http):
    own = str(http.base_url).rstrip("/")
    asked = {
        "own page": {"origin": own, "sec-fetch-site": "same-origin"},
        "typed address": {"sec-fetch-site": "none"},
        "local program": {},
    }
    for who, headers in asked.items():
        assert http.get("/v1/usage", headers=headers).status_code == 200, who
    refused = {
        "other page": {"origin": "https://example.org", "sec-fetch-site": "cross-site"},
        "other page without an origin, as an image asks": {"sec-fetch-site": "cross-site"},
        "other port of this machine": {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"},
        "other scheme": {"origin": own.replace("http", "https")},
        "no page at all": {"origin": "null"},
        "rebound name": {"host": "rebound.example.org", "origin": "http://rebound.example.org"},
    }
    for who, headers in refused.items():
        assert http.get("/v1/usage", headers=headers).status_code == 401, who


def test_one_file_alone_talks_to_the_service_and_only_by_routes_of_the_api(http):
    assert [name for name, text in SCRIPTS.items() if "/v1/" in text] == ["service.js"]
    described = http.get("/openapi.json").json()["paths"]
    known = {f"{method.upper()} {path}" for path, item in described.items() for method in item}
    table = re.search(r"export const ROUTES = \{(.*?)\};", SCRIPTS["service.js"], re.DOTALL)[1]
    routes = dict(re.findall(r'(\w+): "([A-Z]+ [^"]+)",', table))
    assert len(routes) == table.count("\n") - 1 > 25
    used = {name for text in SCRIPTS.values() for name in re.findall(r"ROUTES\.(\w+)", text)}
    assert used == set(routes)
    # The parameters in braces have the names that the description gives them.
    assert set(routes.values()) <= known
