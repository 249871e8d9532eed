"""Where things are kept, and how to change it from outside: the `FM_*` environment variables.

==============  ====================================================================  ==========================
Variable        Meaning                                                               Default
==============  ====================================================================  ==========================
FM_HOME         folder of the run store and the agent's log; must be a local disk     ``~/.ftctl``
FM_RUNS         storage root for run folders, models and shards; may be shared        FM_HOME
FM_FILES        file store that agents elsewhere share: a folder, or an fsspec URL    FM_RUNS
                as ``s3://bucket/prefix``
FM_STORE        SQLAlchemy URL of the run store, as ``postgresql+psycopg://…``        SQLite in FM_HOME
FM_BACKEND      backend to use: a name, or a server's URL                             ``local``
FM_TOKEN        token for a server                                                    kept by ``ftctl login``
FM_AGENT        ``auto``: started when needed, detached; ``inline``: a thread of      ``auto``
                the calling process; ``off``: somebody runs ``ftctl agent``
FM_RAY_ADDRESS  dashboard of the Ray cluster on which ``launcher="ray"`` trains, as   none
                ``http://head:8265``
FM_RAY_ENV      YAML file with the runtime environment of its jobs                    none
==============  ====================================================================  ==========================
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fm.errors import HomeError, RequestError, Unavailable
from fm.files import make_private
from fm.filestore import FileStore, open_store
from fm.layout import Storage
from fm.types import DEFAULT_LAUNCHER

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "fuse.sshfs"}
_AGENT_MODES = ("auto", "inline", "off")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of this process. Read once for each backend that is opened."""

    home: Path
    storage: Storage
    store_url: str
    agent: str
    files_url: str | None = None
    """The file store; None: the storage root itself."""
    launcher: str = DEFAULT_LAUNCHER
    """What an agent starts runs with that leave it to the agent."""

    @classmethod
    def read(
        cls, *, store_url: str | None = None, files_url: str | None = None, launcher: str = DEFAULT_LAUNCHER
    ) -> Settings:
        """Settings as the environment has them, but for those that are given.

        Raises:
            RequestError: a variable's value is not one that it can have.
        """
        home = Path(os.environ.get("FM_HOME") or "~/.ftctl").expanduser().absolute()
        root = Path(os.environ.get("FM_RUNS") or home).expanduser().absolute()
        agent = os.environ.get("FM_AGENT") or "auto"
        if agent not in _AGENT_MODES:
            raise RequestError(
                f"FM_AGENT is {agent!r}", field="FM_AGENT", hint=f"set it to one of {', '.join(_AGENT_MODES)}"
            )
        url = store_url or os.environ.get("FM_STORE") or f"sqlite:///{home / 'ftctl.db'}"
        files = files_url or os.environ.get("FM_FILES") or None
        if files and "://" not in files:
            files = str(Path(files).expanduser().absolute())
        return cls(home=home, storage=Storage(root), store_url=url, agent=agent, files_url=files, launcher=launcher)

    def open_files(self) -> FileStore:
        """The file store.

        Raises:
            RequestError: FM_FILES names none.
            MissingExtra: what it needs is not installed.
        """
        return open_store(self.files_url or str(self.storage.root), self.storage.cache)

    def prepare_home(self) -> None:
        """Makes the home folder and checks that it can hold the run store.

        Raises:
            HomeError: it can't be written, or lies on a network disk (whose locks SQLite can't rely on).
        """
        try:
            make_private(self.home)
            # Asking for the rights is not enough: a read-only disk grants them too.
            with tempfile.TemporaryFile(dir=self.home):
                pass
        except (OSError, Unavailable) as error:
            raise self._home_error(getattr(error, "strerror", None) or str(error)) from error
        if (kind := filesystem_of(self.home)) in _NETWORK:
            raise self._home_error(f"on a network disk ({kind}), on which the run store could be damaged")

    def _home_error(self, problem: str) -> HomeError:
        return HomeError(
            f"FM_HOME={self.home}: {problem}",
            hint="set FM_HOME to a folder on a local disk that you own; run folders may lie elsewhere (FM_RUNS)",
        )


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds `path`, as in "ext4"; empty where the system can't say."""
    mounts = Path("/proc/self/mounts")
    if mounts.exists():
        found = [line.split(" ")[1:3] for line in mounts.read_text().splitlines()]
    else:
        import psutil

        found = [[disk.mountpoint, disk.fstype] for disk in psutil.disk_partitions(all=True)]
    return innermost([(Path(point.replace("\\040", " ")), kind) for point, kind in found], path.resolve())


def innermost(mounts: Iterable[tuple[Path, str]], path: Path) -> str:
    """The type of the last mount that `path` lies on; one that was mounted later covers an earlier one."""
    best, found = -1, ""
    for point, kind in mounts:
        if (path == point or point in path.parents) and len(point.parts) >= best:
            best, found = len(point.parts), kind
    return found
