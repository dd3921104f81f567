"""A manifest made by hand: no mechanism has run, and nothing is counted yet."""

from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Randomness
from rapt.wire.mechanism_setting import MechanismSetting

TOKENS = MechanismSetting(name="laplace", parameters={"eta": 75.0})


def hand_made_manifest(*, model="bert-tiny", vocabulary_hash="sha256:" + "ab" * 32, mechanism=TOKENS, **others):
    return Manifest(
        model=model,
        vocabulary_hash=vocabulary_hash,
        mechanism=mechanism,
        **{
            "randomness": Randomness(source="by hand", insecure_seed=3),
            "plain_tokens": NO_PLAIN_TOKENS,
            "labels": ("no", "yes"),
            "records": 0,
            "tokens": 0,
            "records_sha256": "",
            "created_by": "a test",
        }
        | others,
    )
