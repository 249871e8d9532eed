"""What `fm.create` is asked for, checked when it is built. Unknown fields are refused: no typing error is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fm.duration import Duration
from fm.errors import RequestError
from fm.names import check_model_name, check_run_name
from fm.presets import PRESETS

Method = Literal["lora", "qlora", "full"]
Sharding = Literal["none", "full", "full-offload", "zero2", "zero3"]
WHOLE_WEIGHTS: tuple[Sharding, ...] = ("none", "zero2")
"""The shardings in which every process holds all of the weights."""


class TaskType(StrEnum):
    """What the rows of the data are, and which of their tokens are trained on."""

    CHAT_COMPLETION = "CHAT_COMPLETION"
    """``{"messages": [{"role", "content"}, …]}``; the chat template is applied; assistant turns are trained."""
    INSTRUCTION_FINETUNE = "INSTRUCTION_FINETUNE"
    """``{"prompt", "response"}``; the text as it stands; the response is trained."""
    CONTINUED_PRETRAIN = "CONTINUED_PRETRAIN"
    """Raw text; every token is trained."""


class _Request(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_enum_values=False, protected_namespaces=(), defer_build=True
    )


PRIORITIES = range(-100, 101)


def check_priority(value: int) -> int:
    """Returns `value` if it can be a run's priority, which is no part of its request: it says when, not what.

    Raises:
        RequestError: it is no whole number from -100 to 100.
    """
    if type(value) is not int or value not in PRIORITIES:
        raise RequestError(f"priority {value!r} is not possible", field="priority", hint="a number from -100 to 100")
    return value


class LoraConfig(_Request):
    """The adapter's shape. Defaults follow "LoRA without regret" (Thinking Machines, 2025): all linear layers."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get an adapter, as in ``("q_proj", "v_proj")``."""
    use_rslora: bool = False
    """Scale the adapter by alpha / sqrt(rank) instead of alpha / rank, so that high ranks keep learning (Kalajdzievski,
    2023). Named as in PEFT, like the next."""
    use_dora: bool = False
    """Train the length of each weight row apart from its direction (Liu et al., 2024). Slower: each layer's whole
    weight is put together at every step."""


class TrainRequest(_Request):
    """What to train on what. Where it is kept and run (backend, launcher) is not part of it.

    The first twelve fields are those of the reference, in its order; `fm.create` documents all of them.
    """

    model: str = Field(min_length=1)
    train_data_path: str = Field(min_length=1)
    register_to: str | None = None
    experiment_path: str = ""
    task_type: TaskType = TaskType.CHAT_COMPLETION
    eval_data_path: str | None = None
    eval_prompts: tuple[str, ...] = ()
    custom_weights_path: str | None = None
    training_duration: str = "1ep"
    learning_rate: float | None = Field(None, gt=0, le=10, allow_inf_nan=False)
    context_length: int | None = Field(None, ge=8)
    method: Method = "lora"
    lora: LoraConfig = LoraConfig()
    new_tokens: tuple[str, ...] = ()
    """Tokens whose embeddings are trained and saved with the adapter; the tokenizer is given those that it lacks."""
    batch_size: int = Field(16, ge=1, le=65536)
    seed: int = Field(17, ge=0, lt=2**31)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.02, ge=0, lt=1)
    """Share of the training over which the rate climbs to its peak."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    packing: Literal["auto"] | bool = "auto"
    train_on: Literal["last", "all"] = "last"
    """Which assistant turns of a chat are trained."""
    eval_interval: str = "auto"
    """A duration; "auto" is ten times over the training. The end is always evaluated."""
    save_interval: str = "auto"
    """A duration; "auto" is ten times over the training."""
    keep_checkpoints: int = Field(2, ge=1)
    early_stopping_patience: int | None = Field(None, ge=1)
    register_checkpoint: Literal["last", "best"] = "last"
    trackers: tuple[Literal["mlflow", "wandb", "tensorboard"], ...] = ()
    num_processes: int = Field(1, ge=1, le=1024)
    """Over all nodes; left out, one for each of them."""
    num_nodes: int = Field(1, ge=1, le=1024)
    min_processes: int | None = Field(None, ge=1)
    """How few will do when nodes are missing; None: none may be missing."""
    process_cpus: int = Field(1, ge=1)
    process_gpus: int | None = Field(None, ge=0)
    """None: one where there are any."""
    process_memory: float | None = Field(None, gt=0)
    """GiB that are reserved for each process; None: as it comes."""
    sharding: Sharding = "none"
    """Whether each process holds all of the model, or a part of it; with "full-offload" in the machine's memory.
    "zero2" and "zero3" are DeepSpeed's."""
    name: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Validates `values`.

        Raises:
            RequestError: names the first field that is wrong, and what it may be.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _translate(error) from None

    @model_validator(mode="before")
    @classmethod
    def _a_process_for_each_node(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("num_processes") is None:
            return {**values, "num_processes": values.get("num_nodes", 1)}
        return values

    @field_validator("training_duration", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> str:
        return str(Duration.parse(value))

    @field_validator("eval_interval", "save_interval", mode="before")
    @classmethod
    def _interval(cls, value: Any) -> Any:
        return "auto" if value in (None, "auto") else str(Duration.parse(value))

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        # Public scripts for the reference pass the string "5e-7".
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                raise RequestError(
                    f"learning_rate {value!r} is not a number", field="learning_rate", hint="write 1e-4"
                ) from None
        return value

    @field_validator("task_type", mode="before")
    @classmethod
    def _task(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("eval_prompts", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise RequestError("eval_prompts is one text, not a list", field="eval_prompts", hint="write [text]")
        return () if value is None else value

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        return () if value is None else value

    @field_validator("new_tokens", mode="before")
    @classmethod
    def _new_tokens(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise RequestError("new_tokens is one text, not a list", field="new_tokens", hint="write [token]")
        return () if value is None else value

    @field_validator("new_tokens")
    @classmethod
    def _tokens_are_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for token in value:
            if not token.strip() or token != token.strip() or value.count(token) > 1:
                raise RequestError(
                    f"new_tokens has {token!r}, which is empty, given twice, or begins or ends with a space",
                    field="new_tokens",
                    hint="write tokens such as <tool_call>, each once",
                )
        return value

    @field_validator("lora", mode="before")
    @classmethod
    def _lora(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("register_to")
    @classmethod
    def _register_to(cls, value: str | None) -> str | None:
        return check_model_name(value, parts=(2, 3), field="register_to") if value else None

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        return check_run_name(value) if value is not None else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task_type is TaskType.CONTINUED_PRETRAIN and self.train_on != "last":
            raise RequestError(
                'train_on chooses assistant turns, and CONTINUED_PRETRAIN has none', field="train_on",
                hint="leave train_on out",
            )
        if self.num_processes % self.num_nodes:
            raise RequestError(
                f"num_processes={self.num_processes} can't be parted evenly among {self.num_nodes} nodes",
                field="num_processes",
                hint="it counts the processes of all nodes: pass a multiple of num_nodes, or leave it out",
            )
        if self.min_processes is not None and self.min_processes > self.num_processes:
            raise RequestError(
                f"min_processes={self.min_processes} is more than num_processes={self.num_processes}",
                field="min_processes", hint="pass fewer, or leave it out",
            )
        if self.sharding != "none" and self.num_processes == 1:
            raise RequestError(
                f"sharding={self.sharding!r} parts the model among processes, and num_processes is 1", field="sharding",
                hint="pass num_processes=2 or more, at most one for each GPU, or leave sharding out",
            )
        if self.sharding == "zero3" and self.method == "qlora" and self.lora.use_dora:
            raise RequestError(
                "DoRA makes new tensors of weights in 4 bits, which DeepSpeed takes for parts of the model",
                field="sharding", hint='use sharding="full" or "zero2", which hold such a model too',
            )
        if self.sharding != "none" and self.optimizer == "adafactor":
            raise RequestError(
                "adafactor averages over the rows and columns of whole matrices, which sharding parts",
                field="optimizer", hint='use optimizer="adamw"; sharded, its moments are parted too',
            )
        for name in ("early_stopping_patience", "register_checkpoint"):
            if self.eval_data_path is None and getattr(self, name) not in (None, "last"):
                raise RequestError(
                    f"{name} goes by the loss on held-out data, and there is none", field=name,
                    hint="pass eval_data_path=…",
                )
        return self

    @property
    def duration(self) -> Duration:
        """`training_duration`, parsed."""
        return Duration.parse(self.training_duration)


def _translate(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "request"
    if first["type"] == "extra_forbidden":
        import difflib

        near = difflib.get_close_matches(field, TrainRequest.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "`ftctl create --help` lists the parameters"
        return RequestError(f"there is no parameter {field}", field=field, hint=hint)
    if first["type"] == "missing":
        return RequestError(f"{field} is required", field=field, hint=f"pass {field}=…")
    return RequestError(f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}; got {first['input']!r}", field=field)


def what_takes_less(request: TrainRequest, *, of_gpu: bool = True) -> str:
    """What to do where a memory does not hold `request`, in the order in which an expert would. `of_gpu`: whether it is
    each process's own, so that sharding and offload leave more of it."""
    tries = {"full": ["method='lora'", "method='qlora'"], "lora": ["method='qlora'"], "qlora": []}[request.method]
    if request.model in PRESETS:
        tries = []  # an adapter has nothing to build on there
    if of_gpu and request.optimizer != "adafactor":
        tries += {
            "none": ["sharding='full' over several GPUs"], "zero2": ["sharding='zero3'"],
            "full": ["sharding='full-offload'"],
        }.get(request.sharding, [])
    return (
        f"try, in this order: {', '.join([*tries, 'a shorter context_length', 'a smaller model'])}; `ftctl plan` shows "
        "what fits. batch_size does not matter, since a step is computed in pieces"
    )
