"""``ftctl doctor``: what this machine has, and what stands in the way of a training."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import click

from fm.cli.render import table, to_json
from fm.display import age, human_bytes
from fm.errors import FMError, Unavailable
from fm.plugins import EXTRAS, missing_from

_LITTLE_SPACE = 10e9


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `remedy` is empty where all is well."""

    state: Literal["ok", "warn", "fail"]
    subject: str
    detail: str
    remedy: str = ""


@click.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Output format.")
def doctor(output: str) -> None:
    """Check the installation and this machine.

    It looks at the extras, the devices, the run store and the disk, and changes nothing but an empty FM_HOME.
    """
    findings = list(examine())
    if output == "json":
        click.echo(to_json([{name: getattr(f, name) for name in Finding.__slots__} for f in findings], indent=2))
    else:
        table(("", "WHAT", "FOUND", "REMEDY"), [(f.state, f.subject, f.detail, f.remedy) for f in findings])
    if failed := [f.subject for f in findings if f.state == "fail"]:
        raise Unavailable(f"not ready to train: {', '.join(failed)}", hint="see the remedies above")


def examine() -> Iterator[Finding]:
    """All findings, those that others build on first."""
    for examination in (_python, _extras, _devices, _home, _agent):
        yield from _guarded(examination)


def _guarded(examination: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from examination()
    except FMError as error:
        yield Finding("fail", examination.__name__.strip("_"), error.message, error.hint)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    recent = sys.version_info >= (3, 11)
    yield Finding("ok" if recent else "fail", "python", version, "" if recent else "install Python 3.11 or later")


def _extras() -> Iterator[Finding]:
    for extra in EXTRAS:
        missing = missing_from(extra)
        state: Literal["ok", "warn", "fail"] = ("fail" if extra == "local" else "warn") if missing else "ok"
        detail = f"without {', '.join(missing)}" if missing else "installed"
        yield Finding(state, f"ftctl[{extra}]", detail, f"pip install 'ftctl[{extra}]'" if missing else "")


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("ok", f"cuda:{index}", f"{properties.name}, {human_bytes(properties.total_memory)}")
        exact = torch.cuda.is_bf16_supported()
    elif torch.backends.mps.is_available():
        yield Finding("ok", "device", "Apple GPU (mps)")
        exact = True
    else:
        yield Finding(
            "warn", "device", f"no GPU; {os.cpu_count()} CPU cores", "train small models here, or move to a GPU machine"
        )
        exact = "avx512_bf16" in _cpu_flags()
    yield Finding("ok", "bf16", "supported" if exact else "not supported: fp32 is used, which is slower")
    yield Finding("ok", "torch", str(torch.__version__))


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return ""


def _home() -> Iterator[Finding]:
    from fm.settings import Settings, filesystem_of
    from fm.store.store import RunStore

    settings = Settings.read()
    settings.prepare_home()
    yield Finding("ok", "FM_HOME", f"{settings.home} ({filesystem_of(settings.home) or 'unknown file system'})")
    store = RunStore(settings.store_url)
    try:
        yield Finding("ok", "run store", f"{len(store.unfinished())} unfinished runs")
    finally:
        store.close()
    root = settings.storage.root
    free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.exists())).free
    enough = free > _LITTLE_SPACE
    remedy = "" if enough else "`ftctl gc`, or set FM_RUNS to another disk"
    yield Finding("ok" if enough else "warn", "disk", f"{human_bytes(free)} free in {root}", remedy)


def _agent() -> Iterator[Finding]:
    from datetime import UTC, datetime

    from fm.settings import Settings
    from fm.store.store import RunStore

    settings = Settings.read()
    store = RunStore(settings.store_url)
    try:
        agents, unfinished = store.agents(), store.has_unfinished()
    finally:
        store.close()
    for agent in agents:
        heard = age(datetime.fromtimestamp(agent.heartbeat, UTC))
        yield Finding("ok", "agent", f"pid {agent.pid} on {agent.host}, heard of {heard} ago")
    if not agents and unfinished and settings.agent == "off":
        yield Finding("warn", "agent", "none, and runs wait", "start one: ftctl agent")
    elif not agents:
        yield Finding("ok", "agent", "none; one starts when there is work")
