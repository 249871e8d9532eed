"""Go on pretraining a model on a folder of .txt files."""

import fm

MODEL = "./my-model"
TRAIN_DATA = "./texts"
REGISTER_TO = "main.pretrained"

run = fm.create(
    model=MODEL,
    train_data_path=TRAIN_DATA,
    register_to=REGISTER_TO,
    task_type="CONTINUED_PRETRAIN",
    context_length=64,
    training_duration="10_000tok",
    learning_rate="5e-5",
)

for event in fm.get_events(run, follow=True):
    print(event)

run = fm.get(run.name)
print(run.model, run.save_folder, run.context_length, run.training_duration)
assert run.status == fm.Status.COMPLETED, run.details
