"""JSON bodies that would stop a service: bounded in time and memory, refused at their first fault, never repeated."""

import functools
import json
import tracemalloc
from time import process_time

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter

from http_requests import SECRET, error_of
from rapt.errors import UsageError
from rapt.service.http.bodies import _check, parse_body
from rapt.service.http.completion_schemas import ChatRequest, CompletionRequest
from rapt.service.http.schemas import ClassifyRequest, CompleteRequest, JobRequest

MEBIBYTE = 1024 * 1024
LARGEST = 4 * MEBIBYTE  # that is read


def filled(before, item, after, size):
    return before + item * ((size - len(before) - len(after)) // len(item)) + after


@functools.cache
def hostile(size):
    """Bodies of a size, by what is wrong with them, and whose they are."""
    records = b'{"model":"m","manifest":{},"records":['
    prompt = b'{"model":"m","rapt":{"manifest":{}},"prompt":['
    method = b'{"model":"m","training_file":"f","method":{"type":"lora","lora":{"hyperparameters":{"target_modules":['
    return {
        "numbers for records": (ClassifyRequest, filled(records, b"1,", b"1]}", size)),
        "lists for records": (ClassifyRequest, filled(records, b"[],", b"1]}", size)),
        "empty records": (ClassifyRequest, filled(records, b"{},", b"{}]}", size)),
        "strings for records": (ClassifyRequest, filled(records, b'"",', b'""]}', size)),
        "texts in a prompt": (CompletionRequest, filled(prompt, b'"a",', b'"a"]}', size)),
        "a wrong id at the end": (CompletionRequest, filled(prompt, b"1,", b'"a"]}', size)),
        "wrong lists in a prompt": (CompletionRequest, filled(prompt, b"[-1],", b"[-1]]}", size)),
        "ids that are floats": (CompletionRequest, filled(prompt, b"1.5,", b"1.5]}", size)),
        "messages": (ChatRequest, filled(b'{"model":"m","rapt":{"manifest":{}},"messages":[', b"1,", b"1]}", size)),
        "parts": (CompleteRequest, filled(b'{"part_ids":[', b"1,", b"1]}", size)),
        "modules": (JobRequest, filled(method, b"1,", b"1]}}}}", size)),
        "unknown fields": (JobRequest, json.dumps({str(number): 1 for number in range(size // 12)}).encode()),
        "a long value": (JobRequest, filled(b'{"model":"', b"a", b'"}', size)),
        "escapes": (JobRequest, filled(b'{"model":"', b"\\u00e9", b'"}', size)),
        "backslashes that are cut off": (JobRequest, filled(b'{"model":"', b"\\\\", b"\\", size)),
        "quotes that are cut off": (JobRequest, filled(b'{"model":"', b'\\"', b"", size)),
        "nesting": (JobRequest, filled(b'{"model":', b"[", b"", size)),
    }


# What took longest, and a kind that is refused before it is parsed. Every kind is sent at a mebibyte below.
WORST = {"messages", "modules", "a wrong id at the end", "nesting"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in WORST else pytest.mark.slow) for kind in hostile(1000)]
)
def test_a_hostile_body_costs_little_time_and_memory(kind):
    """A list of wrong items took 12 to 119 s and up to 4.4 GiB, in the event loop."""
    schema, body = hostile(LARGEST)[kind]
    adapter = TypeAdapter(schema)
    tracemalloc.start()
    try:
        start = process_time()
        with pytest.raises((UsageError, RequestValidationError)):
            _check(body, adapter)
        seconds, peak = process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * LARGEST + 32 * MEBIBYTE
    assert seconds < 10  # a second at most on an idle machine, with memory traced


@pytest.mark.parametrize("kind", hostile(1000))
def test_a_hostile_body_is_answered_and_the_service_goes_on(http, kind):
    schema, body = hostile(MEBIBYTE)[kind]
    route = {
        ClassifyRequest: "/v1/classify",
        CompletionRequest: "/v1/completions",
        ChatRequest: "/v1/chat/completions",
        JobRequest: "/v1/fine_tuning/jobs",
        CompleteRequest: "/v1/uploads/upload-1/complete",
    }[schema]
    answer = http.post(route, content=body, headers={"content-type": "application/json"})
    error_of(answer, 400, "invalid_request")
    assert len(answer.content) < 1000
    assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b'{"seed":' + b"9" * 401 + b"}", "finite"),
        (b'{"seed":1e400}', "finite"),
        (b'{"seed":-1e400}', "finite"),
        (b'{"seed":NaN}', "finite"),
        (b'{"seed":-Infinity}', "finite"),
        (b'{"seed":0.' + b"1" * 100 + b"}", "finite"),
        (b'{"seed":1,"seed":1}', "once"),
        (b"[" * 33 + b"]" * 33, "16 levels"),
        (b'{"model":"\\u0000"}', "control character"),
        (b'{"model":"\\ud800"}', "surrogate"),
        (b'{"\\udfff":1}', "surrogate"),
        ('{"model":"é"}'.encode("utf-16"), "UTF-8"),
        ('{"model":"é"}'.encode("latin-1"), "UTF-8"),
        (b'{"model":"a\nb"}', "one JSON"),
        (b"{} {}", "one JSON"),
    ],
    ids=str,
)
def test_json_is_read_strictly(http, body, rule):
    answer = http.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    assert rule in error_of(answer, 400, "invalid_request")["message"]


def test_what_looks_like_a_fault_inside_of_a_string_is_none():
    value = {"a": "[" * 100 + '\\"' + "9" * 100, "b": "\N{PILE OF POO}\\u0000", "c": [0.5, -1, 1e3, True, None]}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert parse_body(text.encode()) == value


def test_a_body_that_is_not_said_to_be_json_is_refused_with_what_to_send(http):
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": SECRET}):
        answer = http.post("/v1/fine_tuning/jobs", content=b"{}", headers=headers)
        assert "application/json" in error_of(answer, 400, "invalid_request")["message"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", SECRET])
def test_a_compressed_body_is_refused(http, encoding):
    answer = http.post("/v1/classify", content=b"{}", headers={"content-encoding": encoding})
    error_of(answer, 415, "unsupported_encoding")


def test_a_body_has_so_many_values():
    body = filled(b'{"records":[', b"12345,", b"1]}", 4 * MEBIBYTE)
    assert len(parse_body(body)["records"]) > 600_000
    with pytest.raises(UsageError, match="at most 786432 values; send several requests"):
        parse_body(filled(b"[", b"1,", b"1]", 2 * MEBIBYTE))


def test_json_has_a_lower_limit_than_files(http):
    body = b'{"model":"' + b"a" * 4 * MEBIBYTE + b'"}'
    headers = {"content-type": "application/json"}
    error_of(http.post("/v1/classify", content=body, headers=headers), 413, "too_large")
    error_of(http.post("/v1/classify", content=iter([body, body]), headers=headers), 413, "too_large")
