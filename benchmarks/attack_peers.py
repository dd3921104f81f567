"""What the attacks of public packages find, beside those of `rapt`: the same models and texts, one judge, one run.

    OMP_NUM_THREADS=1 python benchmarks/attack_peers.py --environments FOLDER --out docs/results/attack_peers.json

privacyguard-platform 0.0.2, privacy-meter 1.0.1 and pypantera 1.0.2 from PyPI, each in a virtual environment of its own
in the folder `--environments` (network needed the first time), and in a process of its own, `attack_peer_worker.py`.

*Membership.* Models are tuned on random halves of public tweets, in clear and through the Laplace mechanism, and asked
about every tweet in clear. Every attack gets the same answers: of the attacked model, and of all others with their
members; each model is attacked in turn, and `rapt.audit.artefact.membership` judges all attacks alike. The peers take
the attacked model's members and the others as two tables: they are tools for its owner. A text that a peer cannot
score, because no other model had it, gets the middle of its scores.

*Words.* pypantera has no attack: it measures how like the sent text is to the one before, by the words that they share
(`lexicalSimilarity`). It does so here for the same privatized tweets that `rapt audit` attacks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from attacks_sst2 import privatized
from peers import ONE_THREAD, environment

from rapt.audit.artefact.membership import MembershipScore, ask, score_membership
from rapt.audit.artefact.membership_attacks import MEMBERSHIP_ATTACKS, make_views
from rapt.audit.artefact.workshop import TokenTexts, Workshop, tune_models
from rapt.audit.audit import audit_view
from rapt.audit.truth import match_truth
from rapt.audit.view import adversary_view, public_text
from rapt.demo.data import pick_public_tweets, pick_tweets
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.service.backbone.opening import load_backbone
from rapt.service.tuning.tuning_config import make_default_config

# Exact versions, and what their modules that are used here import; the packages' own lists are longer or empty.
NEEDED: Final = ("numpy", "pandas", "scipy", "scikit-learn")
PEERS: Final = {
    "privacyguard": ("privacyguard-platform==0.0.2", *NEEDED),
    "privacy-meter": ("privacy-meter==1.0.1", *NEEDED),
    "pypantera": ("pypantera==1.0.2", *NEEDED),
}
MEMBERSHIP: Final = {
    "privacyguard LiRA online": "privacyguard",
    "privacyguard LiRA offline": "privacyguard",
    "privacyguard RMIA online": "privacyguard",
    "privacyguard RMIA offline": "privacyguard",
    "privacy-meter reference": "privacy-meter",
    "privacy-meter population": "privacy-meter",
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environments", type=Path, required=True, help="folder for the peers' environments")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--eta", type=float, default=75.0)
    parser.add_argument("--texts", type=int, default=300, help="tweets of the game; each model has half of them")
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    vocabulary = load_vocabulary(arguments.model)
    game, population = pick_tweets(training=arguments.texts, queries=200)
    names = tuple(sorted(set(game.labels)))
    texts, outside = (
        TokenTexts(
            contents=tuple(tuple(content) for content in vocabulary.encode(list(tweets.texts))),
            labels=tuple(names.index(label) for label in tweets.labels),
            names=names,
        )
        for tweets in (game, population)
    )
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=arguments.eta)
    workshop = Workshop(
        backbone=load_backbone(arguments.model, precision="float32", device="cpu"),
        vocabulary=vocabulary,
        mechanism=mechanism,
        config=replace(make_default_config(arguments.method), epochs=arguments.epochs),
    )
    found: dict[str, object] = {
        "settings": {name: str(value) for name, value in vars(arguments).items() if not isinstance(value, Path)}
    }
    for shop in (replace(workshop, mechanism=None), workshop):
        models = tune_models(shop, texts, models=arguments.models, seed=arguments.seed)
        answers, others = (
            ask(shop, models.adapters, asked, privatized=False, queries=1, seed=arguments.seed)
            for asked in (texts, outside)
        )
        views = list(make_views(answers, models.members))
        scores = {
            f"rapt {name}": np.stack([attack(view) for view in views]) for name, attack in MEMBERSHIP_ATTACKS.items()
        }
        for arm, package in MEMBERSHIP.items():
            scores[arm] = theirs(arguments.environments, package, arm, answers, models.members, others)
        found[f"membership, tuned on {shop.tuned_on} text"] = {
            name: figures(score_membership(values, models.members, seed=arguments.seed))
            for name, values in scores.items()
        }
    found["words"] = words(vocabulary, texts, arguments)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def figures(score: MembershipScore) -> dict[str, object]:
    """What is shown of a score."""
    return {
        "auc": asdict(score.auc),
        "true_positives": {
            f"{rate.false_positive_rate:g}": None if rate.rate is None else asdict(rate.rate)
            for rate in score.true_positives
        },
        "others": score.others,
        "p": score.p,
    }


def theirs(
    folder: Path, package: str, arm: str, answers: np.ndarray, members: np.ndarray, population: np.ndarray
) -> np.ndarray:
    """A peer's score of each text as a member of each model, (N, n)."""
    folder.mkdir(parents=True, exist_ok=True)
    given, taken = folder / "answers.npz", folder / "scores.npy"
    np.savez(given, answers=answers, members=members, population=population)
    run_worker(folder, package, arm, given, taken)
    scores = np.load(taken)
    for row in scores:
        row[~np.isfinite(row)] = np.median(row[np.isfinite(row)])
    return scores


def words(vocabulary: Vocabulary, texts: TokenTexts, arguments: argparse.Namespace) -> dict[str, object]:
    """What each tool says of the same privatized tweets."""
    contents = [list(content) for content in texts.contents]
    file = privatized(vocabulary, contents, mechanism="laplace", eta=arguments.eta, seed=arguments.seed)
    own = pick_public_tweets(apart_from=pick_tweets(training=arguments.texts, queries=200)[0].texts, most=4000)
    view = adversary_view(
        file, vocabulary.bundle, public=public_text(own, vocabulary.bundle, source=f"{len(own):,} other tweets")
    )
    found = audit_view(
        view, match_truth(view, contents), attacks=("embedding_inversion", "bayes", "context"), seed=arguments.seed
    )
    pairs = [
        [" ".join(vocabulary.tokens(before)), " ".join(vocabulary.tokens(list(record.token_ids)))]
        for before, record in zip(contents, file.records, strict=True)
    ]
    given, taken = arguments.environments / "pairs.json", arguments.environments / "likeness.json"
    given.write_text(json.dumps(pairs), encoding="utf-8")
    run_worker(arguments.environments, "pypantera", "pypantera lexicalSimilarity", given, taken)
    likeness = np.array(json.loads(taken.read_text(encoding="utf-8")))
    return {
        "tokens": found.tokens,
        "unchanged": asdict(found.unchanged),
        **{f"rapt {result.attack}": asdict(result.score.all_tokens.first) for result in found.results},
        "rapt bound without context": found.bound.success.value if found.bound is not None else None,
        "pypantera lexicalSimilarity": {
            "mean": float(likeness.mean()),
            "standard_error": float(likeness.std(ddof=1) / np.sqrt(len(likeness))),
            "texts": len(likeness),
        },
    }


def run_worker(folder: Path, package: str, arm: str, given: Path, taken: Path) -> None:
    """One task of one peer, in its own environment."""
    python = environment(folder, package, packages=PEERS[package], bare=True)
    script = Path(__file__).with_name("attack_peer_worker.py")
    subprocess.run(
        [str(python), str(script), arm, str(given), str(taken)],
        check=True,
        env=ONE_THREAD | {"PATH": "/usr/bin:/bin"},
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    main()
