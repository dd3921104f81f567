"""Privatized files made by hand for the tests of the service room: token ids only, no mechanism runs."""

from __future__ import annotations

import numpy as np

from rapt.wire.manifest import (
    NO_PLAIN_TOKENS,
    Manifest,
    MechanismSetting,
    PlainTokens,
    Randomness,
)
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest

POOL = (2204, 2919, 2307, 6659, 3376, 3866, 2312, 2235)


def manifest_for(backbone, *, plain_tokens=NO_PLAIN_TOKENS, labels=("no", "yes")):
    return Manifest(
        model=backbone.model,
        vocabulary_hash=backbone.bundle.hash,
        mechanism=MechanismSetting(name="laplace", parameters={"eta": 60.0}),
        randomness=Randomness(source="by hand", insecure_seed=0),
        plain_tokens=plain_tokens,
        labels=labels,
        records=0,
        tokens=0,
        records_sha256="",
        created_by="test",
    )


def separable_file(backbone, *, records=64, plain=0, fixed=False, seed=0):
    """Two classes told apart by the words they are drawn from; plain tokens stand for themselves half of the time."""
    rng = np.random.default_rng(seed)
    words = (np.array([2204, 2307, 6659, 3376]), np.array([2919, 6659 + 1, 9202, 10231]))
    pool = PlainTokens(count=plain, pool=POOL, fixed=POOL[:plain] if fixed else None) if plain else NO_PLAIN_TOKENS
    made = []
    for position in range(records):
        label = position % 2
        length = int(rng.integers(3, 12))
        own = tuple(int(i) for i in rng.choice(POOL, size=plain))
        true = pool.fixed or own
        noisy = tuple(int(i) if rng.random() < 0.5 else int(rng.integers(2000, 20000)) for i in true)
        made.append(
            PrivatizedRecord(
                token_ids=tuple(int(i) for i in rng.choice(words[label], size=length)),
                label=label,
                privatized_plain_tokens=noisy if plain else (),
                plain_tokens=own if plain and not fixed else None,
            )
        )
    return PrivatizedFile(manifest=seal_manifest(manifest_for(backbone, plain_tokens=pool), made), records=tuple(made))
