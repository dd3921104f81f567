import pytest

import rapt
from rapt.errors import CorpusError, MechanismError, UsageError
from rapt.local.policy.policy import Policy
from rapt.local.policy.recognizers import Entity

pytest.importorskip("regex")
pytest.importorskip("cryptography")


def test_a_policy_masks_what_it_finds_and_leaves_the_rest_as_it_is():
    policy = Policy.make({"email": "mask", "phone": {"mask": "a number"}})
    assert policy.rewrite(["Ann <ann@example.org>, +44 20 7946 0958.", "nothing"]) == [
        "Ann <[EMAIL]>, a number.",
        "nothing",
    ]


def test_a_policy_of_a_file_gives_pseudonyms_that_another_run_leads_back(file, tmp_path):
    path = file(
        "policy.toml",
        "[kinds]\nclient = 'pseudonym'\nemail = 'mask'\n[patterns]\nclient = ['Ann Lee', 'Bob \\w+']\n"
        "[pseudonyms]\nfile = 'names.map'\n",
    )
    policy = Policy.read(path)
    (text,) = policy.rewrite(["Ann Lee and Bob Ray, Ann Lee"])
    policy.save()
    assert "Ann" not in text
    assert "Bob" not in text
    assert text.count(text[:17]) == 2
    assert Policy.read(path).restorer().restore(text) == "Ann Lee and Bob Ray, Ann Lee"
    assert {item.name for item in tmp_path.iterdir()} >= {"names.map", "names.map.key"}
    assert repr(policy) == "Policy(client=pseudonym, email=mask)"


def test_entities_that_overlap_become_one_under_the_strictest_treatment():
    policy = Policy.make(
        {"left": {"eta": 5}, "right": {"eta": 2}, "inner": "mask", "email": "mask", "url": "mask"},
        patterns={"left": "abc", "right": "cde", "inner": "de"},
    )
    assert policy.apply("_abcde_").text == "_[INNER]_"
    assert policy.apply("_abc_").marked == (Entity(1, 4, "left"),)
    two = Policy.make({"left": {"eta": 5}, "right": {"eta": 2}}, patterns={"left": "abc", "right": "cde"})
    assert two.apply("_abcde_").marked == (Entity(1, 6, "right"),)
    assert policy.apply("https://example.org/a@example.org").text == "[URL]"


def test_what_was_found_is_known_by_its_place_in_both_texts():
    policy = Policy.make({"email": "mask", "ticket": {"eta": 1}}, patterns={"ticket": "TCK"})
    applied = policy.apply("x a@example.org TCK y")
    assert applied.text == "x [EMAIL] TCK y"
    assert applied.found == (Entity(2, 15, "email"), Entity(16, 19, "ticket"))
    assert applied.ends == (9, 13)
    assert applied.marked == (Entity(10, 13, "ticket"),)
    assert "TCK" not in repr(applied)


def test_words_that_leave_have_no_strength_of_their_own():
    policy = Policy.make({"email": {"eta": 5}, "url": {"epsilon": 1}})
    with pytest.raises(UsageError, match="got email, url with an eta or epsilon of its own"):
        policy.rewrite(["x"])


def test_a_text_that_a_policy_cannot_read_is_named_by_its_position():
    with pytest.raises(CorpusError, match="record 2: a text under a policy must have at most"):
        Policy.make({"email": "mask"}).rewrite(["x", "a" * 1_000_001])


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("[kinds]\nemail = 'mask'\nshade = 'mask'", "got 'shade'"),
        ("[kinds]\nemail = 'mask'\n[extra]\na = 1", "got 'extra'"),
        ("[kinds]\nemail = 'hide'", "kind='email'"),
        ("[kinds]\nemail = {mask = 'x', eta = 1}", "kind='email'"),
        ("[kinds]\nemail = {mask = ''}", "a placeholder must be 1 to 64"),
        ('[kinds]\nemail = {mask = "a\\nb"}', "a placeholder must be 1 to 64"),
        ("[kinds]\nemail = {eta = true}", "kind='email'"),
        ("[kinds]", "1 to 64 kinds"),
        ("email = 'mask'", "got 'email'"),
        ("[kinds]\nemail = 'mask'\n[patterns]\nticket = 'x'", "got 'ticket'; say what becomes of it"),
        ("[kinds]\nTicket = 'mask'\n[patterns]\nTicket = 'x'", "got 'Ticket'; rename it"),
        ("[kinds]\nticket = 'mask'\n[patterns]\nticket = 3", "a pattern must be a text"),
        ("[kinds]\nemail = 'pseudonym'", "pseudonyms must have a map"),
        ("[kinds]\nemail = 'mask'\n[pseudonyms]\nfile = 'a'", "must have a kind that has them"),
        ("[kinds]\nemail = 'pseudonym'\n[pseudonyms]\nfile = 'a'\nkeys = 'b'", "got 'keys'"),
        ("[kinds]\nemail = 'pseudonym'\n[pseudonyms]\nkey = 'b'", "must have file"),
        ("[kinds\nemail = 'secret words'", "got a fault in line 1"),
        ("#" * 70_000, "at most 65,536 bytes"),
        ("kinds = 3", "1 to 64 kinds"),
    ],
)
def test_a_policy_with_what_it_may_not_have_is_refused_in_one_line(file, content, rule):
    with pytest.raises(UsageError, match=rule) as caught:
        Policy.read(file("policy.toml", content))
    assert "\n" not in str(caught.value)
    assert "secret words" not in str(caught.value)


@pytest.mark.parametrize("value", [{"eta": -1}, {"epsilon": 0}, {"eta": float("nan")}, {"epsilon": 1000}])
def test_a_strength_outside_of_its_domain_is_refused(value):
    with pytest.raises(MechanismError):
        Policy.make({"email": value})


def test_a_policy_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a policy must be readable"):
        rapt.Policy.read(tmp_path / "none.toml")


def test_names_without_their_recognizer_are_refused(monkeypatch):
    monkeypatch.setattr("rapt.local.policy.recognizers.SPACY_MODEL", "no_such_model")
    with pytest.raises(UsageError, match="a policy with person needs spaCy"):
        Policy.make({"person": "mask"})
