"""The agent as a process: one for each store and machine, started when there is work and ended when there is none."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import FrameType

import fm
from fm import plugins
from fm.agent.agent import Agent
from fm.agent.devices import Devices
from fm.errors import Conflict, Unavailable
from fm.files import disk_errors
from fm.settings import Settings
from fm.store.store import RunStore

logger = logging.getLogger("fm.agent")

_BUSY_PAUSE = 0.2
_IDLE_PAUSE = 1.0
_ANNOUNCE = timedelta(seconds=5)
_LONGEST_PAUSE = 30.0
"""Seconds between two looks for a store that can't be reached; the first pauses are shorter."""
_HANDOVER = timedelta(seconds=15)
"""How long an agent that was started for a run waits for one that makes room, or that only looks who lives here."""
IDLE_END = timedelta(seconds=20)
"""How long an agent that was started for a run stays when there is no work left."""


def lock_path(settings: Settings) -> Path:
    """The file whose lock says that an agent for this store lives on this machine."""
    store = hashlib.sha256(settings.store_url.encode()).hexdigest()[:12]
    return settings.home / f"agent-{store}.lock"


def place_of(settings: Settings) -> str:
    """Names where there is at most one agent at a time. Agents of one machine that serve one store from two homes are
    not each other's successors."""
    return f"{socket.gethostname()}:{settings.home}"


@contextmanager
def agent_lock(settings: Settings, *, forever: bool | None = None) -> Iterator[bool]:
    """Holds the agents' lock; yields whether it could be had. The system releases it when its holder dies. Of an agent,
    which knows whether it was started for good, the file tells that, and which Ray cluster it serves."""
    with disk_errors(lock_path(settings)):
        descriptor = os.open(lock_path(settings), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            if forever is not None:
                with suppress(OSError):  # such as a full disk: it is told to be of use, not needed
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps({"cluster": _cluster(), "forever": forever}).encode())
            yield True
    finally:
        os.close(descriptor)


def _cluster() -> str:
    return os.environ.get("FM_RAY_ADDRESS", "")


def _lacks_cluster(settings: Settings) -> bool:
    """Whether the agent that holds the lock serves no Ray cluster although this process names one, and is one of those
    that come and go. One that was started for good is not ours to end."""
    try:
        holder = json.loads(lock_path(settings).read_bytes())
        serves, forever = str(holder["cluster"]), bool(holder["forever"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # an older ftctl's
    if not _cluster() or serves == _cluster():
        return False
    if forever or serves:
        _say_once(
            f"the agent of this machine serves {f'the Ray cluster at {serves}' if serves else 'no Ray cluster'}: for "
            f"runs on {_cluster()}, start it with that FM_RAY_ADDRESS"
        )
        return False
    return True


@cache
def _say_once(text: str) -> None:
    logger.warning(text)


def serve(
    settings: Settings,
    stop: threading.Event,
    *,
    forever: bool,
    idle_end: timedelta = IDLE_END,
    patience: timedelta = timedelta(0),
) -> None:
    """Runs the agent until `stop` is set, it is drained or, unless `forever`, there has been no work for `idle_end`.

    Raises:
        Conflict: another agent for this store lives on this machine, and `patience` later still does.
    """
    settings.prepare_home()
    store = RunStore(settings.store_url)
    give_up, drained = time.monotonic() + patience.total_seconds(), False
    try:
        while True:
            with agent_lock(settings, forever=forever) as held:
                if held:
                    drained = _serve(settings, store, stop, None if forever else idle_end)
                elif time.monotonic() >= give_up:
                    raise Conflict("an agent for this run store is alive on this machine already")
            # A run may have been made while the lock was still held, by somebody who saw it and so started no agent.
            if stop.is_set() or drained or (held and not store.has_unfinished()):
                return
            stop.wait(_IDLE_PAUSE if held else _BUSY_PAUSE)
    finally:
        store.close()


def _serve(settings: Settings, store: RunStore, stop: threading.Event, idle_end: timedelta | None) -> bool:
    """Returns whether it was drained: then the next agent here is to be one of a newer version."""
    agent = Agent(
        store,
        settings.storage,
        lambda name: plugins.load("launchers", name)(),
        Devices.of_this_machine(),
        place_of(settings),
        files=settings.open_files(),
        launcher=settings.launcher,
        cluster=bool(_cluster()),
    )
    store.announce(agent.id, agent.place, os.getpid(), fm.__version__)
    logger.info("waiting for runs in %s; when this agent ends, its trainings go on", store.database.place)
    announced = idle_since = store.clock.now()
    agent.adopt()
    agent.end_strays()
    pause = _IDLE_PAUSE
    try:
        while not stop.is_set():
            try:
                agent.step()
                now = store.clock.now()
                if now - announced > _ANNOUNCE:
                    if store.announce(agent.id, agent.place, os.getpid(), fm.__version__):
                        logger.info("drained: a newer agent takes over")
                        return True
                    announced = now
                    agent.adopt()
            except Unavailable as error:
                if idle_end is not None:
                    logger.error("%s", error)
                    raise
                # Trainings go on meanwhile. Its leases may run out; what nobody else has taken over, it goes on with.
                logger.error("%s; the next try is in %.0f s", error, pause)
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _IDLE_PAUSE
            if agent.busy:
                idle_since = now
            elif idle_end is not None and now - idle_since > idle_end:
                return False
            stop.wait(_BUSY_PAUSE if agent.busy else _IDLE_PAUSE)
        return False
    finally:
        try:
            store.retire(agent.id)
        except Unavailable as error:
            logger.error("%s; the next agent waits for its leases to run out", error)


def ensure(settings: Settings, store: RunStore) -> None:
    """Starts an agent, detached, if none lives on this machine. One of an older version, or that can't reach the Ray
    cluster that is named here, is asked to make room for it; those of other machines are not ours to end."""
    with agent_lock(settings) as free:
        pass
    if not free:
        place, lacks_cluster = place_of(settings), _lacks_cluster(settings)
        outdated = [
            agent.id
            for agent in store.agents()
            if agent.host == place
            and not agent.drain
            and (lacks_cluster or _release(agent.version) < _release(fm.__version__))
        ]
        if not outdated:
            return
        for agent_id in outdated:
            store.drain(agent_id)
    with disk_errors(settings.home), (settings.home / "agent.log").open("ab") as log:
        (settings.home / "agent.log").chmod(0o600)
        subprocess.Popen(
            [sys.executable, "-m", "fm.agent"],
            cwd=settings.home,
            env={
                **os.environ,
                "FM_HOME": str(settings.home),
                "FM_RUNS": str(settings.storage.root),
                "FM_STORE": settings.store_url,
                "FM_FILES": settings.files_url or "",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def main(settings: Settings, *, forever: bool) -> None:
    """The agent process: logs to stderr, ends on SIGTERM and SIGINT. Trainers go on, and the next agent adopts them."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each question to a cluster
    stop = threading.Event()

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    serve(settings, stop, forever=forever, patience=timedelta(0) if forever else _HANDOVER)


def start_inline(settings: Settings) -> threading.Thread:
    """An agent in a thread of this process, which stays until the work is done: for containers, batch jobs and CI."""

    def work() -> None:
        # An agent elsewhere on this machine does the work as well.
        with suppress(Conflict):
            serve(settings, threading.Event(), forever=False, idle_end=timedelta(0))

    thread = threading.Thread(target=work, name="fm-agent")
    thread.start()
    return thread
