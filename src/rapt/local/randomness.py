"""Where noise comes from: a block or stream cipher keyed by the operating system, or, on request, a seed.

Plain tokens are public together with their privatized forms, so whoever receives a file holds pairs of known plaintext
and output. From a generator with a small seed, or with a state that can be solved for, such pairs give away all of the
noise and with it the text. Hence a cipher with a full random key is the default, and a seed is called insecure.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field

import numpy as np
from randomgen import AESCounter, ChaCha  # type: ignore[import-untyped]  # it ships no type stubs

from rapt.arguments import check_arguments
from rapt.errors import UsageError
from rapt.wire.manifest import CLUSTER_SOURCE, CLUSTER_SOURCE_WITHOUT_AES, Randomness
from rapt.wire.strict_json import LARGEST


@dataclass(frozen=True)
class RandomStream:
    """A generator and the public statement of where it came from.

    Attributes:
        generator: Draws from it are private: whoever can repeat them can undo the privatization.
        provenance: Statement of the manifest about it.
        process: Id of the process that made it. A copy in another one would draw the same noise: `check_process`.
    """

    generator: np.random.Generator = field(repr=False)
    provenance: Randomness
    process: int = field(default_factory=os.getpid, repr=False, compare=False)

    def check_process(self) -> None:
        """Refuse a stream that was copied into another process, where it would repeat the noise of its original.

        Raises:
            UsageError: This process did not make the stream.
        """
        if self.process != os.getpid():
            raise UsageError(
                "a random stream must be used in the process that made it, because a copy repeats its noise; "
                "make one in each worker with worker_stream()"
            )


def secure_stream() -> RandomStream:
    """A stream that nobody can predict or tell from uniform noise without its key, which is drawn here and not kept.

    AES-128 in counter mode where the processor computes AES, else ChaCha20 with a 256-bit key: table-driven AES is
    slower and its timing depends on the key. The key is set as it is, not hashed down from a seed.
    """
    cipher = AESCounter(key=secrets.randbits(128))
    if cipher.use_aesni:
        source = "AES-128 counter mode (randomgen), 128-bit key from the operating system"
        return RandomStream(np.random.Generator(cipher), Randomness(source=source))
    source = "ChaCha20 (randomgen), 256-bit key from the operating system"
    stream = ChaCha(key=secrets.randbits(256), rounds=20)
    return RandomStream(np.random.Generator(stream), Randomness(source=source))


@check_arguments
def insecure_stream(seed: int) -> RandomStream:
    """A stream that anyone who guesses the seed can repeat: for tests and for experiments on public text.

    The seed is recorded in every manifest, because such a file protects nothing.

    Raises:
        UsageError: The seed is not a whole number >= 0.
    """
    return _seed_stream(seed, position=None)


def worker_stream(provenance: Randomness, *, position: int) -> RandomStream:
    """The stream of one worker process, called inside it: independent of its parent's and of every other worker's.

    A fresh key where the parent's stream is secure; else derived from the parent's seed and the worker's position.

    Args:
        provenance: Provenance of the parent's stream. A statement travels; a stream must not.
        position: Number of the worker, from 0.
    """
    if provenance.insecure_seed is None:
        return secure_stream()
    return _seed_stream(provenance.insecure_seed, position=position)


def block_stream(provenance: Randomness, *, key: bytes, position: int) -> RandomStream:
    """The stream of one block of records on a cluster: whoever draws the block again, on any node, draws the same.

    The cipher that the provenance states, under a key that BLAKE2b, keyed, makes of the position: a pseudorandom
    function, so blocks are independent, and who has the stream of one learns nothing of another. Every processor
    computes the same bytes. With an insecure seed, derived from that and the position.

    Args:
        provenance: Provenance that the manifest states.
        key: Secret key of the run, 32 bytes, drawn for it alone and never kept: two runs share no stream.
        position: Position of the first record of the block in its source.
    """
    if provenance.insecure_seed is not None:
        return _seed_stream(provenance.insecure_seed, position=position)
    is_aes = provenance.source == CLUSTER_SOURCE
    size = 16 if is_aes else 32
    own = hashlib.blake2b(position.to_bytes(8, "little"), key=key, digest_size=size, person=b"rapt block").digest()
    number = int.from_bytes(own, "little")
    stream = AESCounter(key=number) if is_aes else ChaCha(key=number, rounds=20)
    return RandomStream(np.random.Generator(stream), provenance)


def choose_cluster_randomness() -> Randomness:
    """The cipher of the blocks of a run, the same on all nodes: AES where this processor computes it.

    A node that does not would be slower, and its timing would depend on the key; the cluster is trusted.
    """
    return Randomness(source=CLUSTER_SOURCE if AESCounter(key=0).use_aesni else CLUSTER_SOURCE_WITHOUT_AES)


def _seed_stream(seed: int, *, position: int | None) -> RandomStream:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST:
        raise UsageError(f"an insecure seed must be a whole number >= 0 and at most {LARGEST}; choose another")
    sequence = np.random.SeedSequence(seed, spawn_key=() if position is None else (position,))
    worker = "" if position is None else f", worker {position}"
    return RandomStream(
        np.random.Generator(np.random.PCG64DXSM(sequence)),
        Randomness(source=f"PCG64DXSM (numpy), seed chosen by hand{worker}", insecure_seed=seed),
    )
