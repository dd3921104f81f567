import re
from pathlib import Path

import pytest

import rapt
from rapt.errors import UsageError
from rapt.service.http.settings import Settings, load_settings, name_served_model, warn_of_unknown_variables
from rapt.this_machine import is_loopback

KEY = "a-key-of-more-than-sixteen-characters"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for field in Settings.model_fields:
        monkeypatch.delenv(f"RAPT_{field.upper()}", raising=False)


def test_the_defaults_serve_minilm_to_this_machine_only():
    settings = load_settings({})
    assert (settings.host, settings.models, settings.admin_key) == ("127.0.0.1", ("minilm",), None)


def test_every_field_is_an_environment_variable(monkeypatch):
    monkeypatch.setenv("RAPT_MODELS", "minilm, bert-tiny")
    monkeypatch.setenv("RAPT_PORT", "0")
    monkeypatch.setenv("RAPT_ADMIN_KEY", KEY)
    settings = load_settings({})
    assert (settings.models, settings.port) == (("minilm", "bert-tiny"), 0)
    assert settings.admin_key.get_secret_value() == KEY


def test_an_argument_goes_before_the_environment_and_none_is_no_argument(monkeypatch):
    monkeypatch.setenv("RAPT_PORT", "1")
    assert load_settings({"port": 2}).port == 2
    assert load_settings({"port": None}).port == 1


PLACEHOLDERS = [
    "please-changethis-now",
    "Your-API-Key-goes-here",
    "correct horse my-secret!".replace(" ", "-"),
    "x" * 40,
]


@pytest.mark.parametrize("key", PLACEHOLDERS)
def test_a_placeholder_is_no_key_outside_development(key):
    assert load_settings({"admin_key": key}).host == "127.0.0.1"
    with pytest.raises(UsageError, match="not a placeholder") as error:
        load_settings({"host": "0.0.0.0", "admin_key": key})
    assert key not in str(error.value)
    assert load_settings({"host": "0.0.0.0", "admin_key": KEY}).host == "0.0.0.0"


@pytest.mark.parametrize("half", ["tls_cert", "tls_key"])
def test_half_of_a_certificate_is_refused(half):
    with pytest.raises(UsageError, match="must come together"):
        load_settings({half: "somewhere.pem"})


@pytest.mark.parametrize("key", ["", "short", "with spaces in between them", "nicht-aus-ASCII-sondern-äöü"])
def test_a_key_that_can_be_guessed_is_refused_and_not_repeated(key):
    with pytest.raises(UsageError, match="admin_key is refused: must have at least 16") as error:
        load_settings({"admin_key": key})
    assert not key or key not in str(error.value)


def test_the_key_is_not_in_the_repr():
    assert KEY not in repr(load_settings({"admin_key": KEY}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 70_000), ("port", "abc"), ("models", ""), ("models", "minilm,minilm"), ("models", "a:b"), ("typo", 1)],
)
def test_a_value_that_breaks_a_rule_is_one_line_naming_the_setting(name, value):
    with pytest.raises(UsageError, match=rf"^the setting {name} is refused: [^\n]+$"):
        load_settings({name: value})


def test_a_model_in_a_folder_is_served_under_the_folders_name(tmp_path):
    assert name_served_model(str(tmp_path / "models" / "mine")) == "mine"
    assert name_served_model("bert-tiny") == "bert-tiny"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_everything_else(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "RAPT_MAX_FILE_BYTE",
            "RAPT_MAX_FILE_BYTE is of no setting and is not looked at; is RAPT_MAX_FILE_BYTES meant?",
        ),
        ("RAPT_DATABSE_URL", "is RAPT_DATABASE_URL meant?"),
        ("rapt_tenant_job", "is RAPT_TENANT_JOBS meant?"),
        ("RAPT_PORT_8420_TCP_ADDR", "RAPT_PORT_8420_TCP_ADDR is of no setting and is not looked at"),
    ],
)
def test_a_variable_that_is_mistyped_is_named_and_its_value_is_not(name, said, caplog):
    warn_of_unknown_variables([name, "PATH", "RAPTOR"])
    (record,) = caplog.records
    assert record.getMessage().endswith(said)


def test_the_variables_that_the_code_reads_are_known(caplog):
    source = Path(rapt.__file__).parent
    names = {name for path in source.rglob("*.py") for name in re.findall(r'"(RAPT_[A-Z_]+)"', path.read_text())}
    assert len(names) > 5
    warn_of_unknown_variables(names)
    assert caplog.records == []
