"""The public verbs. Each asks a backend; which one, `fm.context` says.

Where they differ from the reference (`databricks.model_training.foundation_model` 1.1.8), and why:

============================  ==========================================================================================
`register_to` optional        a run need not end in the registry
`learning_rate` None          its default 5e-7 is for all weights; with LoRA, the default here, it teaches nothing
`eval_prompts` any sequence   nothing is lost by taking a tuple
`Run.events()` a method       it can follow, and page; so is `metrics()`, which the reference has not
`include_details` True        the details cost nothing here; the parameter is accepted for scripts
`list(limit=None)`            all runs; the reference has no way to ask for them
no `training_durations=[…]`   a sweep is a loop over `create`: one more type would save its caller one line
============================  ==========================================================================================
"""
