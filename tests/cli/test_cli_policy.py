"""`--policy` where a text goes in: the same rewriting everywhere, and no name on a terminal or a disk."""

import json

import pytest

pytest.importorskip("regex")
pytest.importorskip("cryptography")

NAME = "zanzibarsecret"


@pytest.fixture
def rules(tmp_path):
    """A policy with a pseudonym, a mask and an eta of its own; and the texts it is for."""
    (tmp_path / "policy.toml").write_text(
        "[kinds]\nemail = 'pseudonym'\nphone = {mask = 'number'}\nticket = {eta = 900}\n"
        "[patterns]\nticket = 'ticket'\n[pseudonyms]\nfile = 'names.map'\n"
    )
    rows = [f"write to {NAME}@example.org", "call +44 20 7946 0958 now", "a ticket for a film"]
    (tmp_path / "in.csv").write_text("\n".join(["text,label", *(f'"{row}",{len(row) % 2}' for row in rows)]) + "\n")
    return tmp_path / "policy.toml"


SETTING = ("--vocabulary", "few-words", "--eta", 5, "--allow-weak", "--keep-order")


def test_a_file_is_privatized_shown_and_stated_under_its_policy(rapt, rules, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = (*SETTING, "--policy", rules, "--processes", 2, "--json")
    made = rapt("privatize", "in.csv", "out.jsonl", *given)
    assert made.code == 0
    assert json.loads(made.out)["policy"] == {"email": "pseudonym", "phone": "mask", "ticket": {"eta": 900.0}}
    shown = json.loads(rapt("show", "out.jsonl", "--original", "in.csv", "--policy", rules, "--json").out)
    before = [" ".join(text["before"]) for text in shown["texts"]]
    assert before[0].startswith("write to email -")
    assert before[1:] == ["call number now", "a ticket for a film"]
    assert shown["texts"][2]["after"][1] == "ticket"
    stated = rapt("statement", "out.jsonl", "--original", "in.csv", "--policy", rules)
    assert "the policy: its kinds and treatments stand in the manifest" in stated.out
    previewed = rapt("preview", "in.csv", "--vocabulary", "few-words", "--eta", 5, "--policy", rules)
    assert "number" in previewed.out
    for outcome in (made, stated, previewed):
        assert NAME not in outcome.out + outcome.err
    for file in tmp_path.rglob("*"):
        assert file.name == "in.csv" or not file.is_file() or NAME.encode() not in file.read_bytes()


def test_a_policy_that_is_none_or_the_output_is_refused_in_one_line(rapt, rules, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (("out.jsonl", "--policy", "in.csv"), "a policy must be TOML in UTF-8"),
        (("policy.toml", "--policy", rules, "--overwrite"), "must be another file than the policy"),
        (("names.map", "--policy", rules, "--overwrite"), "must be another file than the policy"),
    ):
        outcome = rapt("privatize", "in.csv", *arguments[:1], *SETTING, *arguments[1:])
        assert outcome.code == 2
        assert said in outcome.err
        assert len(outcome.err.splitlines()) == 1
    outcome = rapt("privatize", "in.csv", "out.jsonl", "--epsilon", 4, "--policy", rules)
    assert "got ticket for whole texts" in outcome.err
