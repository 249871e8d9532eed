"""Fine-tune on prompts and responses, with held-out data and prompts to look at while it trains."""

import fm

MODEL = "./my-model"
TRAIN_DATA = "./train.jsonl"
EVAL_DATA = "./eval.jsonl"
REGISTER_TO = "main.support.answers"

run = fm.create(
    model=MODEL,
    train_data_path=TRAIN_DATA,
    register_to=REGISTER_TO,
    experiment_path="/Shared/support-answers",
    task_type="INSTRUCTION_FINETUNE",
    eval_data_path=EVAL_DATA,
    eval_prompts=["What is 2 + 1?", "What is 3 + 1?"],
    training_duration="20ba",
    learning_rate=1e-3,
    validate_inputs=True,
    data_prep_cluster_id=None,
)

for event in fm.get_events(run, follow=True):
    print(event.type, event.message)

run.refresh()
print(run.status, run.experiment_id, run.completed_at)
assert run.status == fm.Status.COMPLETED, run.details
