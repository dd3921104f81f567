"""A fork server: what its processes get, what they do not get, and who dies with whom."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from running_service import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each process starts afresh")

# A service that has a file and a socket open, forks at its start, and learns a secret later; its processes say what
# they have.
SERVICE = """
import json, os, random, resource, signal, socket, sys, threading
from rapt.service.jobs.fork_server import open_fork_server

sys.stderr = sys.stderr or sys.stdout  # where it is closed, libraries may put one of their own there
held = ["public"]
opened = open("/dev/zero"), socket.create_server(("127.0.0.1", 0))

def descriptors():
    places = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [os.readlink(place) for place in places if os.path.lexists(place)]  # not the one of the list itself

def run(asked, answers):
    for line in asked:
        word = line.decode().strip()
        if word == "crash":
            raise ValueError("a text of a user")
        if word == "limit":
            resource.setrlimit(resource.RLIMIT_DATA, (2**26, 2**26))
        try:
            room = len(bytearray(2**27)) > 0
        except MemoryError:
            room = False
        found = {
            "descriptors": descriptors(),
            "secret": os.environ.get("SECRET"), "held": held, "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
            "random": random.random(), "room": room, "name": open("/proc/self/comm").read().strip(),
            "ignores": {signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)} == {signal.SIG_IGN},
            "threads": threading.active_count(),
        }
        answers.write(json.dumps(found).encode() + b"\\n")
        answers.flush()

print("before it forks")
with open_fork_server(run) as server:
    held.append("of a tenant")
    database = socket.create_server(("127.0.0.1", 0))
    process = None
    for line in sys.stdin:
        word = line.strip()
        if word == "start":
            os.environ["SECRET"] = str(int(os.environ.get("SECRET", "0")) + 1)
            process = server.start()
            print(json.dumps([server._pid, process and process.pid]), flush=True)
        elif word == "kill":
            process.kill()
            print(process.wait(), flush=True)
        elif word == "wait":
            process.stdin.close()
            print(process.wait(), flush=True)
            process.kill()  # does nothing any more
        else:
            process.stdin.write(line.encode())
            process.stdin.flush()
            print(process.stdout.readline().decode().strip() or "null", flush=True)
"""


class Service:
    """The service of a test, and the questions to it."""

    def __init__(self, process):
        self.process = process
        assert process.stdout.readline() == "before it forks\n"  # once

    def ask(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def service(request):
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    shell = getattr(request, "param", [])
    with subprocess.Popen([*shell, sys.executable, "-c", SERVICE], **pipes, text=True) as process:
        try:
            yield Service(process)
        finally:
            process.kill()


@pytest.fixture
def ignored_ends():
    """Have processes that are started ignore the ends of their own, as some supervisors do."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("service", [[], ["sh", "-c", 'exec "$0" "$@" 2>&-']], indirect=True)
def test_a_process_has_two_pipes_a_session_and_the_environment_of_now_and_nothing_else_of_the_service(service):
    _, forked = service.ask("start")
    found = service.ask("look")
    kinds = [name.split(":")[0] for name in found["descriptors"]]
    assert sorted(kinds) in (["/dev/null"] + 4 * ["pipe"], 3 * ["/dev/null"] + 2 * ["pipe"])
    assert found["descriptors"][1] == found["descriptors"][2]
    assert (found["secret"], found["held"]) == ("1", ["public"])
    assert (found["leads"], found["ignores"], found["threads"], found["name"]) == (True, True, 1, "rapt-job")
    assert service.ask("wait") == 0
    wait_until(lambda: not Path(f"/proc/{forked}").exists())


def test_the_end_of_a_process_is_told_where_the_service_ignores_the_ends_of_its_own(ignored_ends, service):
    for word, code in (("kill", -signal.SIGKILL), ("wait", 0)):
        server, _ = service.ask("start")
        assert service.ask(word) == code
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: is_gone(server))
    assert Path(f"/proc/{server}").exists()  # its id is no other's before the service has noticed
    service.process.stdin.close()
    assert "Error" not in service.process.stderr.read()


def test_what_one_process_did_the_next_one_does_not_have(service):
    """Not its limit of memory, not its random numbers, not its crash; and no word of an error comes out."""
    found = []
    for word, code in (("limit", -9), ("look", -9), ("crash", 1), ("look", 0)):
        service.ask("start")
        found.append(service.ask(word))
        assert service.ask("kill" if code == -9 else "wait") == code
    limited, free, crashed, last = found
    assert (limited["room"], free["room"], crashed, last["room"]) == (False, True, None, True)
    assert last["secret"] == "4"
    # Equal by chance with probability 3 * 2^-53.
    assert len({entry["random"] for entry in (limited, free, last)}) == 3
    service.process.stdin.close()
    said = service.process.stderr.read()
    assert "a process of jobs ended by ValueError" in said
    assert "user" not in said


def test_a_process_that_was_left_running_is_ended_before_the_next_one_begins(service):
    _, left = service.ask("start")
    _, forked = service.ask("start")
    assert is_gone(left)
    assert service.ask("look")["secret"] == "2"
    assert service.ask("kill") == -signal.SIGKILL
    wait_until(lambda: not Path(f"/proc/{forked}").exists())


def test_a_fork_server_that_dies_takes_its_process_along_and_is_not_asked_again(service):
    server, forked = service.ask("start")
    os.kill(server, signal.SIGKILL)
    assert service.ask("kill") == -signal.SIGKILL
    wait_until(lambda: is_gone(forked))
    assert service.ask("start")[1] is None
    assert service.ask("start")[1] is None


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_service_that_ends_leaves_no_process_behind(service, end):
    pids = service.ask("start")
    service.ask("look")
    service.process.send_signal(end)
    service.process.wait()
    wait_until(lambda: all(map(is_gone, pids)))


@pytest.mark.parametrize(
    "lack", ["threading.Thread(target=threading.Event().wait, daemon=True).start()", "os.fork = refuse"]
)
def test_a_process_that_has_threads_or_may_start_no_more_processes_has_no_fork_server(lack):
    program = f"""
import os, threading
from rapt.service.jobs.fork_server import open_fork_server
def refuse():
    raise BlockingIOError
{lack}
with open_fork_server(lambda asked, answers: None) as server:
    print(server)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr
