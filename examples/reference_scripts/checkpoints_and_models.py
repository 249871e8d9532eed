"""See which models there are, take a run's last checkpoint, and train on from its weights."""

import fm

MODEL = "./my-model"
TRAIN_DATA = "./chats.jsonl"
REGISTER_TO = "main.support.longer"
WEIGHTS = "./my-model"

for model in fm.get_models():
    print(model.name, model.display_name, model.max_context_length)

run = fm.create(
    model=MODEL, train_data_path=TRAIN_DATA, register_to=REGISTER_TO, training_duration="2ep", learning_rate="1e-3"
)
for event in run.get_events():
    print(event)

print(fm.get_events(run, follow=False)[0].type)
for _ in fm.get_events(run, follow=True):
    pass

checkpoints = fm.get_checkpoints(run)
print(checkpoints[-1])

longer = fm.create(
    model=MODEL,
    train_data_path=TRAIN_DATA,
    register_to=REGISTER_TO,
    custom_weights_path=WEIGHTS,
    training_duration="1ep",
    learning_rate="1e-3",
)
for _ in fm.get_events(longer, follow=True):
    pass
assert fm.get(longer).status == fm.Status.COMPLETED, fm.get(longer).details
