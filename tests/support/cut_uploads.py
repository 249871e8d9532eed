"""Uploads that are cut at random points, as often as asked: by a lost connection, a lost reply, a killed server.

Used by `tests/faults/test_cut_uploads.py` with small numbers, and by `benchmarks/prove_server.py` with large ones.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fm.data import Source, digest, locate
from fm.errors import Unavailable
from fm.files import make_private
from fm.remote.backend import RemoteBackend, RemoteFiles
from fm.remote.client import Client
from fm.remote.contexts import Contexts
from fm.sending import send
from support.cutting import proxied
from support.ftctl_server import ServerProcess, server_process

_HEADERS = 500
"""Fewer bytes than the requests of any upload have besides its data: cuts fall there, too."""


class _Cuts:
    """The behaviours of a proxy that cuts an upload up to four times, each time where a random byte passes."""

    def __init__(self, chance: random.Random, server: ServerProcess) -> None:
        self.chance = chance
        self.server = server
        self.made = Counter[str]()
        self.passed = 0
        self._lock = threading.RLock()
        self._left = 0
        self._total = 0
        self._until = 0
        self._kill = False
        self._reply_is_lost = False

    def plan(self, total: int, *, kill: bool) -> None:
        """The cuts of the next upload, of `total` bytes; with the first of them the server is killed."""
        with self._lock:
            self._left, self._total, self._kill = self.chance.randint(1, 4), total, kill
            self._until = self.chance.randrange(total + _HEADERS)

    def end(self) -> None:
        """No more cuts."""
        with self._lock:
            self._left, self._reply_is_lost = 0, False

    def request(self, _number: int, block: bytes) -> bytes:
        with self._lock:
            self._until -= len(block)
            if not self._left or self._until >= 0:
                self.passed += len(block)
                return block
            kept = block[: self._until]
            self.passed += len(kept)
            self._left -= 1
            self._until = self.chance.randrange(self._total + _HEADERS)
            if self._kill:
                self._kill = False
                self.made["servers killed"] += 1
                self.server.stop(signal.SIGKILL)
                self.server.start()
            elif self.chance.random() < 0.3:
                self._reply_is_lost = True
                self.passed += len(block) - len(kept)
                return block
            else:
                self.made["requests cut"] += 1
            return kept

    def reply(self, _number: int, block: bytes) -> bytes:
        with self._lock:
            if not self._reply_is_lost:
                return block
            self._reply_is_lost = False
            self.made["replies lost"] += 1
            return block[: self.chance.choice((0, 0, 40))]


def cut_uploads(folder: Path, *, count: int, kills: int, most_bytes: int) -> dict[str, Any]:
    """`count` uploads of one to three files with up to `most_bytes` together, each cut one to four times.

    With `kills` of them the server is killed and started again. A client that gives up is followed by another one.
    """
    chance, cut, given_up, total, mismatches = random.Random(4), 0, 0, 0, 0
    with server_process(folder / "server") as server, proxied(server.url) as proxy:
        cuts = _Cuts(chance, server)
        proxy.request, proxy.reply = cuts.request, cuts.reply
        token = Contexts.read().token_for(server.url)
        assert token
        client = Client(proxy.url, token, sleep=lambda seconds: time.sleep(seconds / 20))
        remote = RemoteBackend(client, home=folder / "client")
        for number in range(count):
            source = _source(make_private(folder / f"set-{number}"), chance, most_bytes)
            name, size = digest(source).digest, sum(path.stat().st_size for path in source.files)
            before = cuts.made.total()
            cuts.plan(size, kill=number * kills // count != (number + 1) * kills // count)
            while True:
                try:
                    sent = send(remote.files, source, name, rows=None)
                    break
                except Unavailable:
                    given_up += 1
            cuts.end()
            cut += cuts.made.total() > before
            total += size
            mismatches += sent.digest != name or not _is_whole(remote.files, source, name)
        kept = len(remote.files.list(limit=1000))
        remote.close()
    left = len([*(folder / "server" / "uploads").iterdir()])
    return {
        "uploads": count, "cut": cut, "bytes": total,
        **{name.replace(" ", "_"): times for name, times in cuts.made.items()},
        "clients_that_gave_up": given_up, "bytes_on_the_wire": cuts.passed, "kept": kept, "left_unfinished": left,
        "digest_mismatches": mismatches,
        "holds": mismatches == left == 0 and kept == cut == count and cuts.made["servers killed"] == kills,
    }


def _source(folder: Path, chance: random.Random, most_bytes: int) -> Source:
    """A folder of files whose sizes spread over all orders of magnitude."""
    files = chance.randint(1, 3)
    for number in range(files):
        size = int((most_bytes / files) ** chance.random())
        (folder / f"{number}.jsonl").write_bytes(chance.randbytes(size))
    return locate(str(folder), field="train_data_path")


def _is_whole(files: RemoteFiles, source: Source, name: str) -> bool:
    """Whether what the server hands out under that digest is what was sent, byte for byte."""
    if [file.name for file in files.listing(name)] != [path.name for path in source.files]:
        return False
    for path in source.files:
        with files.read(name, path.name) as file:
            if file.read() != path.read_bytes():
                return False
    return True
