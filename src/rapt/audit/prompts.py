"""Prompts with which a larger language model is asked what public texts said, privatized as a file was.

They hold public text only: it is privatized afresh, by the mechanism of the file, of which nothing else is in them. So
they can be sent to a model to which one would never send one's own text or its privatized form. The answers stand in a
file of their own, which the model must not see; what it says is scored against them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

from rapt.audit.attacks.desk import Desk, build_lattice
from rapt.audit.intervals import Share, compute_clustered_share
from rapt.audit.language.layout import write_rows
from rapt.errors import AuditError
from rapt.whole_files import write_whole

# Public texts that are asked about, and candidates for each of their words.
TEXTS: Final = 100
CANDIDATES: Final = 8
ANSWERS: Final = ".answers.jsonl"
_MOST_OF_A_REPLY: Final = 50_000_000

_QUESTION: Final = (
    "Each token of an English text was replaced by a random token, often by itself or by one of similar meaning; "
    'tokens that begin with "##" go on the word before. For each place you get the token that was seen and the '
    "likeliest original tokens with their probabilities by frequency alone. Use what fits together to name the "
    "original text. Answer with a JSON list of exactly {count} tokens.\n{places}"
)


def name_answers(path: Path) -> Path:
    """The file of the answers to a file of prompts."""
    return path.with_name(path.name + ANSWERS)


def export_prompts(desk: Desk, path: Path) -> int:
    """Write prompts about public texts, and their answers beside them; returns how many.

    Args:
        desk: Desk of the attacker, with public text, which is taken for public and must not be lent.
        path: File of the prompts, JSON lines of `id` and `prompt`; the answers go to the same name with `ANSWERS`.

    Raises:
        AuditError: There is no public text, the channel is not known, or a file cannot be written.
    """
    if (reason := desk.channel_unknown) is not None:
        raise AuditError(f"prompts must say what is likely: {reason}; leave them out")
    rng = desk.rng("prompts")
    contents = [desk.public.contents[place] for place in rng.permutation(len(desk.public.contents))[:TEXTS]]
    lengths = [len(content) for content in contents]
    released = desk.mechanism().privatize(np.concatenate(contents), rng=rng)
    prior = desk.public.prior(desk.view.bundle)
    channel = desk.channel_at(np.unique(released), prior=prior.probabilities)
    lattice = build_lattice(channel, released, prior, width=CANDIDATES)
    weight = np.exp(lattice.evidence + lattice.prior)
    weight /= np.where((total := weight.sum(axis=1, keepdims=True)) > 0, total, 1)
    written = write_rows(desk.view.bundle)
    prompts, answers, start = [], [], 0
    for number, (content, length) in enumerate(zip(contents, lengths, strict=True)):
        places = []
        for place in range(start, start + length):
            likely = ", ".join(
                f"{written[token]} {chance:.2f}"
                for token, chance in zip(lattice.candidates[place, :-1].tolist(), weight[place, :-1], strict=True)
                if chance >= 0.005
            )
            places.append(f"{place - start + 1}. seen: {written[released[place]]}; likely: {likely or 'unknown'}")
        prompts.append({"id": number, "prompt": _QUESTION.format(count=length, places="\n".join(places))})
        answers.append({"id": number, "tokens": [written[token] for token in content.tolist()]})
        start += length
    try:
        for target, lines in ((path, prompts), (name_answers(path), answers)):
            write_whole(target, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise AuditError(
            f"prompts must be writable, got {error.strerror or type(error).__name__}; choose another file"
        ) from None
    return len(prompts)


def score_replies(path: Path, replies: Path) -> tuple[Share, float]:
    """The share of tokens that a model named rightly, and that of always naming the most frequent one.

    Args:
        path: File of the prompts, beside which the answers lie.
        replies: JSON lines of `id` and `tokens`, one for each prompt; a reply that is missing, or too short, names
            nothing there.

    Raises:
        AuditError: A file cannot be read, or is not of this kind.
    """
    answers = _read_tokens(name_answers(path))
    found = _read_tokens(replies)
    true = [token for tokens in answers.values() for token in tokens]
    hits = [
        place < len(found.get(number, ())) and found[number][place] == token
        for number, tokens in answers.items()
        for place, token in enumerate(tokens)
    ]
    share = compute_clustered_share(np.array(hits, dtype=bool), np.array([len(tokens) for tokens in answers.values()]))
    if share is None:
        raise AuditError("answers must have a token, got none; export the prompts again")
    _, times = np.unique(np.array(true), return_counts=True)
    return share, float(times.max() / len(true))


def _read_tokens(path: Path) -> dict[int, list[str]]:
    """The tokens of each line by its id."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_OF_A_REPLY + 1)
        if len(content) > _MOST_OF_A_REPLY:
            raise AuditError(f"a file of tokens must have at most {_MOST_OF_A_REPLY:,} bytes, got more")
        lines = [json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip()]
        return {int(line["id"]): [str(token) for token in line["tokens"]] for line in lines}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise AuditError("a file of tokens must have lines of id and tokens in JSON; write it again") from None
