"""``ftctl create``: a flag for every parameter of `fm.create`, and a file that may hold them all."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fm.cli.render import output_options
from fm.errors import RequestError

_CHOICES = {
    "method": ("lora", "qlora", "full"),
    "optimizer": ("adamw", "adafactor"),
    "lr_scheduler": ("linear", "cosine", "constant"),
    "precision": ("auto", "bf16", "fp32"),
    "sharding": ("none", "full", "full-offload", "zero2", "zero3"),
    "packing": ("auto", "true", "false"),
    "train_on": ("last", "all"),
    "register_checkpoint": ("last", "best"),
    "task_type": ("CHAT_COMPLETION", "INSTRUCTION_FINETUNE", "CONTINUED_PRETRAIN"),
}
_NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("context_length", "batch_size", "seed", "keep_checkpoints", "num_processes"), int),
    **dict.fromkeys(("num_nodes", "min_processes", "process_cpus", "process_gpus"), int),
    "process_memory": float,
    "priority": int,
    "early_stopping_patience": int,
    **dict.fromkeys(("warmup", "weight_decay", "max_grad_norm"), float),
}
_REPEATED = {
    "new_tokens": ("--new-token", "A token whose embedding is trained and saved, added if the tokenizer lacks it; may "
                   "be repeated."),
    "eval_prompts": ("--eval-prompt", "A text to complete at each evaluation; may be repeated."),
    "trackers": ("--tracker", "mlflow, wandb or tensorboard; may be repeated."),
    "tags": ("--tag", "KEY=VALUE, kept with the run; may be repeated."),
}
_LORA: dict[str, Any] = {
    "rank": int, "alpha": float, "dropout": float, "target_modules": str, "use_rslora": bool, "use_dora": bool
}
_LORA_HELP = {
    "rank": "The adapter's rank (16).",
    "alpha": "The adapter's scale: its output is multiplied by alpha / rank (32).",
    "dropout": "Dropout before the adapter (0).",
    "target_modules": "Linear layers that get one: all-linear, or names such as q_proj,v_proj.",
    "use_rslora": "Scale the adapter by alpha / sqrt(rank).",
    "use_dora": "Train the lengths of the weights' rows apart from their directions.",
}
_YAML_HINT = "write lines such as model: ./my-model"
_OWN = {"dry_run", "backend"}
"""Parameters that the command treats itself."""


def parameters() -> dict[str, str]:
    """The parameters of `fm.create` in their order, each with its line of help, taken from its docstring."""
    from fm.api.create import create as function

    text = inspect.getdoc(function) or ""
    helps = {
        match[1]: " ".join(match[2].split())
        for match in re.finditer(r"^    (\w+): (.*(?:\n        .*)*)", text.partition("Args:")[2], re.MULTILINE)
    }
    texts = {name: helps.get(name, "") for name in inspect.signature(function).parameters}
    return {name: text[:1].upper() + text[1:] for name, text in texts.items()}


def create_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a flag for every parameter of `fm.create` to a command."""
    for name, text in reversed(parameters().items()):
        if name in _OWN or name in ("model", "train_data_path"):
            continue
        flag = f"--{name.replace('_', '-')}"
        if name in _REPEATED:
            flag, text = _REPEATED[name]
            command = click.option(flag, name, multiple=True, help=text)(command)
        elif name == "lora":
            for key in reversed(_LORA):
                flag = f"--lora-{key.replace('_', '-')}"
                flag += f"/--no-{flag[2:]}" if _LORA[key] is bool else ""
                command = click.option(flag, type=_LORA[key], default=None, help=_LORA_HELP[key])(command)
        elif name == "allow_oversize":
            command = click.option(flag, is_flag=True, default=None, help=text)(command)
        elif name == "validate_inputs":
            command = click.option("--validate-inputs/--no-validate-inputs", default=None, help=text)(command)
        else:
            kind = click.Choice(_CHOICES[name], case_sensitive=False) if name in _CHOICES else _NUMBERS.get(name, str)
            metavar = f"[{'|'.join(_CHOICES[name])}]" if name in _CHOICES else None
            command = click.option(flag, name, type=kind, metavar=metavar, help=text)(command)
    return command


@click.command()
@click.argument("model", required=False)
@click.argument("train_data_path", required=False)
@click.option("-f", "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A YAML file with the "
              "parameters of fm.create; flags override it.")
@click.option("--follow", is_flag=True, help="Wait for the run's end, which is then the exit code.")
@click.option("--dry-run", is_flag=True, help="Check everything, and make no run.")
@create_options
@output_options
def create(file: Path | None, follow: bool, dry_run: bool, output: str, quiet: bool, **flags: Any) -> None:
    """Fine-tune MODEL on TRAIN_DATA_PATH.

    MODEL is a folder (./my-model), a registered model (catalog.schema.model), a preset (fm/tiny-llama) or a hub name.
    """
    from fm.api.create import create as create_run
    from fm.api.create import validate
    from fm.cli.chosen import started

    values = given_values(file, flags)
    if dry_run:
        with with_warnings(shown=False):  # it names them itself
            plan = validate(**values)
        _show_dry_run(plan, output)
        return
    with with_warnings():
        run = create_run(**values)
    started(run, follow, output, quiet)


@contextmanager
def with_warnings(*, shown: bool = True) -> Iterator[None]:
    """Shows a request's warnings at the end as a user expects them. What Python and libraries warn their developers of
    is not the user's."""
    import warnings

    from fm.creation import RequestWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RequestWarning)
        yield
    for warning in caught if shown else ():
        click.echo(f"warning: {warning.message}", err=True)


def given_values(file: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `fm.create` in a file and in flags, which override it."""
    values = _overridden(read_file(file) if file else {}, given_flags(flags))
    for name in ("model", "train_data_path"):
        if values.get(name) is None:
            raise click.UsageError(f"{name} is missing: pass it as an argument, or in a file with -f")
    return values


def given_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, as parameters of `fm.create`."""
    values = {key: value for key, value in flags.items() if value is not None and value != ()}
    lora = {key: values.pop(f"lora_{key}") for key in _LORA if f"lora_{key}" in values}
    if names := lora.get("target_modules"):
        lora["target_modules"] = names if names == "all-linear" else tuple(names.split(","))
    if lora:
        values["lora"] = lora
    if "packing" in values and values["packing"] != "auto":
        values["packing"] = values["packing"] == "true"
    if "tags" in values:
        for tag in values["tags"]:
            if "=" not in tag:
                raise RequestError(f"--tag {tag!r} has no value", field="tags", hint="write --tag key=value")
        values["tags"] = dict(tag.split("=", 1) for tag in values["tags"])
    return values


def _overridden(values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The values of a file with those of flags in their place, also where the two use another name for the same."""
    both = {"duration": "training_duration", "training_duration": "duration"}
    taken = {both[key] for key in flags if key in both}
    return {key: value for key, value in values.items() if key not in taken} | flags


def read_file(path: Path) -> dict[str, Any]:
    """The parameters in a YAML file. Nothing but plain values is read from it.

    Raises:
        RequestError: it isn't YAML, holds no mapping, or names a parameter that there is not or twice; says the line.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        loader.name = str(path)  # in messages
        node = loader.get_single_node()
        values = loader.construct_document(node) if node else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not YAML: {error}", field="file", hint=_YAML_HINT) from None
    except OSError as error:
        raise RequestError(f"{path} can't be read: {error.strerror}", field="file") from None
    if not isinstance(values, dict):
        raise RequestError(f"{path} holds no parameters", field="file", hint=_YAML_HINT)
    known = [name for name in parameters() if name not in _OWN]
    seen: set[object] = set()
    for key, _ in node.value if node else ():
        where = f"{path}:{key.start_mark.line + 1}"
        if key.value not in known:
            near = difflib.get_close_matches(str(key.value), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "`ftctl create --help` lists the parameters"
            raise RequestError(f"{where}: there is no parameter {key.value!r}", field="file", hint=hint)
        if key.value in seen:
            raise RequestError(f"{where}: {key.value} is given twice", field="file", hint="remove one")
        seen.add(key.value)
    return values


def _show_dry_run(plan: Any, output: str) -> None:
    from fm.cli.render import to_json

    if output == "table":
        click.echo(str(plan))
        return
    value = {
        "request": plan.request.model_dump(mode="json"),
        "model": plan.model.model_dump(mode="json"),
        "train_data": plan.train_data.model_dump(mode="json"),
        "eval_data": plan.eval_data and plan.eval_data.model_dump(mode="json"),
        "backend": plan.backend,
        "launcher": plan.launcher,
        "warnings": plan.warnings,
    }
    click.echo(to_json(value, indent=2 if output == "json" else None))
