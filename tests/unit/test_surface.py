"""The public surface is a tested list; all else may change."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path
from typing import Any

import fm
import fm.api
from fm.errors import FMError

ROOT = Path(__file__).parents[2]

PUBLIC = set(
    "Check Conflict Damaged DataChanged DataError DataFault DiskFull DryRun Duration EventType FMError Forbidden "
    "HomeError LeaseLost LoraConfig Memory MissingExtra NotFound Plan PlanOption Preflight RequestError "
    "RequestWarning Run RunFailed RunStopped Rung Status StoreError TaskType Trial Unauthorised Unavailable "
    "Unsupported WaitTimeout __version__ backend cancel create delete get get_checkpoints get_events get_models "
    "list load plan preflight rerun testing validate wait".split()
)

REFERENCE_CREATE = [
    ("model", inspect.Parameter.empty),
    ("train_data_path", inspect.Parameter.empty),
    ("register_to", inspect.Parameter.empty),
    ("experiment_path", ""),
    ("task_type", "CHAT_COMPLETION"),
    ("eval_data_path", None),
    ("eval_prompts", None),
    ("custom_weights_path", None),
    ("training_duration", "1ep"),
    ("learning_rate", "5e-7"),
    ("context_length", None),
    ("validate_inputs", True),
    ("data_prep_cluster_id", None),
]
DIFFERENT_CREATE: dict[str, tuple[Any, str]] = {
    "register_to": (None, "a run need not end in the registry"),
    "learning_rate": (None, "5e-7 is a rate for all weights; with LoRA, the default here, it teaches nothing"),
}
REFERENCE_LIST = [
    ("training_runs", None),
    ("experiment_id", None),
    ("statuses", None),
    ("user_emails", None),
    ("before", None),
    ("after", None),
    ("include_details", None),
    ("limit", 100),
]
DIFFERENT_LIST: dict[str, tuple[Any, str]] = {"include_details": (True, "the details cost nothing here")}
REFERENCE_RUN_FIELDS = (
    "name status created_by model save_folder train_data_path register_to experiment_path task_type eval_data_path "
    "eval_prompts custom_weights_path training_duration learning_rate context_length details created_at started_at "
    "estimated_end_time completed_at experiment_id run_id run_progress formatted_eta refresh cancel get_events"
).split()
DIFFERENT_RUN_FIELDS = {"events": "a method, since it can follow"}


def kept(function: Any, reference: list[tuple[str, Any]], different: dict[str, tuple[Any, str]]) -> None:
    own = list(inspect.signature(function).parameters.values())[: len(reference)]
    assert [parameter.name for parameter in own] == [name for name, _ in reference]
    for parameter, (name, default) in zip(own, reference, strict=True):
        expected = different[name][0] if name in different else default
        assert parameter.default == expected, name


def test_the_public_names_are_exactly_those_listed() -> None:
    assert set(fm.__all__) == PUBLIC
    assert set(dir(fm)) >= PUBLIC
    for name in fm.__all__:
        assert getattr(fm, name) is not None


def test_every_error_of_the_tree_is_public() -> None:
    def tree(root: type[FMError]) -> set[str]:
        return {root.__name__}.union(*(tree(child) for child in root.__subclasses__()))

    assert tree(FMError) <= set(fm.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    try:
        fm.craete  # type: ignore[attr-defined]  # noqa: B018
    except AttributeError as error:
        assert "craete" in str(error)
    else:
        raise AssertionError


def test_the_version_is_that_of_the_distribution() -> None:
    assert fm.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_create_keeps_the_references_parameters_order_and_defaults_but_for_those_listed() -> None:
    kept(fm.create, REFERENCE_CREATE, DIFFERENT_CREATE)
    parameters = inspect.signature(fm.create).parameters
    assert [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        "model", "train_data_path", "register_to",
    ]


def test_list_keeps_the_references_parameters_order_and_defaults_but_for_those_listed() -> None:
    kept(fm.list, REFERENCE_LIST, DIFFERENT_LIST)


def test_a_run_has_the_references_fields_but_for_those_listed() -> None:
    for name in REFERENCE_RUN_FIELDS:
        assert hasattr(fm.Run, name), name
    for name in DIFFERENT_RUN_FIELDS:
        assert callable(getattr(fm.Run, name))


def test_the_siblings_take_what_the_references_take() -> None:
    assert next(iter(inspect.signature(fm.get).parameters)) == "run"
    assert list(inspect.signature(fm.cancel).parameters)[:2] == ["runs", "experiment_id"]
    assert list(inspect.signature(fm.get_events).parameters) == ["run", "follow"]
    assert list(inspect.signature(fm.get_checkpoints).parameters) == ["run"]


def test_every_deviation_is_told_to_the_reader_with_its_reason() -> None:
    told = fm.api.__doc__ or ""
    for name in (*DIFFERENT_CREATE, *DIFFERENT_LIST, *DIFFERENT_RUN_FIELDS):
        assert name in told


def test_validate_has_the_parameters_of_create() -> None:
    assert list(inspect.signature(fm.validate).parameters) == list(inspect.signature(fm.create).parameters)


def test_every_field_of_a_request_is_a_parameter_of_create_with_the_same_default() -> None:
    from fm.request import TrainRequest

    parameters = inspect.signature(fm.create).parameters
    for name, field in TrainRequest.model_fields.items():
        assert name in parameters
        default = parameters[name].default
        if not field.is_required() and default is not None:
            assert default == field.get_default(call_default_factory=True), name


def test_every_parameter_of_create_is_documented() -> None:
    from fm.cli.create import parameters

    assert [name for name, text in parameters().items() if not text] == []
