"""The report: complete in itself, says what was found, escapes what it is given, and survives a round trip."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from audit_material import privatized_view, scattered_vocabulary, zipf_prior
from rapt.audit.attributes import AttributeResult, Inference
from rapt.audit.audit import audit_view
from rapt.audit.formal import FormalSide, LargestSlope, LossCurve, SpentBound
from rapt.audit.intervals import compute_independent_share
from rapt.audit.judge.detail import Group
from rapt.audit.judge.questions import (
    FlaggedWords,
    KeywordResult,
    LinkageResult,
    ReleasedWords,
    RepeatedWords,
    RepetitionResult,
)
from rapt.audit.kept_results import from_json
from rapt.audit.known_plaintext import KnownPlaintext, SharedNoise
from rapt.audit.program_audit import Fit
from rapt.audit.report import render_report, report_to_json, write_report
from rapt.audit.report.values import Example, Fact, Report, Utility, UtilityRow
from rapt.audit.report.verdict import between, list_not_attacked, state_verdict, write_of_100
from rapt.drawing import Figure, Line
from rapt.errors import AuditError
from rapt.severity import GIVEN_AWAY, Severity

FORMAL = FormalSide(
    eta=9.0,
    curves=(LossCurve(name="a token", points=tuple((10.0**-k, 3.0 * k) for k in range(10, 0, -1)), pure=77.7),),
    pure_only=False,
    slope=LargestSlope(value=None, pairs=12, whole=True),
    spent=SpentBound(
        lower=1.25,
        largest=11.0,
        pairs=4,
        runs=2000,
        fit=Fit(tokens=12, runs=300, tests=25, p=0.4, unchanged=0.51, expected=0.5, alpha=5e-7),
        defects=(),
        alpha=1e-6,
    ),
)
KNOWN = KnownPlaintext(
    known=2400, seeds=1044, seed=None, tests=(SharedNoise(name="moves", agree=41, pairs=80, p=0.46),)
)
LOSS = Figure(title="Loss", across="step", up="nats", lines=(Line(name="RAPT", points=((0.0, 1.5), (9.0, 0.75))),))
HOSTILE = "<script>alert('x')</script><img src=https://evil.example/x>"


def count_hits(count, hits):
    """The share of so many hits in so many tries."""
    return compute_independent_share(np.arange(count) < hits)


def read_back(value):
    """The report in JSON whose every field has to be there, and of its type."""
    value = json.loads(json.dumps(value))
    assert value.pop("schema") == "rapt.audit-report/1"
    return from_json(Report, value)


@pytest.fixture(scope="module")
def found():
    tokens = np.random.default_rng(0).choice(300, 1500, p=zipf_prior(300).probabilities)
    view, truth = privatized_view(scattered_vocabulary(), tokens, eta=9.0, prior=zipf_prior(300))
    return audit_view(view, truth)  # without public text: two attacks


@pytest.fixture(scope="module")
def bare(found):
    return Report(title="A file", created="2026-01-02", created_by="rapt test", audit=found)


@pytest.fixture(scope="module")
def full(found):
    share = count_hits(1000, 641)
    return Report(
        title="A file",
        created="2026-01-02",
        created_by="rapt test",
        audit=found,
        statement="Protected: each single token",
        commands=("rapt audit FILE --seed 0",),
        facts=(Fact(name="Time", value="3 min"),),
        utility=Utility(
            task="Sentiment", rows=(UtilityRow(name="RAPT", accuracy=share, seeds=(0, 1), note="note"),), chance=0.341
        ),
        figures=(LOSS,),
        examples=(Example(before="the secret text", after="that sacred test"),),
        formal=FORMAL,
        known_plaintext=KNOWN,
    )


class Page(HTMLParser):
    """Tags that are open, and every attribute that was seen."""

    VOID = frozenset({"meta", "br", "line", "rect", "polyline", "img", "link"})

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", ["bare", "full"])
def test_the_page_is_well_formed_and_loads_nothing(kind, request):
    page = render_report(request.getfixturevalue(kind))
    parsed = Page(page)
    assert parsed.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.seen)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in parsed.attributes}
    assert "://" not in page
    assert not re.search(r"url\(|@import", page)


def test_the_verdict_comes_before_any_figure(full):
    page = render_report(full)
    assert page.index(state_verdict(full.audit).headline) < page.index("<svg")


def test_every_number_of_the_attacks_stands_on_the_page(full):
    page = render_report(full)
    for result in full.audit.results:
        for recovery in (result.score.all_tokens, result.score.changed_tokens, result.score.told_changed):
            assert f"{100 * recovery.first.value:.1f}\N{NO-BREAK SPACE}%" in page
            assert f"{100 * recovery.first.low:.1f}–{100 * recovery.first.high:.1f}" in page
            assert f"{100 * recovery.chance:.1f}\N{NO-BREAK SPACE}%" in page
    assert f"{100 * full.audit.bound.high:.1f}\N{NO-BREAK SPACE}%" in page


def test_optional_parts_are_shown_when_given(full):
    page = render_report(full)
    for part in ("64.1", "seeds 0, 1", "the secret text", "Protected: each single token", "rapt audit FILE", "3 min"):
        assert part in page


def test_optional_parts_leave_no_trace_when_not_given(bare):
    page = render_report(bare)
    for heading in ("What the texts are still good for", "Before and after", "What the setting promises", "<polyline"):
        assert heading not in page


def test_what_was_not_attacked_is_stated(bare):
    page = render_report(bare)
    for name, what in list_not_attacked(bare.audit, attributes=False):
        assert name in page
        assert what in page


def test_what_was_attacked_is_not_said_to_be_untried(found):
    names = [name for name, _ in list_not_attacked(found, attributes=False)]
    assert names[:4] == [
        "Context",
        "Names and entities by kind",
        "Lists of words",
        "Traits and identity of the author",
    ]
    context = replace(found.results[0], uses_context=True)
    names = [name for name, _ in list_not_attacked(replace(found, results=(context,)), attributes=True)]
    assert not {"Context", "Traits and identity of the author"} & set(names)


def test_what_was_recovered_of_each_text_of_a_record_is_on_the_page(bare):
    result = bare.audit.strongest
    groups = tuple(
        Group(name=name, first=count_hits(1000, hits), unchanged=0.5, blind=0.1)
        for name, hits in (("first text", 613), ("second text", 587))
    )
    result = replace(result, detail=replace(result.detail, texts=groups))
    found = replace(bare.audit, results=(result,), texts=("first text", "second text"), public_targets=True)
    report = replace(bare, audit=found)
    page = render_report(report)
    for part in ("By text of a record", "61.3", "58.7", f"{found.records} records", "Public targets", "as they are"):
        assert part in page
    assert read_back(report_to_json(report)) == report
    alone = render_report(bare)
    for part in ("By text of a record", "records ·", "Public targets", "Texts of a record together"):
        assert part not in alone


def test_a_column_that_was_inferred_is_in_the_verdict_and_on_the_page(bare):
    share = count_hits(1000, 700)
    attacker = Inference(name="adaptive", first=share, of_several=None, balanced=0.65)
    column = AttributeResult(
        column="speaker", values=2, texts=1000, chance=0.5, attackers=(attacker,), unprotected=attacker
    )
    report = replace(bare, attributes=(column,))
    assert "What the texts tell: speaker" in render_report(report)
    assert any("“speaker”" in sentence for sentence in state_verdict(report.audit, attributes=(column,)).sentences)
    assert read_back(report_to_json(report)) == report


def test_hostile_names_are_text(full):
    row = replace(full.utility.rows[0], name=HOSTILE, note=HOSTILE)
    hostile = replace(
        full,
        title=HOSTILE,
        statement=HOSTILE,
        commands=(HOSTILE,),
        facts=(Fact(name=HOSTILE, value=HOSTILE),),
        utility=replace(full.utility, task=HOSTILE, rows=(row,)),
        figures=(Figure(title=HOSTILE, across=HOSTILE, up=HOSTILE, lines=(Line(name=HOSTILE, points=((0.0, 1.0),)),)),),
        examples=(Example(before=HOSTILE, after=HOSTILE),),
        audit=replace(full.audit, model=HOSTILE, mechanism=HOSTILE, warnings=(HOSTILE,)),
    )
    page = render_report(hostile)
    assert not {"script", "img"} & set(Page(page).seen)
    assert "&lt;script&gt;" in page


def test_an_empty_line_and_a_flat_one_can_be_drawn(full):
    figure = Figure(
        title="t", across="x", up="y", lines=(Line(name="a", points=()), Line(name="b", points=((1.0, 0.0),)))
    )
    drawn = re.findall(r"points=\"([^\"]*)\"", render_report(replace(full, figures=(figure,), formal=None)))
    assert drawn == ["", "0.00,100.00"]


@pytest.mark.parametrize("kind", ["bare", "full"])
def test_the_json_survives_a_round_trip(kind, request):
    report = request.getfixturevalue(kind)
    assert read_back(report_to_json(report)) == report


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: {name: item for name, item in value.items() if name != "title"},
        lambda value: value | {"extra": 1},
        lambda value: value | {"title": 3},
        lambda value: value | {"commands": "rapt"},
        lambda value: value | {"audit": value["audit"] | {"records": "many"}},
        lambda value: (
            value | {"figures": [{"title": "t", "across": "x", "up": "y", "lines": [{"name": "a", "points": [[1]]}]}]}
        ),
    ],
)
def test_json_of_another_kind_is_refused(damage, full):
    with pytest.raises(AuditError):
        read_back(damage(report_to_json(full)))


def test_both_files_are_written_whole(full, tmp_path):
    page, values = write_report(full, tmp_path / "new" / "folder")
    assert page.read_text(encoding="utf-8") == render_report(full)
    assert read_back(json.loads(values.read_text(encoding="utf-8"))) == full
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json"]


def test_a_folder_that_cannot_be_written_is_one_clear_error(full, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(AuditError, match="a report must be writable"):
        write_report(full, tmp_path / "file")


def test_the_json_names_no_private_token(full):
    # The examples are the only text in it, and they were passed on purpose.
    values = json.dumps(report_to_json(replace(full, examples=())))
    assert "secret" not in values
    assert "token_ids" not in values


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 of 100"),
        (0.001, "fewer than 1 of 100"),
        (0.584, "58 of 100"),
        (0.999, "more than 99 of 100"),
        (1.0, "100 of 100"),
    ],
)
def test_a_share_in_words_is_never_rounded_to_never_or_always(share, words):
    assert write_of_100(share) == words


def test_an_interval_in_words_is_rounded_outwards():
    share = count_hits(1000, 584)
    low, high = map(int, between(share).split(" and "))
    assert low <= 100 * share.low < low + 1
    assert high - 1 < 100 * share.high <= high


def test_a_seeded_file_is_said_to_protect_nothing(found):
    assert "protects nothing" in state_verdict(replace(found, insecure=True)).headline


def linkage(share):
    hits = np.arange(400) < 400 * share
    return LinkageResult(
        first=compute_independent_share(hits), candidates=2_000, chance=0.01, blind=0.0005, believed=share
    )


def inferred(share):
    right = Inference(name="adaptive", first=count_hits(400, 400 * share), of_several=None, balanced=0)
    return AttributeResult(column="speaker", values=2, texts=400, chance=0.5, attackers=(right,), unprotected=right)


def told(share, *, uses=400, blind=0.001):
    hits = None if not uses else count_hits(uses, uses * share)
    row = FlaggedWords(name="all", found=hits, false_alarms=3, blind=blind)
    return KeywordResult(
        everything=row,
        kinds=(replace(row, name="health"),),
        listed=140,
        tokens=6_000,
        sure=0.9,
        false_alarms=30.0,
        most_false_alarms=87.7,
    )


def repeated(share=None):
    fresh = tuple(
        ReleasedWords(releases=count, named=count_hits(100, count * 3), blind=0.045) for count in (1, 3, 10, 30)
    )
    own = (
        ()
        if share is None
        else (RepeatedWords(records=10, named=count_hits(80, 80 * share), places=900, alone=0.21, blind=0.05),)
    )
    return RepetitionResult(fresh=fresh, own=own, tokens=5_000)


CALM = {"repetition": repeated(0.05), "keywords": told(0.0)}


def near_chance(found, *, value=0.05, chance=0.045, **other):
    """The report of attacks that name hardly more words than the blind guess does."""
    best = found.results[1].score
    tokens = replace(best.all_tokens, first=count_hits(1000, 1000 * value), chance=chance)
    result = replace(found.results[1], score=replace(best, all_tokens=tokens))
    return replace(found, results=(result,), **CALM | {"linkage": linkage(0.01)} | other)


REASSURING = ("blind guessing", "hardly", "no better")


def is_reassuring(report, **how):
    verdict = state_verdict(report, **how)
    return any(words in text for words in REASSURING for text in (verdict.headline, *verdict.sentences))


def test_a_file_near_chance_is_not_called_readable(found):
    calm = near_chance(found)
    assert "hardly more than blind guessing" in state_verdict(calm, attributes=(inferred(0.5),)).headline
    assert not any("anonymous" in sentence for sentence in state_verdict(calm).sentences)


@pytest.mark.parametrize(
    ("other", "attributes"),
    [
        ({"linkage": linkage(0.2)}, ()),
        ({"linkage": None}, ()),
        ({"repetition": repeated(0.6)}, ()),
        ({"repetition": None}, ()),
        ({"keywords": told(0.3)}, ()),
        ({"keywords": None}, ()),
        ({}, (inferred(0.7),)),
        ({"value": 0.08}, ()),
        ({"insecure": True}, ()),
    ],
    ids=[
        "a text is recognized",
        "no text was looked for",
        "a word that comes back is named",
        "repetition was not tried",
        "telling words are found",
        "telling words were not looked for",
        "a column is inferred",
        "words at nearly twice chance",
        "a seed",
    ],
)
def test_nothing_reassuring_is_said_where_any_attack_beats_what_is_known_without_it(found, other, attributes):
    assert not is_reassuring(near_chance(found, **other), attributes=attributes)


@pytest.mark.parametrize(
    ("other", "attributes", "severity"),
    [
        ({}, (inferred(0.5),), Severity.GOOD),
        ({"linkage": None}, (), Severity.CAUTION),
        ({"value": 0.08}, (), Severity.CAUTION),
        ({"value": 0.57}, (), Severity.BAD),
        ({"linkage": linkage(0.6)}, (), Severity.BAD),
        ({"repetition": repeated(0.6)}, (), Severity.BAD),
        ({"keywords": told(0.3)}, (), Severity.BAD),
        ({}, (inferred(0.9),), Severity.BAD),
        ({"insecure": True}, (), Severity.BAD),
    ],
)
def test_the_verdict_and_its_bars_stand_in_the_colour_of_the_worst_finding(found, bare, other, attributes, severity):
    report = near_chance(found, **other)
    assert state_verdict(report, attributes=attributes).severity is severity
    page = render_report(replace(bare, audit=report, attributes=attributes))
    assert f'<section class="verdict {severity}"' in page
    assert f'<p class="grade">{GIVEN_AWAY[severity]}</p>' in page
    if other.get("value") == 0.57:
        assert 'class="attack bad"' in page
        assert 'class="attack good"' not in page


def test_a_file_whose_texts_are_recognized_says_so_and_is_not_called_anonymous(found):
    verdict = state_verdict(near_chance(found, linkage=linkage(0.2)))
    assert "2,000 texts, the right one among them, picks it for 20 of 100" in verdict.headline
    assert any("by length alone he is right for 1 of 100" in sentence for sentence in verdict.sentences)
    assert any("anonymous" in sentence for sentence in verdict.sentences)


def test_repetition_and_telling_words_stand_on_the_page_with_counts_and_intervals(bare):
    report = replace(bare, audit=replace(bare.audit, repetition=repeated(0.6), keywords=told(0.3)))
    page = render_report(report)
    row = report.audit.repetition.own[0].named
    for part in (
        "What repetition gives away",
        "released 30 times",
        "of this file, in 10 records or more",
        f"{100 * row.low:.1f}–{100 * row.high:.1f}",
        "Which telling words are found",
        "health",
        "30.0 false alarms in 60,000",
        "at most\n  87.7",
    ):
        assert part in page
    assert read_back(report_to_json(report)) == report
    said = " ".join(state_verdict(report.audit).sentences)
    assert "from 10 and 90 of 100" in said
    assert "80 words of this file come back in 10 records or more" in said
    assert "Of 400 uses of 140 telling words" in said
    assert not {"Repetition", "Lists of words"} & {name for name, _ in list_not_attacked(report.audit, attributes=True)}


def test_a_list_of_which_no_word_is_used_is_said_to_be_so(bare):
    report = replace(bare, audit=replace(bare.audit, keywords=told(0.0, uses=0), repetition=repeated()))
    said = " ".join(state_verdict(report.audit).sentences)
    assert "None of 140 telling words" in said
    assert "No word was found to come back in 10 records" in said
    assert "health" in render_report(report)


def test_a_readable_file_is_not_called_anonymous(found):
    assert any("must not be treated as anonymous" in sentence for sentence in state_verdict(found).sentences)


def test_the_formal_side_is_drawn_and_its_numbers_stand_on_the_page(full):
    page = render_report(full)
    for part in (
        "77.7",
        "30.0",
        "24.0",
        "15.0",
        "without bound",
        "at least 1.25",
        "10⁻¹⁰",
        "once in 1,000,000",
        "can show 11",
        "p&nbsp;=&nbsp;0.4",
    ):
        assert part in page
    assert "has a defect" not in page
    spent = replace(FORMAL.spent, defects=("its outputs do not follow the stated channel",))
    assert "has a defect: its outputs do not" in render_report(replace(full, formal=replace(FORMAL, spent=spent)))


def test_a_pure_bound_is_a_table_and_not_a_curve(full):
    page = render_report(replace(full, figures=(), formal=replace(FORMAL, pure_only=True)))
    assert "<polyline" not in page
    assert "nothing is known but the pure bound" in page
    assert "no proved guarantee" in render_report(replace(full, formal=replace(FORMAL, curves=())))


def test_what_the_plain_tokens_say_is_said(full):
    assert "2,400 such pairs" in render_report(full)
    found = replace(KNOWN, seed=42)
    assert "The seed of the noise was found" in render_report(replace(full, known_plaintext=found))
    shared = replace(KNOWN, tests=(replace(KNOWN.tests[0], p=1e-9),))
    assert "not independent" in render_report(replace(full, known_plaintext=shared))
