"""What `ftctl server` does: a server on this machine's run store, with an agent in the same process."""

from __future__ import annotations

import getpass
import logging
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from ipaddress import ip_network
from urllib.parse import urlsplit

from fm.agent import daemon
from fm.backends.stored import StoreBackend
from fm.errors import Conflict, RequestError, Unauthorised, Unavailable
from fm.remote.address import is_address, is_loopback
from fm.remote.contexts import Context, Contexts
from fm.settings import Settings
from fm.store.store import RunStore
from fm.types import ALL_SCOPES, Principal
from fm_server.app import make_app
from fm_server.door import LOOPBACK
from fm_server.serving import Server, listen

logger = logging.getLogger("fm.server")

_TEAM = "local"
_POLL_SECONDS = 0.5
"""How long clients wait between two questions while they wait for a run."""
_AGENT_RETRY_SECONDS = 2.0


def serve(
    *, host: str, port: int, names: Sequence[str], certificate: str | None, key: str | None, proxy: str | None,
    agent: bool, database: str | None, files: str | None,
) -> None:
    """Serves this machine's run store until SIGTERM or Ctrl-C. Trainings go on when it ends.

    Raises:
        RequestError: everybody on the way could read the tokens, one of `names` is no name of a machine, or `proxy` no
            address.
        Unavailable: the address can't be had, or the store can't be used.
    """
    check_exposure(host, certificate=certificate, key=key, proxy=proxy)
    check_names(names)
    check_proxy(proxy)
    settings = Settings.read(store_url=database, files_url=files)
    settings.prepare_home()
    store = RunStore(settings.store_url)
    backend = StoreBackend(
        "server", store, settings.storage, Principal(user="server"), tend=lambda: None, poll_seconds=_POLL_SECONDS,
        files=settings.open_files(), trains_here=agent,
    )
    listening = listen(host, port)
    url = f"{'https' if certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    if is_loopback(host):
        keep_token(store, url)
    hosts = {*LOOPBACK, host, socket.gethostname(), socket.getfqdn(), *names}
    app = make_app(backend, hosts=hosts, tls_only=not is_loopback(host))
    server = Server(app, certificate=certificate, key=key, proxies=proxy)
    logger.info("serving the runs in %s on %s; Ctrl-C ends it, trainings go on", store.database.place, url)
    try:
        # uvicorn raises the signal that ended it once more, for whoever handled it before.
        with _signals_handled(), _agent(settings) if agent else nullcontext():
            server.run(sockets=[listening])
    finally:
        listening.close()
        store.close()


def check_exposure(host: str, *, certificate: str | None, key: str | None, proxy: str | None) -> None:
    """Refuses an address at which tokens would travel in the clear.

    Raises:
        RequestError: it is reached from elsewhere, and neither TLS nor a proxy that ends it is given.
    """
    if bool(certificate) != bool(key):
        hint = "give --tls-cert and --tls-key"
        raise RequestError("a certificate and its key go together", field="tls-key", hint=hint)
    if not (is_loopback(host) or certificate or proxy):
        raise RequestError(
            f"{host} is reached from other machines, and everybody on the way could read the tokens", field="host",
            hint="give --tls-cert and --tls-key, or --behind-proxy with the address of a proxy that ends TLS",
        )


def check_names(names: Sequence[str]) -> None:
    """Refuses what a `Host` header never has where names are compared.

    Raises:
        RequestError: a name with a port, or a URL.
    """
    for name in names:
        if is_address(name):
            continue
        url = urlsplit(name if "//" in name else f"//{name}")
        if url.netloc != url.hostname or url.netloc != name:
            raise RequestError(
                f"--name {name} is no name of a machine", field="name",
                hint=f"give it alone: --name {url.hostname}" if url.hostname else "give it as in a URL, without a port",
            )


def check_proxy(proxy: str | None) -> None:
    """Refuses what no peer's address ever equals.

    Raises:
        RequestError: not addresses or networks, separated by commas.
    """
    for part in proxy.split(",") if proxy is not None else ():
        try:
            ip_network(part.strip())
        except ValueError:
            raise RequestError(
                f"--behind-proxy {part!r} is no address", field="behind-proxy",
                hint="give the IP address from which the proxy comes, or its network as 10.0.0.0/24",
            ) from None


def keep_token(store: RunStore, url: str) -> None:
    """Sees to it that this user's context file has a token for the server at `url`, so that clients find it."""
    contexts = Contexts.read()
    if known := contexts.token_for(url):
        try:
            store.access.authenticate(known)
            return
        except Unauthorised:  # of another store that was served there before
            pass
    user = getpass.getuser()
    administration = store.administration(Principal(user=user))
    with suppress(Conflict):
        administration.add_user(_TEAM, user)
    token = administration.make_token(_TEAM, user, scopes=ALL_SCOPES, days=None).text
    contexts.with_context(f"here-{url.rpartition(':')[2]}", Context(url=url, token=token), use=False).write()


@contextmanager
def _signals_handled() -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _agent(settings: Settings) -> Iterator[None]:
    """An agent in a thread, as long as the block lasts. Where another one does this machine's work, it waits."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                with suppress(Conflict):
                    daemon.serve(settings, stop, forever=True)
            except Unavailable as error:
                logger.error("the agent could not begin: %s", error)
            stop.wait(_AGENT_RETRY_SECONDS)

    thread = threading.Thread(target=work, name="fm-agent")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
