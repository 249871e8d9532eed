"""What is not shown of a run on data that is marked sensitive: no samples in events, nothing to trackers elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select, update

from fm.backends.base import NewRun
from fm.errors import RequestError
from fm.lifecycle import EventType
from fm.store import access
from fm.store.schema import datasets, events, runs
from fm.types import DataRef, Event, RunRecord

_HERE = "tensorboard"
"""The tracker that writes nowhere but to the run's folder."""


def refuse_to_show(connection: Connection, team: str, new: NewRun) -> None:
    """Refuses a run that would carry pieces of a sensitive data set into events, or out to others.

    Raises:
        RequestError: it would; says by which parameter.
    """
    request = new.request
    wanted = {"eval_prompts": request.eval_prompts, "trackers": tuple(set(request.trackers) - {_HERE})}
    given = [field for field, value in wanted.items() if value]
    if given and access.are_sensitive(connection, team, digests(new.train_data, new.eval_data)):
        raise RequestError(
            f"the data set is marked sensitive, so {' and '.join(given)} can't be used", field=given[0],
            hint=f'leave it out; of the trackers, "{_HERE}" stays in the run\'s folder and is allowed',
        )


def withhold(connection: Connection, run_id: str, found: Sequence[Event]) -> list[Event]:
    """`found` without the samples of a run whose data is marked sensitive, be it since they were taken."""
    if not any(event.type is EventType.SAMPLES_GENERATED for event in found):
        return list(found)
    record = connection.execute(select(runs.c.record).where(runs.c.id == run_id)).scalar_one()
    run = RunRecord.model_validate_json(record)
    if not access.are_sensitive(connection, run.team, digests(run.train_data, run.eval_data)):
        return list(found)
    return [_without_samples(event) for event in found]


def remove_samples(connection: Connection, team: str, digest: str) -> None:
    """Takes the samples out of the stored events of the team's runs on that data set, unless it is also the team's."""
    own = select(datasets.c.digest).where(datasets.c.team == team, datasets.c.digest == digest)
    if connection.execute(own).first():
        return
    for run_id, record in connection.execute(select(runs.c.id, runs.c.record).where(runs.c.team == team)).all():
        run = RunRecord.model_validate_json(record)
        if digest not in digests(run.train_data, run.eval_data):
            continue
        stored_events = select(events.c.seq, events.c.record).where(events.c.run_id == run_id)
        for seq, stored in connection.execute(stored_events).all():
            if (event := Event.model_validate_json(stored)).type is EventType.SAMPLES_GENERATED:
                at = update(events).where(events.c.run_id == run_id, events.c.seq == seq)
                connection.execute(at.values(record=_without_samples(event).model_dump_json()))


def digests(*data: DataRef | None) -> list[str]:
    """The digests of those that there are."""
    return [ref.digest for ref in data if ref]


def _without_samples(event: Event) -> Event:
    if event.type is not EventType.SAMPLES_GENERATED:
        return event
    data = {key: value for key, value in event.data.items() if key != "samples"}
    return event.model_copy(update={"data": data, "message": f"{event.message}, withheld: the data is sensitive"})
