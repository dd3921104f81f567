"""Prompts for a larger model hold public text and nothing of the file, and replies are scored against their answers."""

import json

import numpy as np
import pytest

from audit_material import privatized_view, public_of, scattered_vocabulary, zipf_prior
from rapt.audit.attacks.desk import Desk
from rapt.audit.prompts import ANSWERS, export_prompts, score_replies
from rapt.errors import AuditError
from toy_vocabularies import toy_word

SIZE = 60


def desk_of(*, eta, mechanism="exponential", seed=0):
    # The file has words of the first half, the public text those of the second: one that leaks would show.
    rng = np.random.default_rng(seed)
    public = public_of(30 + rng.integers(0, 30, (40, 8)))
    private = rng.integers(0, 30, 100)
    vocabulary = scattered_vocabulary(size=SIZE, dim=6)
    view, truth = privatized_view(
        vocabulary, private, eta=eta, mechanism=mechanism, prior=zipf_prior(SIZE), public=public
    )
    return Desk(view, seed=seed), truth


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_prompts_are_about_public_text_and_answers_stand_apart(tmp_path):
    desk, _ = desk_of(eta=300.0)
    path = tmp_path / "prompts.jsonl"
    assert export_prompts(desk, path) == 40
    answers = lines(tmp_path / f"prompts.jsonl{ANSWERS}")
    public = {tuple(toy_word(token) for token in text.tolist()) for text in desk.public.contents}
    assert {tuple(answer["tokens"]) for answer in answers} <= public
    said = " ".join(line["prompt"] for line in lines(path))
    own = {toy_word(token) for token in range(30)}
    # With hardly any noise what is seen are the public words, and no word of the file is among them.
    assert not own & set(said.replace(";", " ").replace(",", " ").split())
    assert all(set(line) == {"id", "prompt"} for line in lines(path))


def test_the_same_public_text_gives_the_same_prompts_whatever_the_file_says(tmp_path):
    desk, _ = desk_of(eta=4.0)
    other, _ = privatized_view(
        scattered_vocabulary(size=SIZE, dim=6),
        np.arange(100) % 30,
        eta=4.0,
        mechanism="exponential",
        prior=zipf_prior(SIZE),
        public=desk.public,
    )
    export_prompts(desk, tmp_path / "a")
    export_prompts(Desk(other, seed=0), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_replies_are_scored_with_an_interval_and_the_blind_guess(tmp_path):
    path = tmp_path / "prompts.jsonl"
    export_prompts(desk_of(eta=4.0)[0], path)
    answers = lines(tmp_path / f"prompts.jsonl{ANSWERS}")
    half = [{"id": answer["id"], "tokens": answer["tokens"][:4]} for answer in answers]
    replies = tmp_path / "replies.jsonl"
    replies.write_text("".join(json.dumps(line) + "\n" for line in half), encoding="utf-8")
    share, blind = score_replies(path, replies)
    assert (share.value, share.n, share.clusters) == (0.5, 320, 40)
    assert 1 / 30 <= blind < 0.2
    replies.write_text("", encoding="utf-8")
    assert score_replies(path, replies)[0].value == 0


@pytest.mark.parametrize("content", ["{", "[1]", '{"id": "x", "tokens": []}', '{"id": 1}'])
def test_a_reply_of_another_kind_is_one_clear_error(content, tmp_path):
    path = tmp_path / "prompts.jsonl"
    export_prompts(desk_of(eta=4.0)[0], path)
    (tmp_path / "replies").write_text(content, encoding="utf-8")
    with pytest.raises(AuditError, match="lines of id and tokens"):
        score_replies(path, tmp_path / "replies")


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path):
    with pytest.raises(AuditError, match="prompts must be writable"):
        export_prompts(desk_of(eta=4.0)[0], tmp_path / "none" / "prompts.jsonl")
