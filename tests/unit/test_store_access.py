"""Tokens, teams and grants in the store, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import pickle
import re
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, select

from fm.clock import SimulatedClock
from fm.errors import Conflict, Forbidden, NotFound, RequestError, Unauthorised
from fm.store.access import digest_of
from fm.store.admin import Administration
from fm.store.schema import datasets, metadata, models, tokens
from fm.store.store import RunStore
from fm.types import Principal
from support.stores import moment

ROOT = Principal(user="root")


@pytest.fixture
def admin(store: RunStore) -> Administration:
    admin = store.administration(ROOT)
    admin.add_team("red")
    admin.add_team("blue")
    admin.add_user("red", "ada@example.org")
    return admin


def token_of(admin: Administration, **more: object) -> str:
    return admin.make_token("red", "ada@example.org", **more).text  # type: ignore[arg-type]


def test_a_token_stands_for_its_team_user_and_scopes(store: RunStore, admin: Administration) -> None:
    text = token_of(admin, scopes=("read",))
    assert re.fullmatch(r"ftc_[0-9a-z]{10}_[0-9a-f]{64}", text)
    who = store.access.authenticate(text, address="192.0.2.7")
    assert (who.team, who.user, who.scopes) == ("red", "ada@example.org", {"read"})
    assert (who.token_id, who.address) == (text.split("_")[1], "192.0.2.7")


def test_a_local_principal_has_every_scope() -> None:
    assert Principal(user="me").scopes == {"read", "submit", "admin"}


def test_what_is_no_token_is_refused(store: RunStore) -> None:
    for text in ("", "x", "Bearer", "ftc_", "ftc_0000000000_" + "0" * 64, "\0", "ü" * 90, "\ud800", "a" * 10**6):
        with pytest.raises(Unauthorised, match="not known"):
            store.access.authenticate(text)


def test_a_token_with_one_character_changed_is_refused(store: RunStore, admin: Administration) -> None:
    text = token_of(admin)
    for at in range(len(text)):
        changed = text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :]
        with pytest.raises(Unauthorised, match="not known"):
            store.access.authenticate(changed)


def test_a_token_expires(store: RunStore, admin: Administration, clock: SimulatedClock) -> None:
    text, lasting = token_of(admin, days=1), token_of(admin, days=None)
    clock.sleep(86399)
    store.access.authenticate(text)
    clock.sleep(1)
    with pytest.raises(Unauthorised, match="expired on 2027-01-16"):
        store.access.authenticate(text)
    clock.sleep(10 * 365 * 86400)
    store.access.authenticate(lasting)


def test_a_revoked_token_ends_at_once_and_no_other_does(store: RunStore, admin: Administration) -> None:
    one, two = token_of(admin), token_of(admin)
    for _ in range(2):
        admin.revoke_token(one.split("_")[1])
    with pytest.raises(Unauthorised, match="revoked"):
        store.access.authenticate(one)
    store.access.authenticate(two)
    with pytest.raises(NotFound):
        admin.revoke_token("nope")


def test_the_tokens_of_a_user_who_is_removed_end(store: RunStore, admin: Administration) -> None:
    text = token_of(admin)
    admin.remove_user("red", "ada@example.org")
    with pytest.raises(Unauthorised, match="revoked"):
        store.access.authenticate(text)
    with pytest.raises(NotFound):
        token_of(admin)
    admin.add_user("red", "ada@example.org")
    with pytest.raises(Unauthorised, match="revoked"):
        store.access.authenticate(text)


def test_a_scope_that_the_token_lacks_is_refused_and_noted(store: RunStore, admin: Administration) -> None:
    who = store.access.authenticate(token_of(admin, scopes=("read",)), address="192.0.2.7")
    store.access.require(who, "read", "runs.list")
    with pytest.raises(Forbidden, match="scope submit; this one has read"):
        store.access.require(who, "submit", "run.create")
    [entry] = admin.audit(1)
    assert (entry.action, entry.user, entry.token, entry.address) == (
        "access.refused", "ada@example.org", who.token_id, "192.0.2.7",
    )  # fmt: skip
    assert entry.detail == {"reason": "run.create needs submit"}


def test_refusals_and_uses_of_one_token_are_noted_once_a_minute(
    store: RunStore, admin: Administration, clock: SimulatedClock
) -> None:
    text = token_of(admin)
    admin.revoke_token(text.split("_")[1])
    before = admin.verify_audit().entries
    for _ in range(50):
        with pytest.raises(Unauthorised):
            store.access.authenticate(text)
    assert admin.verify_audit().entries == before + 1
    clock.sleep(61)
    with pytest.raises(Unauthorised):
        store.access.authenticate(text)
    assert admin.verify_audit().entries == before + 2


def test_the_last_use_is_kept(store: RunStore, admin: Administration, clock: SimulatedClock) -> None:
    text = token_of(admin)
    assert admin.tokens()[0].last_used_at is None
    clock.sleep(5)
    store.access.authenticate(text)
    assert admin.tokens("red")[0].last_used_at == moment(5)
    assert admin.tokens("blue") == []


def test_a_token_is_used_by_many_at_once(store: RunStore, admin: Administration, clock: SimulatedClock) -> None:
    text = token_of(admin)

    def use(_: int) -> str:
        clock.sleep(7)
        return store.access.authenticate(text).token_id

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(64))) == {text.split("_")[1]}


def test_a_token_revoked_while_many_use_it_is_refused_to_all_from_then_on(
    store: RunStore, admin: Administration
) -> None:
    text = token_of(admin)

    def use(number: int) -> bool:
        if number == 10:
            admin.revoke_token(text.split("_")[1])
        try:
            store.access.authenticate(text)
        except Unauthorised:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(40)))
    assert use(0) is False


def test_the_store_holds_digests_and_nothing_that_a_token_could_be_made_from(
    store: RunStore, admin: Administration
) -> None:
    text = token_of(admin)
    store.access.authenticate(text)
    secret = text.rsplit("_", 1)[1]
    with store.database.read() as connection:
        assert connection.execute(select(tokens.c.digest)).scalar() == digest_of(text)
        for table in metadata.sorted_tables:
            assert secret not in repr(connection.execute(select(table)).all()), table.name


def test_a_canary_token_is_in_no_repr_error_pickle_or_traceback(
    store: RunStore, admin: Administration, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    made = admin.make_token("red", "ada@example.org", scopes=("read",))
    secret = made.text.rsplit("_", 1)[1]
    who = store.access.authenticate(made.text)
    seen = [repr(made), str(made), repr(who), who.model_dump_json(), repr(admin.tokens()), repr(admin.audit(100))]
    admin.revoke_token(made.id)
    for token in (made.text, made.text.replace("ftc_", "ftc-"), made.text + "0"):
        with pytest.raises(Unauthorised) as error:
            store.access.authenticate(token)
        seen += ["".join(traceback.format_exception(error.value)), repr(error.value)]
        seen.append(repr(pickle.loads(pickle.dumps(error.value)).__dict__))
    assert not [text for text in [*seen, caplog.text] if secret in text]


def test_teams_and_users_are_made_once_and_by_names_that_are_safe(admin: Administration) -> None:
    with pytest.raises(Conflict):
        admin.add_team("red")
    with pytest.raises(Conflict):
        admin.add_user("red", "ada@example.org")
    with pytest.raises(NotFound):
        admin.add_user("green", "bob")
    for name in ("", "a/b", "../x", "a b", "a\0", "-x", "a" * 101, "a\x1b[31m"):
        with pytest.raises(RequestError):
            admin.add_team(name)
        with pytest.raises(RequestError):
            admin.add_user("red", name)
    assert [team.name for team in admin.teams()] == ["blue", "local", "red"]
    assert [(user.team, user.name) for user in admin.users()] == [("red", "ada@example.org")]


def test_limits_of_a_team_are_set_one_by_one(admin: Administration) -> None:
    admin.limit_team("red", max_running=2)
    admin.limit_team("red", max_disk=500 * 10**9)
    [red] = [team for team in admin.teams() if team.name == "red"]
    assert (red.max_running, red.max_disk) == (2, 500 * 10**9)
    admin.limit_team("red", max_running=None)
    assert admin.teams()[-1].max_running is None
    with pytest.raises(NotFound):
        admin.limit_team("green", max_running=1)


@pytest.mark.parametrize("scopes", [(), ("write",), ("read", "root")])
def test_a_token_with_no_scope_or_an_unknown_one_is_not_made(admin: Administration, scopes: tuple[str, ...]) -> None:
    with pytest.raises(RequestError):
        token_of(admin, scopes=scopes)


def test_what_a_team_has_not_can_not_be_granted(store: RunStore, admin: Administration) -> None:
    for kind, name in (("model", "a.b.c"), ("data", "0" * 64)):
        with pytest.raises(NotFound):
            admin.grant("red", kind, name, "blue")  # type: ignore[arg-type]
    with store.database.write() as connection:
        for team in ("red", "local"):
            values = {"team": team, "created_at": 0.0}
            connection.execute(insert(models).values(name="a.b.c", version=1, record="{}", **values))
            row = {"digest": "0" * 64, "name": "d.jsonl", "owner": "ada", "bytes": 1}
            connection.execute(insert(datasets).values(**row, **values))
    admin.grant("red", "model", "a.b.c", "blue")
    admin.grant("red", "data", "0" * 64, "blue")
    for call in (
        lambda: admin.grant("red", "model", "a.b.c", "blue"),
        lambda: admin.grant("red", "model", "a.b.c", "red"),
        lambda: admin.grant("local", "model", "a.b.c", "blue"),
    ):
        with pytest.raises(Conflict):
            call()
    with pytest.raises(NotFound):
        admin.grant("red", "model", "a.b.c", "green")
    admin.grant("local", "data", "0" * 64, "blue")
    assert len(admin.grants()) == 3
    admin.revoke_grant("red", "model", "a.b.c", "blue")
    admin.grant("local", "model", "a.b.c", "blue")
    with pytest.raises(NotFound):
        admin.revoke_grant("red", "model", "a.b.c", "blue")


def test_every_order_is_in_the_audit_log_with_who_gave_it(admin: Administration) -> None:
    token_of(admin)
    admin.limit_team("red", max_running=2)
    admin.remove_user("red", "ada@example.org")
    entries = admin.audit(100)
    assert [entry.action for entry in reversed(entries)] == [
        "team.add", "team.add", "user.add", "token.make", "team.limit", "user.remove",
    ]  # fmt: skip
    assert {entry.user for entry in entries} == {"root"}
    assert [entry.seq for entry in admin.audit(2)] == [6, 5]


def test_an_order_that_fails_is_not_in_the_audit_log(admin: Administration) -> None:
    before = admin.verify_audit()
    with pytest.raises(Conflict):
        admin.add_team("red")
    assert admin.verify_audit() == before
