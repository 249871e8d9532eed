"""Fine-tune on chats, and watch the run: as the reference's first notebook does it."""

import time

import fm

MODEL = "./my-model"
TRAIN_DATA = "./chats.jsonl"
REGISTER_TO = "main.support"
POLL_SECONDS = 5

run = fm.create(
    model=MODEL,
    train_data_path=TRAIN_DATA,
    register_to=REGISTER_TO,
    task_type="CHAT_COMPLETION",
    training_duration="3ep",
    learning_rate="1e-3",
)
print(run.name, run.status)

while not run.status.is_terminal():
    time.sleep(POLL_SECONDS)
    run = fm.get(run)
    print(run.status, run.run_progress, run.formatted_eta)

for event in run.get_events():
    print(event.time, event.type, event.message)

assert run.status == fm.Status.COMPLETED, run.reason
