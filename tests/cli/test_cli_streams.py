"""Whatever stdout is like, no command fails because of a letter, and what did not arrive is an exit code."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from rapt.cli import program
from rapt.cli.help_pages import GROUPS
from rapt.cli.program import name_command, run

TINY = ("--vocabulary", "few-words")
FEW = ("--arms", "without reconstruction", "--seeds", 1, "--privatizations", 1, "--epochs", 1, "--plain-tokens", 2)
BRIEF = ("--model", "few-words", "--epsilon", 4, "--epochs", 0.1, "--vectors", 2)
# At ε = 12 one of 2,600 codes of these leaves for another codeword than its own: the centre of 20 is found, and at
# ε = 4 one in a hundred was no more than its noise.
SMALL = ("--dimensions", 4, "--codewords", 64)
NARROW = ["cp1252", "latin-1", "ascii"]
# Stand for the ids of the pool, the job and the file of the story.
POOL, JOB, FILE = object(), object(), object()
# These run for minutes or until they are stopped, or need a service with keys or the hub; what they print goes the same
# way, and their help is tested.
LONG = {
    "demo",
    "audit-model",
    "audit-adapter",
    "denoise",
    "serve",
    "worker",
    "vocabulary certify",
    "vocabulary download",
    "pool keys",
    "pool advance",  # with `pool code`, of pools of two rounds, which are of codes: test_cli_pool.py
    "pool code",
    "gateway",
}


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def call(encoding: str, *arguments: object) -> Outcome:
    """Run the command line with streams of an encoding; what they hold must be of it."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Outcome(code, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Texts whose labels are in no narrow encoding, and word vectors."""
    made = tmp_path_factory.mktemp("files")
    rows = "".join(
        f"the food was {'good' if i % 2 else 'bad'} in place {i},{'良い' if i % 2 else '😞 η'}\n" for i in range(20)
    )
    (made / "in.csv").write_text("text,label\n" + rows, encoding="utf-8")
    (made / "words.txt").write_text("".join(f"wörd{i} {i} 1 {i * i % 7}\n" for i in range(8)), encoding="utf-8")
    public = "".join(f"the {thing} was seen {number}\n" for thing in ("sea", "hill", "town") for number in range(30))
    (made / "public.csv").write_text("text\n" + public, encoding="utf-8")
    return made


def story(folder: Path, service: str) -> list[tuple[object, ...]]:
    """A call of every command that ends soon, each on what the one before has made."""
    at = ("--service", service)
    return [
        ("mechanisms",),
        ("mechanisms", "--audit", "laplace", "--eta", 60, *TINY, "--runs", 100, "--pair", "good,bad"),
        ("statement", "--eta", 60, *TINY, "--pair", "good,bad"),
        ("calibrate", "--epsilon", 20, "--draws", 100, *TINY, "--plot", folder / "η.svg"),
        (
            "privatize",
            folder / "in.csv",
            folder / "ö.jsonl",
            "--eta",
            60,
            *TINY,
            "--ledger",
            folder / "l",
            "--cap",
            120,
            "--keep-order",
        ),
        ("statement", folder / "ö.jsonl"),
        ("show", folder / "ö.jsonl", "--original", folder / "in.csv"),
        ("ledger", "show", folder / "l"),
        ("ledger", "verify", folder / "l"),
        ("ledger", "cap", folder / "l", "--per-text", 150),
        ("audit", folder / "ö.jsonl", "--original", folder / "in.csv", "--attacks", "embedding_inversion"),
        ("tune", folder / "ö.jsonl", *at, "--epochs", 1, "--prompt-length", 2, "--method", "prompt_tuning"),
        ("predict", folder / "ö.jsonl", *at, "--model", None),
        ("predict", folder / "ö.jsonl", *at, "--model", None, "--out", folder / "a.csv"),
        ("codebook", folder / "public.csv", "--model", "few-words", *SMALL, "--out", folder / "codes"),
        (
            "privatize",
            folder / "in.csv",
            folder / "codes.jsonl",
            "--epsilon",
            12,
            "--codes",
            folder / "codes",
            "--no-label",
        ),
        ("center", folder / "codes.jsonl", "--codes", folder / "codes", "--out", folder / "centred"),
        ("reader", folder / "public.csv", *BRIEF, "--codes", folder / "codes", "--out", folder / "reads"),
        ("export", None, folder / "exported", *at),
        ("preview", folder / "in.csv", "--eta", 60, *TINY),
        ("jobs", "list", *at),
        ("files", "list", *at),
        ("models", "list", *at),
        ("models", "show", None, *at),
        ("tune", folder / "ö.jsonl", *at, "--epochs", 1000, "--batch-size", 1, "--no-wait", "--json"),
        ("jobs", "show", JOB, *at),
        ("jobs", "pause", JOB, *at),
        ("jobs", "resume", JOB, *at),
        ("jobs", "checkpoints", JOB, *at),
        ("jobs", "cancel", JOB, *at),
        ("files", "show", FILE, *at),
        ("models", "delete", None, *at),
        ("files", "delete", FILE, *at),
        ("pool", "open", folder / "ö.jsonl", *at, "--least", 2),
        ("pool", "show", POOL, *at),
        ("contribute", folder / "ö.jsonl", "--pool", POOL, *at),
        ("pool", "close", POOL, *at),
        ("pool", "delete", POOL, *at),
        ("vocabulary", "fetch", folder / "fetched", *at, "--model", "few-words"),
        ("vocabulary", "show", "few-words"),
        ("vocabulary", "vectors", folder / "words.txt", folder / "vectors"),
        ("compare", folder / "in.csv", "--eta", 90, "--model", "few-words", "--out", folder / "compared", *FEW),
    ]


def names() -> set[str]:
    commands = {name_command(command) for command in program.COMMANDS}
    return commands | {name for name in GROUPS if " " in name}


# A letter that one of the wider encodings lacks is not in ASCII either.
@pytest.mark.parametrize(
    "encoding", [pytest.param(name, marks=() if name == "ascii" else pytest.mark.slow) for name in NARROW]
)
def test_every_command_says_all_it_has_to_say_in_any_encoding(encoding, folder: Path, service, tmp_path: Path):
    for path in ("in.csv", "words.txt", "public.csv"):
        (tmp_path / path).write_bytes((folder / path).read_bytes())
    ids: dict[object, str] = {}
    for arguments in story(tmp_path, service):
        words = [ids.get(word, word) if word in (None, POOL, JOB, FILE) else word for word in arguments]
        outcome = call(encoding, *words)
        assert outcome.code == 0, (words, outcome.err)
        assert outcome.out, words
        if "--no-wait" in words:
            made = json.loads(outcome.out)
            ids |= {JOB: made["job"], FILE: made["file"]}
        elif words[0] == "tune":
            ids[None] = outcome.out.strip()
        if words[:2] == ["pool", "open"]:
            ids[POOL] = outcome.out.strip()


def test_the_story_has_every_command_that_ends_soon(folder: Path):
    told = {" ".join(map(str, words[:2])) for words in story(folder, "")} | {str(w[0]) for w in story(folder, "")}
    assert {name for name in names() - LONG if not name.startswith("admin")} <= told


@pytest.mark.parametrize("encoding", ["utf-8", *(pytest.param(name, marks=pytest.mark.slow) for name in NARROW[:2])])
def test_every_help_page_is_shown_in_any_encoding(encoding):
    for name in names():
        outcome = call(encoding, *name.split(), "--help")
        assert (outcome.code, "Example" in outcome.out) == (0, True), name


def test_letters_have_names_in_ascii_and_json_keeps_them_as_they_are(folder: Path, tmp_path: Path):
    assert "eps" in call("cp1252", "statement", "--eta", 60, *TINY).out
    assert "ε" in call("utf-8", "statement", "--eta", 60, *TINY).out
    arguments = ("privatize", folder / "in.csv", tmp_path / "out", "--eta", 60, *TINY, "--json", "--insecure-seed", 1)
    wide, *narrow = (json.loads(call(encoding, *arguments, "--overwrite").out) for encoding in ("utf-8", *NARROW))
    assert set(wide["labels"]) == {"良い", "😞 η"}
    assert all({**found, "created": None} == {**wide, "created": None} for found in narrow)


def test_a_file_name_that_is_no_text_comes_out_as_it_went_in(folder: Path, tmp_path: Path):
    target = os.path.join(os.fsencode(tmp_path), b"\xff.jsonl")
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out):
        assert run(["privatize", str(folder / "in.csv"), os.fsdecode(target), "--eta", "60", *TINY]) == 0
    assert out.buffer.getvalue() == target + b"\n"


@pytest.mark.parametrize(
    ("arguments", "stdout"),
    [
        *((arguments, "full") for arguments in ((), ("--version",), ("mechanisms",), ("mechanisms", "--json"))),
        *((("privatize",), stdout) for stdout in ("full", "without a reader", "closed")),
        (("--version",), "closed"),
        (("mechanisms",), "without a reader"),
    ],
)
def test_a_stdout_that_takes_nothing_is_one_line_and_an_exit_code(stdout, arguments, folder: Path, tmp_path: Path):
    target = tmp_path / "out.jsonl"
    if arguments == ("privatize",):
        arguments = ("privatize", str(folder / "in.csv"), str(target), "--eta", "60", *TINY)
    command = [sys.executable, "-m", "rapt", *arguments]
    if stdout == "full":
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    elif stdout == "without a reader":
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
    else:
        closed = f"exec >&-; exec {' '.join(map(repr, command))}"
        done = subprocess.run(["sh", "-c", closed], stderr=subprocess.PIPE, text=True)
    errors = [line for line in done.stderr.splitlines() if "rror" in line]
    assert done.returncode == 3
    assert len(errors) == 1
    assert errors[0].startswith("rapt: error: standard output must take the result, got ")
    assert target.exists() == (arguments[:1] == ("privatize",))


def test_the_name_of_a_tuned_model_is_not_lost_with_stdout(folder: Path, service, tmp_path: Path):
    privatized = tmp_path / "train.jsonl"
    assert call("utf-8", "privatize", folder / "in.csv", privatized, "--eta", 60, *TINY).code == 0
    arguments = ["tune", privatized, "--service", service, "--epochs", 1, "--prompt-length", 2, "--suffix", "kept"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "rapt", *map(str, arguments)], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.returncode == 3
    assert "the tuned model is ft:few-words:" in done.stderr


@pytest.fixture
def standard_input(monkeypatch, tmp_path: Path):
    """Puts bytes on standard input, in a folder where every file that is made can be found."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)

    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files of memory alone are Linux's")
def test_texts_go_in_and_codes_come_out_with_nothing_of_them_on_the_disk(
    folder: Path, service, tmp_path: Path, standard_input
):
    content, source = (folder / "in.csv").read_bytes(), folder / "in.csv"
    fixed = ("--eta", 60, *TINY, "--insecure-seed", 1)
    assert call("utf-8", "privatize", source, tmp_path / "whole", *fixed).code == 0
    for given in (content, gzip.compress(content)):
        standard_input(given)
        piped = call("utf-8", "privatize", "-", "-", "--format", "csv", *fixed)
        assert (piped.code, piped.out.splitlines()[1:]) == (0, (tmp_path / "whole").read_text().splitlines()[1:])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["temporary", "whole"]
    standard_input(content)
    counted = call("utf-8", "privatize", "-", "-", "--format", "csv", "--eta", 60, *TINY)
    assert (tmp_path / ".rapt" / "ledger.sqlite").exists()
    standard_input(counted.out.encode())
    tuned = call("utf-8", "tune", "-", "--service", service, "--epochs", 1, "--prompt-length", 2)
    standard_input(counted.out.encode())
    asked = call("utf-8", "predict", "-", "--service", service, "--model", tuned.out.strip())
    assert (asked.code, len(asked.out.splitlines())) == (0, 20)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"food was" not in path.read_bytes()
    for options, said in (((), "the format of a corpus"), (("--format", "csv", "--json"), "all that stands there")):
        standard_input(content)
        refused = call("utf-8", "privatize", "-", "-", *fixed, *options)
        assert (refused.code, refused.out, said in refused.err) == (2, "", True)
    standard_input(b"")
    assert call("utf-8", "privatize", "-", "-", "--format", "csv", *fixed).code == 3


def test_a_plot_that_cannot_be_written_leaves_the_result_and_an_exit_code(tmp_path: Path):
    missing = tmp_path / "none" / "curve.svg"
    arguments = ("calibrate", "--epsilon", 20, "--draws", 100, *TINY, "--plot", missing)
    shown = call("utf-8", *arguments)
    assert shown.code == 3
    assert shown.out.startswith("η = ")
    assert shown.err.splitlines()[-1].startswith("rapt: error: the output must be writable, got No such file")
    found = json.loads(call("utf-8", *arguments, "--json").out)
    assert (found["schema"], found["plot"]) == ("rapt.calibration/1", None)


@pytest.mark.parametrize("stderr", ["without a reader", "closed"])
def test_a_stderr_that_takes_nothing_stops_no_work(stderr: str, folder: Path, tmp_path: Path):
    command = [sys.executable, "-m", "rapt", "privatize", str(folder / "in.csv"), str(tmp_path / "out"), "--eta", "60"]
    if stderr == "closed":
        command = ["sh", "-c", f"exec 2>&-; exec {' '.join(map(repr, (*command, *TINY)))}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    else:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run([*command, *TINY], stdout=subprocess.PIPE, stderr=writing, text=True)
        os.close(writing)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n")


def test_what_was_closed_is_the_null_device_for_this_process_and_those_that_it_starts():
    look = "import json, os; print(json.dumps([os.readlink(f'/proc/self/fd/{number}') for number in range(3)]))"
    program = f"""
import subprocess, sys
from rapt.cli import main
try:
    main()
finally:
    with open("/dev/zero") as opened:  # took the place of stdin
        {look}
        print(opened.fileno() > 2)
    subprocess.run([sys.executable, "-c", {look!r}], stdout=sys.stdout)
"""
    shell = ["sh", "-c", 'exec "$0" "$@" <&- 2>&-', sys.executable, "-c", program, "--version"]
    said = subprocess.run(shell, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}).stdout
    own, is_apart, started = (json.loads(line.lower()) for line in said.splitlines()[-3:])
    assert (own[0], own[2], started[0], started[2]) == 4 * ("/dev/null",)
    assert is_apart
