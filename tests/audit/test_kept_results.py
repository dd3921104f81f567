"""An audit that was interrupted goes on: what is kept is used by the same audit, and by no other."""

import numpy as np
import pytest

from audit_material import privatized_view, public_of, scattered_vocabulary
from rapt.audit.attacks import ATTACKS
from rapt.audit.audit import audit_view
from rapt.audit.kept_results import keep_results

FAST = [name for name, attack in ATTACKS.items() if attack.fast]


class Stopped(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def audited():
    rng = np.random.default_rng(0)
    public = public_of(rng.integers(0, 40, (30, 10)))
    return privatized_view(scattered_vocabulary(size=40), rng.integers(0, 40, 200), eta=6.0, public=public)


def stop_at(stage):
    def on_progress(name, share):
        if name == stage:
            raise Stopped

    return on_progress


def test_an_audit_that_was_stopped_goes_on_and_gives_the_same_report(audited, tmp_path):
    view, truth = audited
    kept = keep_results(tmp_path / "kept", view, truth, seed=1)
    with pytest.raises(Stopped):
        audit_view(view, truth, attacks=FAST, seed=1, kept=kept, on_progress=stop_at("bound"))
    held = {path.name for path in kept.folder.iterdir()}
    assert {"channel.npz", "bayes.json", "context.json", "embedding_inversion.json"} <= held
    shares = {}
    again = audit_view(
        view,
        truth,
        attacks=FAST,
        seed=1,
        kept=kept,
        on_progress=lambda name, share: shares.setdefault(name, []).append(share),
    )
    assert shares["context"] == [0, 1], "a kept attack is not run again"
    whole = audit_view(view, truth, attacks=FAST, seed=1)
    assert [result.score for result in again.results] == [result.score for result in whole.results]
    assert again.bound == whole.bound
    (kept.folder / "mine.txt").write_text("mine")
    kept.remove()
    assert [path.name for path in kept.folder.iterdir()] == ["mine.txt"]  # somebody else's stays
    (kept.folder / "mine.txt").unlink()
    kept.remove()
    assert not kept.folder.exists()


@pytest.mark.parametrize("what", ["seed", "truth"])
def test_another_audit_does_not_use_what_was_kept(what, audited, tmp_path):
    view, truth = audited
    kept = keep_results(tmp_path, view, truth, seed=1)
    audit_view(view, truth, seed=1, attacks=["bayes"], kept=kept)
    other = (
        privatized_view(scattered_vocabulary(size=40), np.arange(200) % 40, eta=6.0)[1] if what == "truth" else truth
    )
    foreign = keep_results(tmp_path, view, other, seed=2 if what == "seed" else 1)
    assert foreign.read_channel() is None
    assert foreign.read("bayes", type(audit_view(view, truth, attacks=["bayes"]).results[0])) is None


def test_a_damaged_file_counts_as_none(audited, tmp_path):
    view, truth = audited
    kept = keep_results(tmp_path, view, truth, seed=1)
    (tmp_path / "channel.npz").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "bayes.json").write_text("{")
    assert kept.read_channel() is None
    assert kept.read("bayes", int) is None
