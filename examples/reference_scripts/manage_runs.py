"""List, filter and cancel runs, and look at them as a data frame."""

from datetime import datetime, timedelta

import fm

MODEL = "./my-model"
TRAIN_DATA = "./chats.jsonl"

first = fm.create(MODEL, TRAIN_DATA, "main.support.first", experiment_path="/Shared/manage", learning_rate="1e-3")
second = fm.create(MODEL, TRAIN_DATA, "main.support.second", experiment_path="/Shared/manage", learning_rate="1e-3")

recent = fm.list(after=datetime.now() - timedelta(days=1), limit=50)
print(recent.to_pandas()[["name", "status", "created_at"]])

unfinished = fm.list(statuses=[fm.Status.QUEUED, "RUNNING", "STARTING"], experiment_id=first.experiment_id)
print([run.name for run in unfinished])

mine = fm.list([first, second.name], user_emails=[first.created_by], include_details=True)
assert {run.name for run in mine} == {first.name, second.name}

count = fm.cancel(second)
print("cancelled", count)
count += fm.cancel(experiment_id=first.experiment_id)
assert 0 <= count <= 2

for run in fm.list(before="2020-01-01"):
    raise AssertionError(run)
