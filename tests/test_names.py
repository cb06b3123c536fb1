"""Names are one thing's alone, whatever comes in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from middleware_api.contract import DatasetState
from middleware_api.embedded.database import Database
from middleware_api.embedded.records import SqliteRecords
from middleware_api.errors import Conflict
from middleware_api.records import Dataset
from middleware_api.services.checkpoints import FINDABLE_SECONDS
from middleware_api.services.names import taking_name
from tests.world import ME, World


class Clock:
    """Epoch seconds that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def records(tmp_path: Path, clock: Clock) -> Iterator[SqliteRecords]:
    database = Database(tmp_path / "records.sqlite3")
    yield SqliteRecords(database, clock)
    database.close()


def dataset(name: str) -> Dataset:
    return Dataset(
        id=name, owner="me", created_at=1.0, name="dogs", state=DatasetState.INITIAL, files=()
    )


def take(records: SqliteRecords, record: Dataset) -> None:
    with taking_name(records, "dogs", record, lambda: Conflict("taken")):
        records.add(record)


def test_of_two_at_once_one_gets_the_name(records: SqliteRecords) -> None:
    first = taking_name(records, "dogs", dataset("first"), lambda: Conflict("taken"))
    with first:
        with pytest.raises(Conflict, match="at the moment"):
            take(records, dataset("second"))
        records.add(dataset("first"))
    with pytest.raises(Conflict, match="taken"):
        take(records, dataset("second"))
    assert records.lookup("dogs") == "first"


def test_a_name_whose_taker_died_is_free_after_a_minute(
    records: SqliteRecords, clock: Clock
) -> None:
    records.claim("taking/dogs", "dead", 60)
    records.claim("dogs", "dead")
    with pytest.raises(Conflict, match="at the moment"):
        take(records, dataset("second"))
    clock.now += 60
    take(records, dataset("second"))
    assert records.lookup("dogs") == "second"


def test_a_checkpoint_whose_name_was_not_bound_is_found_a_minute_later(tmp_path: Path) -> None:
    world = World(tmp_path)
    with (
        mock.patch.object(world.records, "bind", side_effect=OSError("pulled the plug")),
        pytest.raises(OSError, match="plug"),
    ):
        world.checkpoint()
    world.deploy("a")
    world.pass_time(FINDABLE_SECONDS + 1)
    assert world.submit().checkpoints[0].name == "m.safetensors"
    (checkpoint,) = world.services.checkpoints.page([], [], 10, None).items
    assert checkpoint.check_at is None
    world.services.checkpoints.delete(world.services.checkpoints.get_own(ME, checkpoint.id))
    world.database.close()
