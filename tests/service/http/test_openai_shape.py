"""What clients of OpenAI's API send and expect beside the routes: defaults, refusals by name, HEAD, Allow."""

import pytest

from http_requests import SECRET, error_of, open_client
from rapt.service.http.completion_schemas import ChatRequest, CompletionRequest

BODY = {"model": "m", "prompt": [1, 2], "rapt": {"manifest": {}}}
CHAT = {
    "model": "m",
    "messages": [{"role": "user", "content": [{"type": "token_ids", "token_ids": [1]}]}],
    "rapt": {"manifest": {}},
}
# What LiteLLM, LangChain and others send with every request.
HARMLESS = {
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "n": 1,
    "stop": None,
    "user": None,
    "seed": None,
    "stream": False,
    "stream_options": None,
    "temperature": None,
    "top_p": None,
    "max_tokens": None,
    "logprobs": None,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "store": False,
    "metadata": {"trace": "7"},
    "safety_identifier": "user-7",
    "prompt_cache_key": None,
    "verbosity": "medium",
    "functions": None,
    "reasoning_effort": None,
}
MEANT = {
    "frequency_penalty": 0.5,
    "presence_penalty": -1,
    "logit_bias": {"1": 100},
    "n": 2,
    "tools": [{"type": "function"}],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "best_of": 2,
    "echo": True,
    "suffix": SECRET,
    "store": True,
    "metadata": {"a": SECRET * 30},
    "verbosity": "high",
    "service_tier": "flex",
    "modalities": ["audio"],
    "frequency_penalty ": 0,
}


@pytest.mark.parametrize(("schema", "body"), [(CompletionRequest, BODY), (ChatRequest, CHAT)])
@pytest.mark.parametrize("name", HARMLESS)
def test_options_that_change_nothing_are_taken(schema, body, name):
    unread = {"metadata": None, "safety_identifier": None}
    plain, taken = schema.model_validate(body), schema.model_validate({**body, name: HARMLESS[name]})
    assert taken.model_copy(update=unread) == plain
    assert schema.model_validate({**body, **HARMLESS, name: None}).model_copy(update=unread) == plain


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"refusal": None, "tool_calls": [], "name": None, "annotations": []}, None),
        ({"tool_calls": [{"id": SECRET}]}, "messages.tool_calls"),
        ({"name": SECRET}, "messages.name"),
        ({"role": "tool"}, "messages.role"),
        ({"content": [{"type": "image_url"}]}, "messages.content"),
        ({"content": [{"type": "token_ids", "token_ids": SECRET}]}, "messages.content.token_ids"),
        ({"content": [{"type": "public_text", "text": ""}]}, "messages.content.text"),
    ],
    ids=str,
)
def test_of_a_message_what_asks_for_nothing_is_taken_and_the_rest_is_refused_by_its_name(http, message, param):
    body = {**CHAT, "messages": [{**CHAT["messages"][0], **message}]}
    if param is None:
        assert ChatRequest.model_validate(body) == ChatRequest.model_validate(CHAT)
    else:
        answer = http.post("/v1/chat/completions", json=body)
        assert error_of(answer, 400, "invalid_request")["param"] == param


@pytest.mark.parametrize(("route", "body"), [("completions", BODY), ("chat/completions", CHAT)])
@pytest.mark.parametrize("name", MEANT)
def test_an_option_that_would_change_something_is_refused_by_its_name(http, route, body, name):
    error = error_of(http.post(f"/v1/{route}", json={**body, name: MEANT[name]}), 400, "invalid_request")
    assert error["param"] == (None if name.endswith(" ") else name)


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("completions", {**BODY, "prompt": SECRET}, "prompt"),
        ("completions", {**BODY, "prompt": [SECRET]}, "prompt"),
        ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": SECRET}]}, "messages.content"),
        (
            "chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": SECRET}]}]},
            "messages.content",
        ),
    ],
)
def test_a_text_is_refused_with_why_and_what_to_send(http, route, body, param):
    error = error_of(http.post(f"/v1/{route}", json=body), 400, "invalid_request")
    assert error["param"] == param
    assert "would not be private" in error["message"]
    assert "rapt privatize" in error["message"]


def test_what_is_no_json_is_said_in_words(http):
    answer = http.post("/v1/classify", content=b"{", headers={"content-type": "application/json"})
    assert "one JSON value" in error_of(answer, 400, "invalid_request")["message"]


def test_every_route_that_has_get_has_head(http):
    for path in http.get("/openapi.json").json()["paths"]:
        asked = path.replace("{", "").replace("}", "")
        if path.startswith("/metrics"):
            continue  # its figures change
        found, head = http.get(asked), http.head(asked)
        assert head.content == b""
        assert head.status_code == found.status_code
        assert head.headers.get("content-length") == found.headers.get("content-length")
        assert head.headers.get("allow") == found.headers.get("allow")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/files", "GET, HEAD, POST"),
        ("PATCH", "/v1/files/file-1", "GET, HEAD, DELETE"),
        ("GET", "/v1/classify", "POST"),
        ("HEAD", "/v1/classify", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        (SECRET.split()[0].upper(), "/v1/admin/tenants/local", "GET, HEAD, POST, DELETE"),
    ],
)
def test_a_method_that_a_route_has_not_is_405_with_those_that_it_has(http, method, path, allowed):
    answer = http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed


def test_a_path_or_a_query_with_nul_is_refused(service):
    with open_client(service) as http:
        for path in ("/v1/files/a%00b", "/v1/files?after=%00", "/v1/fine_tuning/jobs?metadata[a]=%00"):
            error_of(http.get(path), 400, "invalid_request")
