"""What a release carries for others, to run it, cite it or report on it, says what the program understands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from rapt.cli.program import run
from rapt.service.http.door import OPEN_PATHS
from rapt.service.http.settings import Settings, load_settings, reveal
from rapt.version import __version__

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
IMAGE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
UNIT = (DEPLOY / "rapt.service").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
# Read when the package is built, and by both halves.
ELSEWHERE = {"RAPT_NATIVE", "RAPT_CACHE_DIR"}


def test_citation_and_security_name_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__
    assert f"## [{__version__}] - {cited['date-released']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    line = __version__.rpartition(".")[0]
    assert f"| {line}.x | in the newest of them |" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def instructions(name):
    return re.findall(rf"^\s*{name} (.+)$", IMAGE, re.MULTILINE)


def test_every_setting_that_a_file_names_is_one_of_the_service():
    named = {name for path in DEPLOY.iterdir() for name in re.findall(r"\bRAPT_\w+", path.read_text(encoding="utf-8"))}
    assert {"RAPT_ADMIN_KEY", "RAPT_DATABASE_URL", "RAPT_HOST"} <= named
    assert named - ELSEWHERE <= {f"RAPT_{name.upper()}" for name in Settings.model_fields}


def test_the_settings_of_image_and_compose_are_accepted_together(monkeypatch):
    secrets = {"POSTGRES_PASSWORD": "e5Yq0cWm3VtH8kPz", "RAPT_ADMIN_KEY": "Zk39fQm1vTxW7bRu0aLsYc6D"}
    settings = dict(part.split("=", 1) for line in instructions("ENV") for part in line.split())
    settings |= COMPOSE["services"]["service"]["environment"]
    for name, value in settings.items():
        if name.startswith("RAPT_"):
            monkeypatch.setenv(name, re.sub(r"\$\{(\w+)[^}]*\}", lambda found: secrets[found[1]], value))
    loaded = load_settings({})
    assert loaded.host == "0.0.0.0"
    assert reveal(loaded.database_url) == "postgresql://rapt:e5Yq0cWm3VtH8kPz@database/rapt"
    assert f"127.0.0.1:{loaded.port}:{loaded.port}" in COMPOSE["services"]["service"]["ports"]


def test_the_image_copies_what_is_there_serves_as_a_user_and_asks_whether_it_is_ready():
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", IMAGE, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    assert instructions("USER")[-1] not in ("root", "0")
    assert run([*json.loads(instructions("ENTRYPOINT")[0])[1:], *json.loads(instructions("CMD")[-1]), "--help"]) == 0
    (path,) = re.findall(r"http://127\.0\.0\.1:8420(/\w+)", IMAGE)
    assert path in OPEN_PATHS
    compile(json.loads(instructions("CMD")[0])[-1], "health check", "exec")
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    copied = {name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]}
    assert {f"!{name}" for name in copied} <= set(kept.splitlines())


def test_no_secret_stands_in_a_file_and_each_volume_is_declared():
    for service in COMPOSE["services"].values():
        secret = {name: value for name, value in service["environment"].items() if re.search("KEY|PASSWORD", name)}
        assert all(re.fullmatch(r"\$\{\w+:\?[^}]+\}", value) for value in secret.values())
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(COMPOSE["volumes"])
    assert not re.search(r"(KEY|PASSWORD)=[^\n .]", UNIT)


def test_the_unit_starts_the_service_in_a_folder_of_its_own():
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # systemd's names have capitals
    unit.read_string(UNIT)
    service = unit["Service"]
    assert service["ExecStart"].split()[1:] == ["serve"]
    assert service["StateDirectoryMode"] == "0700"
    assert f"RAPT_DATA_DIRECTORY=/var/lib/{service['StateDirectory']}" in service["Environment"].split()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path):
    unit = tmp_path / "rapt.service"
    unit.write_text(re.sub("/srv/rapt/bin/rapt", "/bin/true", UNIT))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint here")
def test_hadolint_finds_nothing_to_say_about_the_image():
    done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
