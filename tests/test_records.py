"""What any adapter of `ports.Records` must do, and what DynamoDB is asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from middleware_api.aws.records import DynamoRecords
from middleware_api.contract import CheckpointState, CheckpointType, DatasetState
from middleware_api.embedded.database import MIGRATIONS, Database
from middleware_api.embedded.records import SqliteRecords
from middleware_api.errors import Conflict, InvalidRequest, NotFound, StaleRecord, TooLarge
from middleware_api.ports import Records
from middleware_api.records import Checkpoint, Dataset, DatasetFile
from tests.aws import TABLE, aws


class Clock:
    """Epoch seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["embedded", "aws"])
def records(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Records]:
    if request.param == "embedded":
        database = Database(tmp_path / "records.sqlite3")
        yield SqliteRecords(database, clock)
        database.close()
    else:
        with aws() as account:
            yield DynamoRecords(account.client("dynamodb"), TABLE, clock)


def checkpoint(number: int, **changes: object) -> Checkpoint:
    base = Checkpoint(
        id=f"id-{number:03}",
        owner="somebody",
        created_at=1000.0 + number // 2,  # pairs of the same age: the id decides
        type=CheckpointType.LORA if number % 3 else CheckpointType.VAE,
        state=CheckpointState.ACTIVE if number % 2 else CheckpointState.INITIAL,
        files=(),
        params={"number": number},
    )
    return replace(base, **changes)


def test_a_record_comes_back_as_it_was(records: Records) -> None:
    records.add(checkpoint(1))
    assert records.get(Checkpoint, "id-001") == checkpoint(1)
    with pytest.raises(Conflict):
        records.add(checkpoint(1))
    with pytest.raises(NotFound, match="id-002"):
        records.get(Checkpoint, "id-002")


def test_of_two_writers_one_is_told(records: Records) -> None:
    records.add(checkpoint(1))
    first = second = records.get(Checkpoint, "id-001")
    after = records.update(replace(first, error="first"))
    assert records.get(Checkpoint, "id-001") == after
    with pytest.raises(StaleRecord):
        records.update(replace(second, error="second"))
    assert records.get(Checkpoint, "id-001").error == "first"


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_pages_have_every_record_once_newest_first(records: Records, limit: int) -> None:
    for number in range(20):
        records.add(checkpoint(number))
    states = [CheckpointState.ACTIVE.value, CheckpointState.INITIAL.value]
    labels = [CheckpointType.LORA.value, CheckpointType.VAE.value]
    for filters in (
        {},
        {"owner": "somebody"},
        {"owner": "somebody", "states": states},
        {"owner": "somebody", "labels": labels},
        {"owner": "somebody", "states": states, "labels": labels},
        {"states": states},
        {"labels": labels},
        {"states": states, "labels": labels},
    ):
        seen: list[str] = []
        cursor = None
        while True:
            page = records.page(Checkpoint, limit=limit, cursor=cursor, **filters)
            seen += [item.id for item in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == [f"id-{n:03}" for n in reversed(range(20))], filters


def test_filters_are_ors_within_and_ands_between(records: Records) -> None:
    for number in range(12):
        records.add(checkpoint(number))
    page = records.page(Checkpoint, states=["Active"], labels=["VAE"], limit=50)
    assert [item.params["number"] for item in page.items] == [9, 3]
    assert records.page(Checkpoint, states=["Fail"], limit=50).items == []
    for nobody in ({}, {"states": ["Active"]}, {"labels": ["VAE"]}):
        assert records.page(Checkpoint, owner="nobody", limit=50, **nobody).items == []


def test_an_owners_list_has_nothing_of_those_whom_the_owner_acts_for(records: Records) -> None:
    owners = ("admin", "admin/anna", "admin/anna.b")
    for number, owner in enumerate(owners * 2):
        records.add(checkpoint(number * 6 + 1, owner=owner))
    for number, owner in enumerate(owners):
        for filters in ({}, {"states": ["Active"]}, {"states": ["Active"], "labels": ["Lora"]}):
            page = records.page(Checkpoint, owner=owner, limit=5, **filters)
            expected = [f"id-{n * 6 + 1:03}" for n in (number + 3, number)]
            assert [item.id for item in page.items] == expected


def test_a_removed_record_is_gone_unless_somebody_changed_it(records: Records) -> None:
    records.add(checkpoint(1))
    read = records.get(Checkpoint, "id-001")
    after = records.update(replace(read, error="changed"))
    with pytest.raises(StaleRecord):
        records.remove(read)
    records.remove(after)
    with pytest.raises(NotFound):
        records.get(Checkpoint, "id-001")
    assert records.page(Checkpoint, limit=5).items == []


def test_a_made_up_cursor_is_refused(records: Records) -> None:
    for cursor in ("nonsense", "e30=", "WzFd"):
        with pytest.raises(InvalidRequest):
            records.page(Checkpoint, limit=1, cursor=cursor)


def test_only_what_is_due_is_due_most_overdue_first(records: Records) -> None:
    records.add(checkpoint(1, check_at=30.0))
    records.add(checkpoint(2, check_at=10.0))
    records.add(checkpoint(3, check_at=None))
    records.add(checkpoint(4, check_at=31.0))
    assert [r.id for r in records.due(Checkpoint, 30.0, 10)] == ["id-002", "id-001"]
    assert [r.id for r in records.due(Checkpoint, 30.0, 1)] == ["id-002"]


def test_a_key_belongs_to_who_came_first_until_it_is_released(records: Records) -> None:
    assert records.lookup("name") is None
    assert records.claim("name", "a") == "a"
    assert records.claim("name", "b") == "a"
    records.release("name", "b")
    assert records.lookup("name") == "a"
    records.release("name", "a")
    assert records.claim("name", "b") == "b"
    records.bind("name", "c")
    assert records.lookup("name") == "c"


def test_a_claim_with_an_end_is_free_again_after_it(records: Records, clock: Clock) -> None:
    assert records.claim("name", "a", 60) == "a"
    clock.now += 59
    assert records.claim("name", "b", 60) == "a"
    clock.now += 1
    assert records.lookup("name") is None
    assert records.claim("name", "b", 60) == "b"


def test_a_counter_stops_at_its_limit_and_is_forgotten_after_its_time(
    records: Records, clock: Clock
) -> None:
    assert [records.count("quota", 3, 60) for _ in range(5)] == [True, True, True, False, False]
    assert records.count("other", 1, 60)
    clock.now += 60
    assert records.count("quota", 3, 60)


def dataset(files: int) -> Dataset:
    return Dataset(
        id="many",
        owner="somebody",
        created_at=1.0,
        name="many",
        state=DatasetState.INITIAL,
        files=tuple(
            DatasetFile(name=f"picture-{n}.png", key=f"dataset/many/picture-{n}.png", type="image")
            for n in range(files)
        ),
    )


def test_a_long_list_of_files_is_remembered(records: Records) -> None:
    """DynamoDB's items have at most 400 KB."""
    records.add(dataset(10_000))
    assert records.get(Dataset, "many") == dataset(10_000)
    assert records.page(Dataset, limit=5).items == [dataset(10_000)]


def test_what_an_item_cannot_hold_is_refused_in_words() -> None:
    with aws() as account:
        records = DynamoRecords(account.client("dynamodb"), TABLE, Clock())
        with pytest.raises(TooLarge, match="too many files"):
            records.add(dataset(200_000))


def test_a_page_is_one_query_with_a_limit() -> None:
    """However many are stored: emulators' own time grows with them, DynamoDB's does not."""
    with aws() as account:
        records = DynamoRecords(account.client("dynamodb"), TABLE, Clock())
        for number in range(60):
            records.add(checkpoint(number))
        for filters in ({}, {"owner": "somebody"}, {"states": ["Active"], "labels": ["Lora"]}):
            with account.counted() as calls:
                assert len(records.page(Checkpoint, limit=10, **filters).items) == 10
            assert calls == ["Query"]
            assert account.calls[-1][1]["Limit"] == 11
            assert "FilterExpression" not in account.calls[-1][1]


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite3"
    database = Database(path)
    with database.transaction() as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(RuntimeError, match="newer version"):
        Database(path)
