"""What need not be typed each time: a service of the environment or a profile, silence, and completion."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rapt.cli.program import COMMANDS, GROUPED, name_command
from strange_service import answering

POOL = "pool-0123456789abcdef01234567"


@pytest.fixture
def configure(tmp_path: Path, monkeypatch):
    """Writes the configuration of a person, readable by them alone."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "rapt" / "config.toml"
    path.parent.mkdir(parents=True)

    def write(content: str, mode: int = 0o600) -> Path:
        path.write_text(content)
        path.chmod(mode)
        return path

    return write


@pytest.fixture
def two_services():
    """URLs of two services that know nothing, and the keys that each was sent."""
    keys: tuple[list[str | None], list[str | None]] = ([], [])

    def answer(which):
        def refuse(path, body, headers, method):
            keys[which].append(headers.get("authorization"))
            return 404, {}, b'{"error": {"message": "no such pool"}}'

        return refuse

    with answering(answer(0)) as first, answering(answer(1)) as second:
        yield (first, second), keys


def test_the_command_line_goes_before_the_environment_and_that_before_the_profile(
    rapt, configure, two_services, monkeypatch
):
    (first, second), keys = two_services
    configure(f'profile = "one"\n[profiles.one]\nservice = "{first}"\n[profiles.two]\nservice = "{second}"\n')

    def asked(*options):
        for found in keys:
            found.clear()
        assert rapt("pool", "show", POOL, *options).code == 9
        return tuple(map(len, keys))

    assert asked() == (1, 0)
    assert asked("--profile", "two") == (0, 1)
    assert asked("--profile", "two", "--service", first) == (1, 0)
    monkeypatch.setenv("RAPT_PROFILE", "two")
    assert asked() == (0, 1)
    monkeypatch.setenv("RAPT_SERVICE", first)
    assert asked() == (1, 0)
    assert asked("--service", second) == (0, 1)


def test_a_key_of_a_profile_goes_to_the_service_of_that_profile_alone(rapt, configure, two_services):
    (first, second), keys = two_services
    configure(f'[profiles.one]\nservice = "{first}"\napi_key = "k-secret"\n')
    rapt("pool", "show", POOL, "--profile", "one")
    rapt("pool", "show", POOL, "--profile", "one", "--service", second)
    assert keys == (["Bearer k-secret"], [None])
    rapt("pool", "show", POOL, "--profile", "one", "--service", second, "--api-key", "k-other")
    assert keys[1][-1] == "Bearer k-other"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_in_a_file_that_others_can_read_is_refused_whoever_asks(rapt, configure, mode):
    path = configure('[profiles.one]\nservice = "http://127.0.0.1:9"\napi_key = "k-secret"\n[profiles.two]\n', mode)
    for options in ((), ("--profile", "two")):
        outcome = rapt("pool", "show", POOL, *options)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert "chmod 600" in outcome.err
        assert "k-secret" not in outcome.err
    path.chmod(0o600)
    assert "reachable" in rapt("pool", "show", POOL, "--profile", "one").err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[profiles.work]\nservise = 's-secret'\n", "got 'servise'"),
        ("[profile.work]\n", 'profile = "NAME"'),
        ("services = 's-secret'\n", "got 'services'"),
        ("profile = s-secret\n", "line 1"),
        ("[profiles.work]\nservice = 8420\n", "a text as service"),
        ("[profiles.work]\nservice = ''\n", "a text as service"),
        ("[profiles.work]\napi_key = 's-secret'\n", "add service"),
        ("[profiles]\nwork = 1\n", "a table [profiles.work]"),
        ("profile = 'work'\n", "write [profiles.work]"),
        ("# " + 70_000 * "a", "at most 65,536 bytes"),
        ("", "a service must be named"),
    ],
)
def test_a_configuration_that_is_wrong_is_one_line_and_shows_no_value(rapt, configure, content, said):
    configure(content)
    outcome = rapt("pool", "show", POOL)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert said in outcome.err
    assert "s-secret" not in outcome.err
    assert rapt("pool", "show", "--help").code == 0


def test_a_profile_that_is_named_must_be_there_and_agree_with_the_environment(rapt, configure, monkeypatch):
    missing = rapt("pool", "show", POOL, "--profile", "work")
    assert (missing.code, "must exist" in missing.err) == (2, True)
    configure('[profiles.work]\nservice = "http://127.0.0.1:9"\n')
    other = rapt("pool", "show", POOL, "--profile", "play")
    assert (other.code, "[profiles.play]" in other.err) == (2, True)
    monkeypatch.setenv("RAPT_SERVICE", "http://127.0.0.1:10")
    torn = rapt("pool", "show", POOL, "--profile", "work")
    assert (torn.code, "unset RAPT_SERVICE" in torn.err) == (2, True)


def test_the_vocabulary_and_the_code_of_a_profile_are_defaults_and_nothing_more(
    rapt, configure, reviews: Path, tmp_path: Path
):
    configure('profile = "mine"\n[profiles.mine]\nvocabulary = "few-words"\ncodes = "no-such-code"\n')
    made = rapt("privatize", reviews, tmp_path / "out", "--eta", 60, "--plain-tokens", 2, "--json")
    assert json.loads(made.out)["model"] == "few-words"
    coded = rapt("privatize", reviews, tmp_path / "codes", "--epsilon", 4)
    assert (coded.code, "code" in coded.err) == (5, True)
    # A file says itself what it was made with.
    configure('profile = "mine"\n[profiles.mine]\nvocabulary = "no-such-vocabulary"\n')
    assert rapt("show", tmp_path / "out").code == 0


def test_who_wants_to_hear_nothing_hears_warnings_and_errors_alone(rapt, reviews: Path, tmp_path: Path):
    def call(place: str, *options: object):
        arguments = ("privatize", reviews, tmp_path / place, "--eta", 60, "--vocabulary", "few-words", "--no-ledger")
        before = [options[0]] if options and options[0] == "-q" else []
        return rapt(*before, *arguments, *options[len(before) :])

    assert call("loud").err
    for number, option in enumerate(("-q", "--quiet")):
        quiet = call(f"quiet{number}", option)
        assert (quiet.code, quiet.out, quiet.err) == (0, f"{tmp_path / f'quiet{number}'}\n", "")
    (warned,) = call("seeded", "-q", "--insecure-seed", 1).err.splitlines()
    assert warned.startswith("rapt: warning: ")
    assert call("seeded", "-q").err.startswith("rapt: error: ")
    assert call("loud again").err


def test_the_help_names_every_command_once_by_who_one_is(rapt):
    shown = rapt("--help").out.partition("Your text:")[2]
    names = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line[2] != " "]
    assert sorted(names) == sorted([*map(name_command, COMMANDS), *GROUPED])
    places = [shown.index(title) for title in ("A service's customer:", "A provider:", "A laboratory:")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("shell", "asked"),
    [
        ("bash", {"COMP_WORDS": "rapt tune --fol", "COMP_CWORD": "2"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "rapt tune --fol"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "rapt tune --fol", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_a_shell_completes_options_and_gets_its_script(rapt, capsys, monkeypatch, shell, asked):
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_RAPT_COMPLETE", f"complete_{shell}")
    with pytest.raises(SystemExit) as left:
        rapt()
    assert (left.value.code, "--follow" in capsys.readouterr().out) == (0, True)
    monkeypatch.setenv("_RAPT_COMPLETE", f"source_{shell}")
    with pytest.raises(SystemExit) as left:
        rapt()
    assert (left.value.code, "_RAPT_COMPLETE" in capsys.readouterr().out) == (0, True)
    assert os.environ["_RAPT_COMPLETE"] == f"source_{shell}"
