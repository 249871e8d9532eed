"""What a training would need: values that `fm.plan` returns. JSON-able, so that a machine that trains can send them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from fm.display import human_bytes, human_seconds, plain, text_table
from fm.request import Method, Sharding, TrainRequest
from fm.types import DataRef, ModelRef


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), defer_build=True)


class Memory(_Value):
    """The most that one process holds at once, bytes by what they are for. They add up to `allocated`."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Kept from the forward for the backward pass."""
    logits: int
    """Logits and what the loss makes of them, a block at a time."""
    temporary: int
    """What comes and goes within an operation or a layer."""
    framework: int
    """The libraries' own: on a GPU, workspaces; on a CPU, the process."""
    reserved: int
    """What the allocator takes from the device in order to serve `allocated`."""

    @property
    def allocated(self) -> int:
        """Bytes in use at the peak."""
        return (
            self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.temporary
            + self.framework
        )

    @property
    def passing(self) -> int:
        """Bytes of what is allocated and freed again in each step, and so leaves gaps behind."""
        return self.activations + self.logits + self.temporary


class PlanOption(_Value):
    """One way to train the model that a request can ask for: a row of the plan's table."""

    method: Method
    sharding: Sharding
    processes: int
    """Those that were asked for, or two where sharding needs more than one."""
    memory: Memory
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of kept, for want of memory."""
    fits: bool
    requested: bool = False


class Plan(_Value):
    """Memory, steps, time and cost of a training, found without loading weights."""

    model: str
    parameters: int
    trained_parameters: int
    """Of the requested method."""
    device: str
    device_memory: int
    """Bytes of one device."""
    devices: int
    """One for each process; a CPU is one device, however many processes share it."""
    processes: int
    micro_batch: tuple[int, int]
    """(rows, tokens) computed at once on each device: the longest examples of the data, as many as suit the device and
    fit it, and one where not even that fits."""
    most_rows: int
    """Rows of that length that would still fit; with a quarter more to spare, where activations are kept. 0 where not
    even one does."""
    options: tuple[PlanOption, ...]
    examples: int
    tokens_per_epoch: int
    steps: int | None
    """Optimiser steps; None for a wall-clock duration whose speed can't be told."""
    tokens: int | None
    tokens_per_second: float | None
    """Over all devices; None where the device's speed is not known."""
    seconds: float | None
    cost: float | None
    """In the currency of the price per hour; None without one."""
    assumptions: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def requested(self) -> PlanOption:
        """The option that was asked for."""
        return next(option for option in self.options if option.requested)

    @property
    def fits(self) -> bool:
        """Whether what was asked for fits the device."""
        return self.requested.fits

    @property
    def process_memory(self) -> int:
        """Bytes of a device that one process has for itself."""
        return self.device_memory * self.devices // self.processes

    def summary(self) -> list[tuple[str, str]]:
        """(name, value) of what the plan says beside its table."""
        rows, width = self.micro_batch
        shared = f", shared by {self.processes} processes" if self.processes > self.devices else ""
        lines = [
            ("model", f"{self.model}: {self.parameters:,} parameters, {self.trained_parameters:,} trained"),
            ("device", f"{self.devices} x {self.device}, {human_bytes(self.device_memory)} each{shared}"),
            ("micro-batch", f"{rows} x {width} tokens; {self.most_rows} x {width} would fit"),
            ("data", f"about {self.examples:,} examples, {self.tokens_per_epoch:,} tokens an epoch"),
        ]
        if self.steps is not None:
            lines.append(("training", f"about {self.steps:,} steps, {self.tokens:,} tokens"))
        if self.seconds is not None:
            speed = f" at {self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""
            lines.append(("time", f"about {human_seconds(self.seconds)}{speed}"))
        if self.cost is not None:
            lines.append(("cost", f"about {self.cost:,.2f}"))
        return lines

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows of the options; memory is that of one process."""
        parts = ("weights", "gradients", "optimizer", "activations", "logits", "temporary", "framework")
        columns = (
            "", "METHOD", "SHARDING", "PROCESSES", "CHECKPOINTED", *(part.upper() for part in parts), "ALLOCATED",
            "RESERVED", "FITS",
        )
        rows = [
            (
                "→" if option.requested else "",
                option.method,
                option.sharding,
                str(option.processes),
                "yes" if option.checkpointing else "no",
                *(human_bytes(getattr(option.memory, part)) for part in parts),
                human_bytes(option.memory.allocated),
                human_bytes(option.memory.reserved),
                "yes" if option.fits else "no",
            )
            for option in self.options
        ]
        return columns, rows

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.summary())
        lines = [f"{name:<{width}}  {value}" for name, value in self.summary()]
        lines += ["", text_table(*self.table()), "", "assumed:", *(f"  {text}" for text in self.assumptions)]
        return plain("\n".join([*lines, "advice:", *(f"  {n}. {text}" for n, text in enumerate(self.advice, 1))]))


class PlanTask(_Value):
    """What a plan is made from; the machine that trains can be sent it."""

    request: TrainRequest
    model: ModelRef
    train_data: DataRef
    device: str | None = None
    """A GPU's name such as "H200", or "cpu"; None for what this machine has."""
    device_memory: int | None = None
    """Bytes; None for what the device has."""
    price_per_hour: float | None = None
    """Of one device."""

