"""Texts under a policy: what the mechanism sees of them, what leaves of each kind, and what the manifest says."""

import pickle

import pytest

import rapt
from code_material import code_privatizer
from rapt.errors import CorpusError, LedgerError, MechanismError, UsageError, WireError
from rapt.local.codes.code_privatizer import join_pair, split_pair
from rapt.local.corpus import privatize_corpus
from rapt.local.ledger import open_ledger
from rapt.local.ledger_report import summarize_ledger
from rapt.local.mechanisms import make_mechanism
from rapt.local.policy.policy import Policy
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.policy.pseudonyms import PseudonymMap
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import insecure_stream
from rapt.wire.manifest import NO_PLAIN_TOKENS, dump_manifest, parse_manifest

pytest.importorskip("regex")
pytest.importorskip("cryptography")

SECRET = "zanzibarsecret"
TEXTS = [f"write to {SECRET}@example.org today", "ticket tck film tck", "a film"]


@pytest.fixture(scope="module")
def kept(bert_tiny):
    """A setting whose noise changes nothing: what comes back shows what went in, and where."""
    return Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=1e5), NO_PLAIN_TOKENS)


def policy(**kinds):
    patterns = {"ticket": "tck"} if "ticket" in kinds else {}
    return Policy.make(kinds, patterns=patterns)


def leave(privatizer, texts=TEXTS, seed=0):
    records = privatizer.privatize(texts, labels=None, stream=insecure_stream(seed))
    return [privatizer.vocabulary.decode(record.token_ids) for record in records]


def test_a_mechanism_sees_the_placeholder_and_nothing_of_the_name(kept):
    privatizer = PolicyPrivatizer(kept, policy(email={"mask": "somebody"}))
    assert leave(privatizer) == ["write to somebody today", "ticket tc ##k film tc ##k".replace(" ##", ""), "a film"]
    assert len(repr(privatizer)) <= 200
    assert SECRET not in repr(privatizer)


def test_texts_that_differ_in_masked_names_alone_are_one_text_to_both_mechanisms(kept, bert_tiny):
    names = ["write to a@b.cd today", "write to a.much.longer+name@mail.example.org today"]
    for inner in (kept, code_privatizer(bert_tiny)):
        first, second = PolicyPrivatizer(inner, policy(email="mask")).contents(names)
        assert first == second


def test_tokens_of_a_kind_have_the_noise_of_their_own_strength_and_others_that_of_the_rest(kept, bert_tiny):
    # At eta = 0.01 a token stays with probability far below 1e-3, and the draws come from a seed.
    noisy = Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=0.01), NO_PLAIN_TOKENS)
    text = ["ticket film ticket film ticket"]
    strong = leave(PolicyPrivatizer(kept, Policy.make({"word": {"eta": 0.01}}, patterns={"word": "ticket"})), text)
    weak = leave(PolicyPrivatizer(noisy, Policy.make({"word": {"eta": 900}}, patterns={"word": "ticket"})), text)
    assert strong[0].count("film") == 2
    assert "ticket" not in strong[0]
    assert weak[0].count("ticket") == 3
    assert "film" not in weak[0]


@pytest.mark.parametrize(("epsilon", "stays"), [(60, True), (0.001, False)])
def test_a_pure_epsilon_of_a_kind_keeps_its_tokens_as_randomized_response_does(kept, epsilon, stays):
    # At 60 each is lost with probability 3e4/e^60 < 1e-21; at 0.001 each stays with 1/29,523, and a seed draws.
    (found,) = leave(PolicyPrivatizer(kept, policy(ticket={"epsilon": epsilon})), ["tck film tck"])
    assert (found.replace(" ", "").count("tck") == 2) is stays
    assert "film" in found


def test_codes_of_whole_texts_have_no_kind_with_a_strength_of_its_own(bert_tiny, kept):
    inner = code_privatizer(bert_tiny)
    with pytest.raises(UsageError, match="must be of tokens, got ticket for whole texts"):
        PolicyPrivatizer(inner, policy(ticket={"eta": 5}))
    with pytest.raises(UsageError, match="must have one policy"):
        PolicyPrivatizer(PolicyPrivatizer(kept, policy(email="mask")), policy(url="mask"))
    with pytest.raises(MechanismError, match="kind 'ticket': eta must be at most"):
        PolicyPrivatizer(kept, policy(ticket={"eta": 1e9}))


def test_a_text_that_a_policy_refuses_is_named_by_its_position_and_not_shown(kept):
    privatizer = PolicyPrivatizer(kept, policy(email="mask"))
    with pytest.raises(CorpusError, match="record 2 must have what a policy can read") as caught:
        privatizer.contents(["x", SECRET * 100_000])
    assert SECRET not in str(caught.value)


def test_a_worker_is_given_the_policy_and_no_name_of_this_process(kept, tmp_path):
    made = Policy.make({"email": "pseudonym"}, pseudonyms=tmp_path / "names.map")
    privatizer = PolicyPrivatizer(kept, made)
    before = privatizer.contents(TEXTS)
    sent = pickle.dumps(privatizer.share_memory(among=2))
    assert SECRET.encode() not in sent
    assert pickle.loads(sent).contents(TEXTS) == before


def test_the_front_door_takes_a_policy_and_says_so(bert_tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Policy.make({"email": "pseudonym", "ticket": {"eta": 9}}, patterns={"ticket": "tck"}, pseudonyms="names.map")
    for arguments in ({"eta": 5, "vocabulary": "bert-tiny", "ledger": "book"},):
        found = rapt.privatize(TEXTS, policy=made, **arguments)
        assert dump_manifest(found.manifest)["policy"] == {"email": "pseudonym", "ticket": {"eta": 9.0}}
        assert parse_manifest(dump_manifest(found.manifest)) == found.manifest
        page = found.statement().to_text()
        assert "email: pseudonyms; ticket: each token at eta=9" in page
        assert "what no recognizer found" in page
        assert found.statement().mechanism.eta == 9
    assert summarize_ledger(tmp_path / "book").texts == 3
    assert rapt.Policy.make({"email": "pseudonym"}, pseudonyms="names.map").names.kinds == {"Email"}
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


def test_a_policy_before_codes_is_covered_by_their_epsilon_and_the_statement_says_so(bert_tiny):
    found = rapt.privatize(TEXTS, privatizer=code_privatizer(bert_tiny), policy=policy(email="mask"), ledger=None)
    page = found.statement().to_text()
    assert "ε holds for them as they were before" in " ".join(page.split())
    assert "email: masked" in page


def test_a_ledger_counts_the_largest_eta_and_knows_a_text_by_what_is_left_of_it(kept, bert_tiny, tmp_path):
    inner = Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=5.0), NO_PLAIN_TOKENS)
    with open_ledger(tmp_path / "book") as ledger:

        def release(texts, rules):
            return rapt.privatize(texts, privatizer=inner, policy=rules, ledger=ledger, allow_weak=True).ids

        masked = policy(email="mask")
        first = release(["to a@b.cd today"], masked)
        assert release(["to another@example.org today"], masked) == first
        kinds = policy(ticket={"eta": 9})
        assert release(["tck film"], kinds) == release(["tck film"], kinds)
        # The same tokens, of which none is taken for a ticket, are another release.
        before = ledger.head()[0]
        release(["TCK film"], kinds)
        assert ledger.head()[0] == before + 1
    assert summarize_ledger(tmp_path / "book").spent["metric"].most_on_one_text == 9 + 9


def test_a_kind_at_which_nearly_all_stays_is_refused_unless_it_is_insisted_on(bert_tiny):
    inner = Privatizer(bert_tiny, make_mechanism("laplace", vocabulary=bert_tiny, eta=5.0), NO_PLAIN_TOKENS)
    with pytest.raises(MechanismError, match="the eta of a kind must change more than a tenth"):
        rapt.privatize(TEXTS, privatizer=inner, policy=policy(ticket={"eta": 900}), ledger=None)


def test_neither_text_of_a_pair_that_leaves_as_one_code_takes_the_other_with_it(bert_tiny):
    rules = Policy.make({"rest": "mask"}, patterns={"rest": "(?s)secret.*"})
    privatizer = PolicyPrivatizer(code_privatizer(bert_tiny), rules)
    first, second = split_pair(privatizer._apply([join_pair("a secret one", "a film")], first_position=0)[0].text)
    assert (first, second) == ("a [REST]", "a film")


@pytest.mark.parametrize(
    "stated", [{}, {"Email": "mask"}, {"email": "hide"}, {"email": {"eta": 1, "epsilon": 1}}, {"email": ["mask"]}]
)
def test_a_manifest_with_another_policy_is_refused(bert_tiny, stated):
    found = rapt.privatize(["x"], eta=5, vocabulary="bert-tiny", policy=policy(email="mask"), ledger=None)
    with pytest.raises(WireError, match="policy of a manifest"):
        parse_manifest(dump_manifest(found.manifest) | {"policy": stated})


def test_names_of_a_map_that_is_not_written_leave_nothing(kept, tmp_path, monkeypatch):
    made = Policy.make({"email": "pseudonym"}, pseudonyms=tmp_path / "names.map")

    def fail(names):
        raise LedgerError("a pseudonym map must be writable")

    monkeypatch.setattr(PseudonymMap, "save", fail)
    with pytest.raises(LedgerError, match="must be writable"):
        rapt.privatize(TEXTS, privatizer=kept, policy=made, ledger=tmp_path / "book", allow_weak=True)
    assert not (tmp_path / "book").exists()


class Stopped(Exception):
    """What ends a run in a test after its records were written."""


@pytest.mark.parametrize("edited", [{"placeholder": "[NUMBER]"}, {"pattern": "good"}, {"pattern": "film|actors"}])
def test_a_run_goes_on_under_the_policy_it_was_begun_with_and_under_no_other(kept, tmp_path, edited):
    """Masks of one token for one token: neither the manifest nor a record's token count tells the policies apart."""
    source, target = tmp_path / "a.csv", tmp_path / "out"
    source.write_text("text\n" + "good film of actors\n" * 30)
    note = tmp_path / "out.partial.policy"

    def run(placeholder="it", pattern="film", **options):
        masked = Policy.make({"ticket": {"mask": placeholder}}, patterns={"ticket": pattern})
        privatizer = PolicyPrivatizer(kept, masked)
        stream = insecure_stream(0)
        return privatize_corpus(source, target, privatizer=privatizer, stream=stream, label_column=None, **options)

    def stop(records, tokens):
        raise Stopped

    options = {"resume": True, "on_progress": stop}
    with pytest.raises(Stopped):
        run(**options)
    begun = (tmp_path / "out.partial").read_bytes()
    assert (note.stat().st_mode & 0o777, "film" in note.read_text()) == (0o600, False)
    changed = {"placeholder": "one" if "placeholder" in edited else "it", "pattern": edited.get("pattern", "film")}
    with pytest.raises(UsageError, match="under the policy that it was begun with"):
        run(**changed, resume=True)
    assert (tmp_path / "out.partial").read_bytes() == begun
    run(resume=True)
    assert target.is_file()
    assert not note.exists()
