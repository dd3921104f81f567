"""An audit by one call: what `rapt audit` does, for a program."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace
from subprocess import run

import pytest

import rapt
from rapt.audit import AuditPlan, audit_file
from rapt.audit.attacks import DEFAULT_ATTACKS
from rapt.audit.file_audit import choose_attacks, read_word_list
from rapt.audit.kept_results import from_json
from rapt.audit.report.values import Report
from rapt.errors import AuditError
from rapt.wire.strict_json import parse_object
from tiny_backbones import write_tiny_model


class Listener:
    """Keeps what is said, and how far each piece of work came."""

    def __init__(self):
        self.said, self.done = [], {}

    def say(self, line):
        self.said.append(line)

    @contextmanager
    def meter(self, what, *, total=None, unit=""):
        yield lambda done, total=None, note="": self.done.update({what: done})


@pytest.fixture
def files(tmp_path):
    original = tmp_path / "reviews.csv"
    lines = [f"the film was {('good', 'bad')[n % 2]} in town {n},{('yes', 'no')[n % 2]}" for n in range(12)]
    original.write_text("text,label\n" + "\n".join(lines) + "\n")
    vocabulary, stream = rapt.load_vocabulary("bert-tiny"), rapt.insecure_stream(3)
    privatizer = rapt.Privatizer(
        vocabulary=vocabulary,
        mechanism=rapt.make_mechanism("laplace", vocabulary=vocabulary, eta=300.0),
        plain_tokens=rapt.NO_PLAIN_TOKENS,
    )
    private = tmp_path / "reviews.rapt.jsonl"
    rapt.privatize_corpus(original, private, privatizer=privatizer, labels=("no", "yes"), stream=stream)
    return private, original


def test_one_call_attacks_a_file_and_writes_the_report(files, tmp_path):
    private, original = files
    listener = Listener()
    plan = AuditPlan(file=private, original=original, attacks=("embedding_inversion",), out=tmp_path / "audit")
    report = audit_file(plan, narrator=listener)
    assert report.audit.strongest.attack == "embedding_inversion"
    assert report.audit.strongest.score.all_tokens.first.value == report.audit.unchanged.value
    written = (tmp_path / "audit" / "report.json").read_bytes()
    values = parse_object(written, what="a report")
    assert values.pop("schema") == "rapt.audit-report/1"
    assert from_json(Report, values) == report
    assert listener.done["attacking"] == 100
    assert listener.said == [f"report: {tmp_path / 'audit' / 'report.html'}"]
    assert str(tmp_path) not in written.decode()


def test_without_a_folder_nothing_is_written(files, tmp_path):
    private, original = files
    before = sorted(tmp_path.iterdir())
    audit_file(AuditPlan(file=private, original=original, attacks=("embedding_inversion",)))
    assert sorted(tmp_path.iterdir()) == before


def test_a_decoder_is_asked_where_it_is_named_and_the_report_says_which(files, tmp_path):
    private, original = files
    public, decoder = tmp_path / "public.csv", tmp_path / "some-decoder"
    public.write_text("text\n" + "\n".join(f"a good town had {n} films" for n in range(30)) + "\n")
    decoder.mkdir()
    write_tiny_model("gpt2", decoder)
    plan = AuditPlan(file=private, original=original, public_text=public, limit=20, language_model=str(decoder))
    attacks, chosen = choose_attacks(plan, tokens=20)
    assert (attacks, chosen.model) == ((*DEFAULT_ATTACKS, "causal"), str(decoder))
    assert choose_attacks(replace(plan, language_model="none"), tokens=20) == (DEFAULT_ATTACKS, None)
    with pytest.raises(AuditError, match="known name or a folder"):
        choose_attacks(replace(plan, language_model="nowhere/none"), tokens=20)
    found = audit_file(replace(plan, attacks=("embedding_inversion", "causal")))
    assert "the decoder some-decoder, 0 million parameters; it was named" in found.audit.results[1].remarks
    assert "--language-model some-decoder --" in found.commands[0]


def test_the_room_is_imported_without_what_it_needs_to_attack():
    script = (
        "import sys; sys.modules['torch'] = sys.modules['scipy'] = None; import rapt.audit, rapt.compare, rapt.denoise"
    )
    run([sys.executable, "-c", script], check=True)


def test_prompts_are_made_of_public_text_only_and_never_of_what_is_lent(files, tmp_path):
    private, original = files
    plan = AuditPlan(file=private, original=original, export_prompts=tmp_path / "prompts")
    with pytest.raises(AuditError, match="made of public text only"):
        audit_file(plan)
    assert list(tmp_path.glob("prompts*")) == []


@pytest.mark.parametrize(
    ("content", "rule"),
    [(b"\xff", "it is not UTF-8"), (b"a" * 1_000_001, "at most 1,000,000 bytes"), (None, "No such")],
)
def test_a_list_of_words_that_cannot_be_read_is_one_clear_error(content, rule, tmp_path):
    if content is not None:
        (tmp_path / "words").write_bytes(content)
    with pytest.raises(AuditError, match=rule):
        read_word_list(tmp_path / "words")


def test_a_list_of_words_has_one_a_line(tmp_path):
    (tmp_path / "words").write_text("\ufeffgod\r\n\n my debt \n", encoding="utf-8")
    assert read_word_list(tmp_path / "words") == {"your list": ["god", "my debt"]}
