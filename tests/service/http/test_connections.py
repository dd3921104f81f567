"""Connections of clients that do not keep to the rules: slow, half-open, endless, many at once."""

import asyncio
import json
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx2
import pytest

from http_requests import error_of, open_client
from rapt.service.http.connections import count_connections
from rapt.service.http.quotas import TenantPlaces
from rapt.service.http.settings import load_settings
from rapt.service.storage.callers import Caller
from running_service import running_service, serving_process, wait_until

ADMIN = "the-provider-s-own-key-of-32-chars"
SHORT = {"head_seconds": 1.0, "body_seconds": 1.0, "admin_key": ADMIN, "max_connections": 40, "keep_alive_seconds": 6}
KEY = f"authorization: Bearer {ADMIN}\r\n".encode()


@pytest.fixture(scope="module")
def url(backbones, tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones, settings=SHORT) as found:
        yield found


@pytest.fixture
def http(url):
    # One that waits may be closed for others while it is taken again.
    headers = {"authorization": f"Bearer {ADMIN}", "connection": "close"}
    with open_client(url, headers=headers) as one:
        yield one


def connected(url):
    where = urlsplit(url)
    connection = socket.create_connection((where.hostname, where.port), timeout=60)
    connection.settimeout(60)
    return connection


def all_of(connection):
    """What comes until the service closes the connection."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def closed_after(url, start, dribble=b"", *, most=15.0):
    """The answer to what is sent, then a byte at a time, until the service closes; it must, soon."""
    with connected(url) as connection:
        connection.sendall(start)
        connection.settimeout(0.1)
        found, begun = b"", time.monotonic()
        while time.monotonic() - begun < most:
            try:
                if dribble:
                    connection.sendall(dribble)
                piece = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return found
            if not piece:
                return found
            found += piece
    raise AssertionError(f"the connection is open after {most} s")


def all_closed_after(url, cases):
    """The answers to several slow clients at once."""
    with ThreadPoolExecutor(len(cases)) as threads:
        return list(threads.map(lambda case: closed_after(url, *case), cases))


def test_a_head_that_does_not_come_has_an_end_silent_or_dribbling(url):
    head = b"GET /healthz HTTP/1.1\r\nhost: a\r\n"
    *_, second = all_closed_after(
        url, [(b"",), (b"GET",), (b"GET", b"x"), (head + b"x: ",), (head + b"x: ", b"x"), (head + b"\r\nGET /", b"x")]
    )
    assert b"200 OK" in second


def test_a_body_that_does_not_come_is_408_and_the_connection_ends(url):
    head = b"POST /v1/classify HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n" + KEY
    cases = [
        (head + length + b"\r\n\r\n", dribble)
        for length in (b"content-length: 1000000", b"transfer-encoding: chunked")
        for dribble in (b"", b"1\r\nx\r\n")
    ]
    for answer in all_closed_after(url, cases):
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


def test_a_body_without_end_and_without_a_key_is_answered_and_cut_off(url):
    head = b"POST /v1/files HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    assert closed_after(url, head, b"1000\r\n" + b"x" * 4096 + b"\r\n").startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/files"])
def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_the_service(url, caplog, path):
    """It was 500 in the log and in the metrics, as what nobody foresaw."""
    kind = b"application/json" if path == "/v1/classify" else b"multipart/form-data; boundary=b"
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n".encode()
    with caplog.at_level("INFO", logger="rapt"):
        with connected(url) as connection:
            connection.sendall(head + KEY + b"content-type: " + kind + b"\r\n\r\n--b\r\n")
        wait_until(lambda: f"POST {path} " in caplog.text)
    assert f"POST {path} 499" in caplog.text
    assert " failed: " not in caplog.text


def test_an_answer_that_is_not_read_has_an_end(url):
    request = b"GET /v1/vocabularies/bert-tiny/embeddings.safetensors HTTP/1.1\r\nhost: a\r\n" + KEY + b"\r\n"
    with connected(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(200 * request)
        wait_until(lambda: is_closed(connection), seconds=20)


def is_closed(connection):
    """Whether the other side has closed, asked without reading."""
    try:
        connection.send(b"\r\n")
    except OSError:
        return True
    return False


def test_half_open_connections_beyond_the_limit_leave_the_service_reachable(url, http, caplog):
    """1,100 of them made the service unreachable, and wrote 57 MB of tracebacks."""
    with ExitStack() as stack:
        for _ in range(300):
            half = stack.enter_context(connected(url))
            half.sendall(b"GET /v1/files HTTP/1.1\r\nhost: a\r\n")
        assert http.get("/healthz").status_code == 200
        assert http.get("/v1/usage").status_code == 200
    assert "Traceback" not in caplog.text
    assert len(caplog.text) < 100_000


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nconnection: close\r\n\r\n", None),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 401),
        (b"GET /healthz HTTP/1.1\r\nconnection: close\r\nhost: a\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", None),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close, upgrade\r\nupgrade: websocket\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST /v1/files HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n" + KEY + b"\r\nzz\r\n", None),
    ],
    ids=["tls", "version", "path", "headers", "header", "websocket", "no host", "two lengths", "no chunk"],
)
def test_what_is_hardly_http_is_refused_and_nothing_is_logged_of_it(url, http, request_, status, caplog):
    answer = closed_after(url, request_)
    if status == 401:
        assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400"))
    elif status is not None:
        assert answer.startswith(b"HTTP/1.1 %d" % status)
        if status == 400:
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
    assert "Traceback" not in caplog.text
    assert http.get("/healthz").status_code == 200


def test_requests_in_one_packet_are_answered_in_order(url):
    request = b"GET /healthz HTTP/1.1\r\nhost: a\r\n"
    with connected(url) as connection:
        connection.sendall(19 * (request + b"\r\n") + request + b"connection: close\r\n\r\n")
        assert all_of(connection).count(b"HTTP/1.1 200") == 20


def test_a_tenant_has_so_many_requests_at_once_and_another_is_answered(backbones, tmp_path, training_path):
    """60 uploads of one tenant delayed another's usage from 0.03 to 8.9 s; what arrives is also counted at once."""
    settings = {"admin_key": ADMIN, "tenant_requests": 8}
    with running_service(tmp_path, backbones=backbones, settings=settings) as url, ExitStack() as stack:

        def client(key):
            headers = {"authorization": f"Bearer {key}"}
            return stack.enter_context(open_client(url, headers=headers))

        admin = client(ADMIN)
        for name in ("ada", "bob"):
            admin.post("/v1/admin/tenants", json={"name": name, "max_bytes": 10**9})
        ada, bob = (client(admin.post(f"/v1/admin/tenants/{name}/keys").json()["value"]) for name in ("ada", "bob"))
        content = training_path.read_bytes()

        def upload(_number):
            files = {"file": ("f", content)}
            return ada.post("/v1/files", data={"purpose": "fine-tune"}, files=files).status_code

        with ThreadPoolExecutor(60) as threads:
            answers = threads.map(upload, range(60))
            assert [bob.get("/v1/usage").status_code for _ in range(10)] == [200] * 10
            found = list(answers)
        assert set(found) == {200, 429}
        assert upload(0) == 200


@pytest.mark.parametrize(("status", "waits"), [(400, True), (200, False)])
def test_a_large_body_that_is_refused_keeps_its_place_for_a_while(status, waits):
    """Eight connections that send nothing but wrong bodies of 4 MB made another tenant's usage 70 times as slow."""
    body = 4 * 2**20
    scope = {"type": "http", "path": "/v1/classify", "method": "POST", "headers": [(b"content-length", b"%d" % body)]}
    begun = []

    async def app(scope, receive, send):
        begun.append(scope)
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def send(message):
        assert message["status"] == status

    async def ask():
        places = TenantPlaces(app, settings=load_settings({}), store=None)
        for _ in range(2):
            await places(dict(scope), None, send)
        third = asyncio.ensure_future(places(dict(scope), None, send))
        await asyncio.wait([third], timeout=0.5)
        assert third.done() is not waits
        third.cancel()
        await places(scope | {"state": {"caller": Caller("other", "key", "tenant")}}, None, send)

    asyncio.run(ask())
    assert len(begun) == (3 if waits else 4)


def test_clients_of_other_tenants_that_do_not_read_leave_a_place_to_each_tenant(backbones, tmp_path):
    """Four tenants held all places with four downloads each, and another one's usage was 429 after 20 s."""
    names = ("ada", "bob", "cyd", "dan", "eve")
    with (
        running_service(tmp_path, backbones=backbones, settings={"admin_key": ADMIN}) as url,
        open_client(url, headers={"authorization": f"Bearer {ADMIN}"}) as admin,
        ExitStack() as stack,
    ):
        for name in names:
            admin.post("/v1/admin/tenants", json={"name": name})
        keys = [admin.post(f"/v1/admin/tenants/{name}/keys").json()["value"] for name in names]
        where = urlsplit(url)
        for key in keys[:-1]:
            for _ in range(4):
                slow = stack.enter_context(socket.socket())
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                slow.settimeout(60)
                slow.connect((where.hostname, where.port))
                head = f"host: a\r\nauthorization: Bearer {key}\r\n\r\n"
                slow.sendall(f"GET /v1/vocabularies/bert-tiny/embeddings.safetensors HTTP/1.1\r\n{head}".encode())
                assert slow.recv(12) == b"HTTP/1.1 200"
        asked = {"authorization": f"Bearer {keys[-1]}"}
        for path in ("/v1/usage", "/v1/vocabularies/bert-tiny/tokenizer.json"):
            assert httpx2.get(url + path, headers=asked, trust_env=False, timeout=15).status_code == 200
        own = {"authorization": f"Bearer {keys[0]}"}
        assert httpx2.get(f"{url}/v1/usage", headers=own, trust_env=False, timeout=15).status_code == 200


def test_an_upload_beyond_the_quota_is_refused_before_it_is_read(backbones, tmp_path):
    """8 times 100 MiB lay in the temporary folder of a tenant that might have 1,000 bytes."""
    with running_service(tmp_path, backbones=backbones, settings={"tenant_bytes": 1000}) as url:
        head = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        announced = head + "content-length: 100000000\r\n\r\n"
        with connected(url) as connection:
            connection.sendall(announced.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 429")
        with connected(url) as connection:
            connection.sendall((head + "transfer-encoding: chunked\r\n\r\n").encode())
            start = b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
            connection.sendall(b"%x\r\n%s\r\n" % (len(start), start))
            sent = 0
            try:
                while sent < 10_000_000 and not sent > 10**7:
                    connection.sendall(b"10000\r\n" + 65536 * b"x" + b"\r\n")
                    sent += 65536
                    connection.setblocking(False)
                    try:
                        answer = connection.recv(100)
                        break
                    except BlockingIOError:
                        connection.settimeout(60)
            except OSError:
                answer = b"HTTP/1.1 429"
            assert answer.startswith(b"HTTP/1.1 429")


def knock(connection, url):
    """Ask for a connection and begin a request on it, without waiting until the service has a place for it."""
    where = urlsplit(url)
    connection.setblocking(False)
    with suppress(OSError):
        connection.connect_ex((where.hostname, where.port))
        connection.send(b"GET /v1/files HTTP/1.1\r\nhost: a\r\n")


@pytest.mark.slow  # test_hostile_tenant.py holds a service with as few descriptors open to others
def test_with_64_descriptors_1100_half_open_connections_leave_the_service_reachable(tmp_path):
    with serving_process(tmp_path, descriptors=64) as (_, url):
        most = min(1100, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200)
        with ExitStack() as stack, open_client(url) as http:
            http.headers["connection"] = "close"  # one that waits may be closed for others while it is taken again
            for number in range(most):
                knock(stack.enter_context(socket.socket()), url)
                if number % 100 == 0:
                    assert http.get("/healthz").status_code == 200
            assert http.get("/v1/usage").status_code == 200
            assert http.get("/readyz").status_code == 200
    written = (tmp_path / "log").read_text()
    assert "Traceback" not in written
    assert len(written) < 100_000


def test_what_a_process_may_open_bounds_its_connections():
    most, waiting = count_connections(10**9)
    assert 8 <= waiting <= 128
    assert most <= 65_536 // 2
    assert load_settings({}).keep_alive_seconds > 5  # the client asks every 5 s at the latest


def test_a_keyless_service_refuses_what_a_proxy_forwards(backbones, tmp_path):
    """Behind a proxy with default headers it made everybody the admin."""
    with running_service(tmp_path, backbones=backbones) as url, open_client(url) as http:
        assert http.get("/v1/admin/tenants").status_code == 200
        for name in ("forwarded", "via", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "x-forwarded-anything"):
            error_of(http.get("/v1/admin/tenants", headers={name: "127.0.0.1"}), 401, "invalid_api_key")
        for host in ("service.example.org", "127.0.0.1.example.org", "", "127.0.0.1:80@example.org"):
            assert http.get("/v1/admin/tenants", headers={"host": host}).status_code in (400, 401)
