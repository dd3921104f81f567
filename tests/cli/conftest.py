"""Runs the command line in this process, and hands back what a shell would see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rapt.cli.program import run


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def no_configuration(tmp_path_factory):
    """Leaves out what the person who runs the tests has configured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        for name in ("RAPT_SERVICE", "RAPT_PROFILE", "RAPT_API_KEY", "RAPT_CA_FILE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def rapt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def backbones():
    from rapt.service.http.assembly import load_backbones
    from rapt.service.http.settings import load_settings

    return load_backbones(load_settings({"models": "few-words", "precision": "float32"}))


@pytest.fixture(scope="module")
def service(backbones, tmp_path_factory):
    """The URL of a service that the tests of one module share."""
    from running_service import running_service

    with running_service(tmp_path_factory.mktemp("data"), backbones=backbones) as url:
        yield url


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Six labelled texts, no word of which may ever stand in an output."""
    path = tmp_path / "reviews.csv"
    path.write_text(
        "text,label\n"
        '"The zeppelin sauce was wonderful, truly",positive\n'
        "My gastroenterologist called it horrible,negative\n"
        "We drove to Heidelberg for this and cried,negative\n"
        "A splendid zucchini on a splendid evening,positive\n"
        "Nobody in Saskatoon would pay for that,negative\n"
        "Best kohlrabi of my whole life,positive\n",
        encoding="utf-8",
    )
    return path


SECRETS = ("zeppelin", "gastroenterologist", "heidelberg", "zucchini", "saskatoon", "kohlrabi")


@pytest.fixture
def never_shows() -> Callable[[str], None]:
    """Fails if a text holds one of the rare words of `reviews`."""

    def check(text: str) -> None:
        assert not [word for word in SECRETS if word in text.lower()]

    return check
