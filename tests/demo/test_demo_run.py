"""The whole demo at a tiny size, with every byte that leaves the trusted side recorded and searched.

The service is a real process, behind a proxy that keeps what the client sends. At this eta no run of five tokens stays
as it was by chance, so plain token ids are searched for as well: by the chances of the tokens, 0.3 % on average and 5 %
at most, one of these runs does in fewer than one of 10^7 demos.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from rapt.demo.data import pick_tweets
from rapt.demo.leak_check import cut_runs, holds_any
from rapt.demo.plan import DemoPlan
from rapt.demo.run import make_room, run_demo
from rapt.errors import UsageError
from rapt.local.vocabulary import load_vocabulary
from recording_proxy import Recorder

TINY = DemoPlan(
    model="bert-tiny",
    eta=25.0,
    training=24,
    queries=12,
    plain_tokens=3,
    plain_token_pool=10,
    prompt_length=2,
    epochs=1,
    public_texts=100,
)
# Names of classes are sent in clear, by design.
SENT_IN_CLEAR = {b"negative", b"positive"}
SECRET = "quetzal-7731"


class Quiet:
    """Keeps what the demo says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.given: dict[str, bytes] = {}

    def say(self, line: str) -> None:
        self.said.append(line)

    @contextmanager
    def meter(self, what, *, total=None, unit=""):
        yield lambda done, /, *, total=None, note="": self.said.append(f"{what} {done} {note}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder, result, recorded bytes and narration of one demo."""
    out, recorder, narrator = tmp_path_factory.mktemp("demo") / "out", Recorder(), Quiet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_OF_THE_USER", SECRET)
        result = run_demo(TINY, out=out, narrator=narrator, through=lambda url: watched(url, recorder, narrator))
    return out, result, recorder.sent, narrator


@contextmanager
def watched(url: str, recorder: Recorder, narrator: Quiet):
    """The recorder's proxy; also notes what the service process was given, as Linux tells it."""
    process = Path("/proc") / str(pid_of_service(narrator.said))
    if process.exists():
        given = {name: (process / name).read_bytes() for name in ("environ", "cmdline")}
        narrator.given = given | {"cwd": os.fsencode((process / "cwd").readlink())}
    with recorder.through(url) as proxy:
        yield proxy


def pid_of_service(said: list[str]) -> int:
    return int(re.search(r"process (\d+)", "\n".join(said))[1])


@pytest.fixture(scope="module")
def texts() -> tuple[str, ...]:
    training, queries = pick_tweets(training=TINY.training, queries=TINY.queries)
    return training.texts + queries.texts


def everything_the_service_has(out: Path, sent: bytes) -> dict[str, bytes]:
    files = {str(path.relative_to(out)): path.read_bytes() for path in (out / "service").rglob("*") if path.is_file()}
    return files | {"what was sent": sent}


def rare_words(texts) -> set[bytes]:
    """Handles and hashtags: whoever wrote a tweet is in there."""
    return {word.lower().encode() for text in texts for word in re.findall(r"[@#](\w{5,})", text)}


def fives(ids) -> set[tuple[int, ...]]:
    return set(zip(*(ids[start:] for start in range(5)), strict=False))


def plain_id_runs(texts) -> set[tuple[int, ...]]:
    """Every run of five true token ids."""
    return set().union(*(fives(ids) for ids in load_vocabulary(TINY.model).encode(texts)))


def written_id_runs(content: bytes) -> set[tuple[int, ...]]:
    """Every run of five numbers with commas between them, as JSON has them."""
    lists = re.findall(rb"\d+(?:,\s*\d+){4,}", content)
    return set().union(*(fives([int(number) for number in re.findall(rb"\d+", found)]) for found in lists))


def test_no_plain_text_leaves_the_trusted_side(demo, texts):
    out, _, sent, _ = demo
    assert len(sent) > 10_000
    for name, content in everything_the_service_has(out, sent).items():
        assert not holds_any(content, cut_runs(texts)), name


def test_no_name_of_a_person_or_topic_leaves_the_trusted_side(demo, texts):
    out, _, sent, _ = demo
    words = rare_words(texts) - SENT_IN_CLEAR
    assert len(words) > 20
    for name, content in everything_the_service_has(out, sent).items():
        if "vocabularies" not in name:  # the public vocabulary holds every common word
            assert not [word for word in words if word in content.lower()], name


def test_no_run_of_plain_token_ids_leaves_the_trusted_side(demo, texts):
    out, _, sent, _ = demo
    runs = plain_id_runs(texts)
    assert len(runs) > 300
    for name, content in everything_the_service_has(out, sent).items():
        assert runs.isdisjoint(written_id_runs(content)), name
    assert len(written_id_runs(sent)) > 300


@pytest.mark.parametrize("leak", ["text", "name", "ids"])
def test_each_search_finds_what_it_is_for(leak, texts):
    """The twins: a file in clear, a handle in a log line, a file of true token ids."""
    if leak == "text":
        assert holds_any("\n".join(texts).encode(), cut_runs(texts))
    elif leak == "name":
        assert rare_words([f"hello @{'somebody'}"]) == {b"somebody"}
    else:
        ids = load_vocabulary(TINY.model).encode(texts)[0]
        assert plain_id_runs(texts) & written_id_runs(json.dumps({"token_ids": ids}).encode())


def test_true_labels_of_the_queries_are_not_sent(demo):
    out, _, _, _ = demo
    assert b'"label"' not in (out / "trusted" / "queries.rapt.jsonl").read_bytes()


def test_the_service_gets_neither_the_users_environment_nor_the_way_to_the_texts(demo):
    out, _, sent, narrator = demo
    for name, content in (everything_the_service_has(out, sent) | narrator.given).items():
        assert SECRET.encode() not in content, name
        assert str(out / "trusted").encode() not in content, name
    if narrator.given:
        assert narrator.given["cwd"] == os.fsencode(out / "service")


def test_the_result_has_all_runs_with_intervals_and_the_fast_attacks(demo):
    _, result, _, _ = demo
    assert [arm.name.split()[0] for arm in result.rows] == ["clear", "prompt", "RAPT", "codes,", "codes,"]
    for arm in result.rows:
        assert 0 <= arm.accuracy.low <= arm.accuracy.value <= arm.accuracy.high <= 1
        assert arm.accuracy.n == TINY.queries
    assert [found.attack for found in result.audit.results] == ["embedding_inversion", "bayes", "context"]
    assert result.codes.warnings == ()
    assert [item.candidates for item in result.codes.naming] == [2, 10, TINY.training]
    assert result.leak.files > 5
    assert result.leak.leaked == ()


def test_the_report_says_what_the_screen_says(demo):
    out, result, _, _ = demo
    saved = json.loads((out / "report.json").read_text())
    assert saved["utility"]["rows"][2]["accuracy"]["value"] == result.rows[2].accuracy.value
    page = (out / "report.html").read_text()
    for arm in result.rows:
        assert arm.name in page


def test_every_step_is_announced_in_order(demo):
    said = demo[3].said
    steps = [line[:3] for line in said if re.match(r"\d/8 ", line)]
    assert steps == [f"{i}/8" for i in range(1, 9)]
    assert all(a < b for a, b in pairwise(steps))
    assert sum("before: " in line for line in said) == TINY.shown
    assert any("loss" in line for line in said)


def test_the_service_is_gone_afterwards(demo):
    with pytest.raises(ProcessLookupError):
        os.kill(pid_of_service(demo[3].said), 0)


def test_an_earlier_demo_is_replaced_and_anything_else_is_not(tmp_path: Path):
    (tmp_path / "old" / "trusted").mkdir(parents=True)
    (tmp_path / "old" / "report.html").write_text("old")
    make_room(tmp_path / "old")
    assert list((tmp_path / "old").iterdir()) == []
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("mine")
    with pytest.raises(UsageError, match="must be new, or hold an earlier demo only"):
        make_room(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="must be one that can be made, got Not a directory; choose another"):
        make_room(tmp_path / "file" / "demo")
