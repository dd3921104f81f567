"""The stream that everything rests on: a known cipher, keyed by the operating system, never shared."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from randomgen import AESCounter, ChaCha

from rapt.errors import UsageError
from rapt.local.privatizer import plan_plain_tokens
from rapt.local.randomness import insecure_stream, secure_stream, worker_stream
from rapt.wire.manifest import Randomness

SEEDS_AN_ATTACKER_TRIES = range(300)


def first_words(stream, *, count=64):
    return stream.generator.integers(2**64, size=count, dtype=np.uint64).tolist()


def test_the_block_cipher_is_aes_128():
    # FIPS 197, appendix B. The key is set as it is: were it hashed first, this would fail.
    key = int.from_bytes(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"), "little")
    block = int.from_bytes(bytes.fromhex("3243f6a8885a308d313198a2e0370734"), "little")
    words = AESCounter(key=key, counter=block).random_raw(2)
    assert words.astype("<u8").tobytes().hex() == "3925841d02dc09fbdc118597196a0b32"


def test_the_stream_cipher_is_chacha20():
    # RFC 8439, appendix A.1, test vector 1: key, nonce and block counter 0.
    words = ChaCha(key=0, rounds=20).random_raw(4)
    assert words.astype("<u8").tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"


def test_two_secure_streams_differ():
    draws = [tuple(first_words(secure_stream())) for _ in range(20)]
    assert len(set(draws)) == 20


def test_a_secure_stream_says_where_its_key_comes_from_and_records_no_seed():
    provenance = secure_stream().provenance
    assert "operating system" in provenance.source
    assert "AES-128" in provenance.source or "ChaCha20" in provenance.source
    assert provenance.insecure_seed is None


def test_a_stream_shows_nothing_of_its_state():
    assert repr(insecure_stream(3)).count("generator") == 0


def test_an_insecure_stream_repeats_and_records_its_seed():
    assert first_words(insecure_stream(3)) == first_words(insecure_stream(3))
    assert first_words(insecure_stream(3)) != first_words(insecure_stream(4))
    assert insecure_stream(3).provenance == Randomness(source="PCG64DXSM (numpy), seed chosen by hand", insecure_seed=3)


@pytest.mark.parametrize("seed", [-1, 1.0, True, "3", None])
def test_a_seed_that_is_not_a_whole_number_is_refused(seed):
    with pytest.raises(UsageError, match="must be a whole number"):
        insecure_stream(seed)


def test_workers_of_a_secure_stream_have_keys_of_their_own():
    parent = secure_stream()
    workers = [worker_stream(parent.provenance, position=0) for _ in range(2)]
    assert first_words(workers[0]) != first_words(workers[1])
    assert all(worker.provenance == parent.provenance for worker in workers)


def test_workers_of_an_insecure_stream_differ_by_position_and_can_be_repeated():
    parent = insecure_stream(3)
    draws = [tuple(first_words(worker_stream(parent.provenance, position=i))) for i in (0, 1, 2, 0)]
    assert draws[0] == draws[3]
    assert len({*draws, tuple(first_words(parent))}) == 4
    assert worker_stream(parent.provenance, position=1).provenance.insecure_seed == 3


def test_a_stream_copied_into_another_process_is_refused():
    stream = secure_stream()
    stream.check_process()
    program = (
        "import pickle, sys; from rapt.errors import UsageError\n"
        "stream = pickle.load(sys.stdin.buffer)\n"
        "try: stream.check_process()\n"
        "except UsageError as error: sys.stdout.write(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(stream), capture_output=True, check=True)
    assert b"must be used in the process that made it" in done.stdout


def generators_of(seed):
    """What published code is seeded with; the last two are our own ciphers from a small number."""
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64):
        yield np.random.Generator(kind(seed))
    for kind in (AESCounter, ChaCha):
        yield np.random.Generator(kind(seed))
        yield np.random.Generator(kind(key=seed))


def search_seeds(vocabulary, plain):
    """The known-plaintext attack: the plain tokens are public, so a guess of the seed can be checked."""
    for seed in SEEDS_AN_ATTACKER_TRIES:
        for generator in generators_of(seed):
            guess = plan_plain_tokens(
                vocabulary, count=plain.count, pool_size=len(plain.pool), drawn="file", rng=generator
            )
            if guess.fixed == plain.fixed:
                return seed
    return None


@pytest.fixture(scope="module")
def words():
    from toy_vocabularies import toy_vocabulary

    return toy_vocabulary(np.eye(32))


def test_no_default_stream_is_found_by_searching_seeds(words):
    plain = plan_plain_tokens(words, count=20, pool_size=32, drawn="file", rng=secure_stream().generator)
    assert search_seeds(words, plain) is None


def test_the_search_finds_a_stream_with_a_seed(words):
    plain = plan_plain_tokens(words, count=20, pool_size=32, drawn="file", rng=insecure_stream(217).generator)
    assert search_seeds(words, plain) == 217
