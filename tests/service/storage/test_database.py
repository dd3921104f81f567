"""The database: what its URL may be, what it answers while it is away, and which answers are remembered."""

import threading

import pytest
from sqlalchemy import Engine, event, text

from rapt.errors import NotFoundError, UnavailableError, UsageError
from rapt.service.storage.callers import Caller
from rapt.service.storage.database import Database, Remembered, WouldWait, database_url, forbid_waiting, refuse_to_wait
from rapt.service.storage.key_rows import create_key, find_holder, has_keys, revoke_key, rotate_key
from rapt.service.storage.model_rows import delete_model, get_model
from rapt.service.storage.recovery import join_store, open_store
from rapt.service.storage.tenant_rows import Quotas, delete_tenant, get_tenant, set_quotas
from stored_material import OPERATOR, claim, imported, queue, tenant, upload


@pytest.fixture
def database(tmp_path):
    opened = Database(database_url(None, file=tmp_path / "rows.sqlite3"))
    yield opened
    opened.close()


@pytest.fixture
def held():
    """All cursors, held as a debugger or the garbage collector may hold them."""
    cursors = []

    def hold(_connection, cursor, *_rest):
        cursors.append(cursor)

    event.listen(Engine, "after_cursor_execute", hold)
    yield cursors
    event.remove(Engine, "after_cursor_execute", hold)


def test_a_log_that_was_emptied_leaves_a_connection_that_commits(database, held):
    """A service was watched under load by a list of all objects: requests were answered 500 until the list was gone."""
    for _ in range(3):
        database.forget_deleted()
        with database.write() as connection:
            connection.execute(text("UPDATE jobs SET status = status"))
    assert held


@pytest.mark.parametrize("setting", ["mysql://x@y/z", "postgresql://", "nonsense", "sqlite:///x.db"])
def test_a_url_that_is_none_of_postgresql_is_refused_and_not_repeated(setting, tmp_path):
    with pytest.raises(UsageError, match="database_url must be like") as error:
        database_url(setting, file=tmp_path / "x")
    assert "x@y" not in str(error.value)
    assert "x.db" not in str(error.value)


def test_a_server_that_does_not_answer_is_one_clear_line(tmp_path):
    with (
        pytest.raises(UnavailableError, match="database must be reachable") as error,
        open_store(tmp_path, url=f"postgresql://rapt:a-password@/postgres?host={tmp_path}"),
    ):
        pass
    assert "a-password" not in str(error.value)


def test_what_was_asked_once_needs_no_database_the_second_time(store):
    caller = tenant(store, "ada")
    _, value = create_key(store, tenant="ada", role="tenant", caller=caller, now=1)
    with forbid_waiting(), pytest.raises(WouldWait):
        find_holder(store, value, now=1)
    asked = find_holder(store, value, now=1)
    with forbid_waiting():
        assert find_holder(store, value, now=1) == asked is not None


def test_a_change_in_this_process_and_one_in_another_store_are_seen_at_once(store):
    caller = tenant(store, "ada")
    key, value = create_key(store, tenant="ada", role="tenant", caller=caller, now=1)
    _, other = create_key(store, tenant="ada", role="tenant", caller=caller, now=1)
    assert find_holder(store, value, now=2)
    assert find_holder(store, other, now=2)
    revoke_key(store, key.id, caller=OPERATOR, now=2)
    assert find_holder(store, value, now=2) is None
    assert get_tenant(store, "ada").quotas == Quotas()
    with join_store(store.directory.root) as elsewhere:
        set_quotas(elsewhere, "ada", Quotas(max_jobs=3), caller=OPERATOR)
        second = find_holder(elsewhere, other, now=2)
        revoke_key(elsewhere, second.key, caller=OPERATOR, now=3)
        assert get_tenant(store, "ada").quotas == Quotas(max_jobs=3)
        assert find_holder(store, other, now=3) is None


def test_a_remembered_key_ends_when_its_time_has_come(store):
    caller = tenant(store, "ada")
    key, value = create_key(store, tenant="ada", role="tenant", caller=caller, now=1)
    rotate_key(store, key.id, grace=10, caller=caller, now=100)
    assert [find_holder(store, value, now=now) is None for now in (109, 110, 109)] == [False, True, False]


def test_a_key_that_nobody_has_is_looked_up_every_time(store):
    assert find_holder(store, "rapt-guess", now=1) is None
    with forbid_waiting(), pytest.raises(WouldWait):
        find_holder(store, "rapt-guess", now=1)


def test_that_a_service_is_open_is_forgotten_with_the_first_key(store):
    assert not has_keys(store)
    with forbid_waiting():
        assert not has_keys(store)
    caller = tenant(store, "ada")
    create_key(store, tenant="ada", role="tenant", caller=caller, now=1)
    assert has_keys(store)


def test_what_one_tenant_writes_leaves_the_answers_of_others_remembered(store):
    """Every commit emptied them all: who waited for another tenant's flood of uploads looked its key and model up."""
    ada, bob = tenant(store, "ada"), tenant(store, "bob")
    _, value = create_key(store, tenant="bob", role="tenant", caller=bob, now=1)
    model = imported(store, bob)
    with join_store(store.directory.root) as worker:

        def ask():
            return find_holder(store, value, now=1), get_tenant(store, "bob"), get_model(store, model.id, tenant="bob")

        found = ask()
        file = upload(store, ada)
        delete_model(store, imported(worker, ada).id, caller=ada)
        key, _ = create_key(worker, tenant="ada", role="tenant", caller=ada, now=1)
        revoke_key(store, key.id, caller=ada, now=2)
        queue(store, ada, file)
        claim(worker)
        set_quotas(worker, "ada", Quotas(max_jobs=7), caller=OPERATOR)
        with forbid_waiting():
            assert ask() == found
            with pytest.raises(WouldWait):
                get_tenant(store, "ada")


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda store, key, model: revoke_key(store, key.id, caller=OPERATOR, now=2),
        lambda store, key, model: delete_tenant(store, "ada", caller=OPERATOR, now=2),
        lambda store, key, model: delete_model(store, model.id, caller=Caller("ada", key.id, "tenant")),
        lambda store, key, model: set_quotas(store, "ada", Quotas(tokens_per_minute=1), caller=OPERATOR),
        lambda store, key, model: rotate_key(store, key.id, grace=5, caller=OPERATOR, now=2),
    ],
)
def test_whatever_changes_is_seen_by_the_next_who_asks(store, change, elsewhere):
    caller = tenant(store, "ada")
    key, value = create_key(store, tenant="ada", role="tenant", caller=caller, now=1)
    model = imported(store, caller)

    def ask(where):
        found = [find_holder(where, value, now=10)]
        for look_up in (lambda: get_tenant(where, "ada"), lambda: get_model(where, model.id, tenant="ada")):
            try:
                found.append(look_up())
            except NotFoundError:
                found.append(None)
        return found

    with join_store(store.directory.root) as other:
        before = ask(store)
        change(other if elsewhere else store, key, model)
        after = ask(store)
    assert after != before
    with join_store(store.directory.root) as fresh:
        assert ask(fresh) == after


class Changes:
    """A database that says what was changed, by number."""

    def __init__(self):
        self.made = []

    def make(self, scope):
        self.made.append(scope)

    def version(self):
        return len(self.made)

    def after(self, number):
        return [(at, scope) for at, scope in enumerate(self.made, start=1) if at > number]


def test_an_answer_that_was_overtaken_by_a_change_is_not_kept():
    changes = Changes()
    remembered = Remembered(changes.version, changes.after)

    def ask(look_up, question="q"):
        return remembered.ask(question, look_up, scope=lambda _: "models ada")

    def look_up():
        changes.make("models ada")  # somebody commits right after
        ask(lambda: "another", question="other")  # and somebody else has seen that by the time it is kept
        return "of before"

    assert ask(look_up) == "of before"
    assert ask(lambda: "of after") == "of after"
    changes.make("models bob")
    assert ask(lambda: "again") == "of after"
    changes.make("models ada")
    assert ask(lambda: "again") == "again"


def test_what_is_made_of_a_whole_table_is_forgotten_with_any_of_its_rows():
    changes = Changes()
    remembered = Remembered(changes.version, changes.after)

    def ask(answer):
        return remembered.ask("q", lambda: answer, scope=lambda _: "api_keys")

    assert [ask(1), ask(2)] == [1, 1]
    changes.make("models ada")
    assert ask(3) == 1
    changes.make("api_keys ada")
    assert ask(4) == 4


@pytest.mark.parametrize(("version", "changes"), [(lambda: None, lambda _: []), (lambda: 1, lambda _: None)])
def test_nothing_is_kept_where_nobody_knows_what_changed(version, changes):
    remembered = Remembered(version, changes)
    assert [remembered.ask("q", lambda turn=turn: turn, scope=lambda _: "a b") for turn in range(3)] == [0, 1, 2]


def test_no_more_is_kept_than_is_bounded():
    changes = Changes()
    remembered = Remembered(changes.version, changes.after, most=3)
    for question in range(10):
        remembered.ask(question, lambda: "answer", scope=lambda answer: "models ada")
        changes.make(f"tenants {question}")
        assert len(remembered) <= 3
    late = remembered.ask("late", lambda: changes.make("models ada") or "of before", scope=lambda _: "models ada")
    assert late == "of before"
    assert remembered.ask("late", lambda: "of after", scope=lambda _: "models ada") == "of after"


def test_only_the_thread_that_must_not_wait_is_kept_from_it():
    found = []
    with forbid_waiting():
        thread = threading.Thread(target=lambda: found.append(refuse_to_wait()))
        thread.start()
        thread.join()
        with pytest.raises(WouldWait):
            refuse_to_wait()
    refuse_to_wait()
    assert found == [None]
