"""Whether memory that was freed leaves the process: each case in a process of its own, whose heap nobody else uses."""

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")

# Blocks of 64 KiB in the heap, every second of them freed: too small to be mapped one by one, and each between two that
# stay, so that the library cannot give any back by itself.
IN_PIECES = """
import ctypes, time
from pathlib import Path
from rapt.service.http.housekeeping import give_back, give_back_regularly
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def resident():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024
size, blocks = 1 << 16, []
for _ in range(2048):
    blocks.append(libc.malloc(size))
    ctypes.memset(blocks[-1], 1, size)
for block in blocks[::2]:
    libc.free(block)
full = resident()
{then}
print(full - resident())
"""
FREED = 64.0  # MiB


def fallen(then):
    """By how many MiB the resident memory fell."""
    done = subprocess.run(
        [sys.executable, "-c", IN_PIECES.format(then=then)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_what_lies_in_pieces_is_given_back():
    assert fallen("assert give_back()") > 0.8 * FREED


def test_left_alone_it_stays():
    assert fallen("") < 0.1 * FREED


def test_within_the_block_it_is_given_back_again_and_again():
    waiting = "while resident() > full - 50: time.sleep(0.01)"
    assert fallen(f"with give_back_regularly(every=0.02):\n    {waiting}") > 50
