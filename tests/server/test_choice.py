"""Which server a client asks, with which token, over which way: from the environment, and from what login keeps."""

from __future__ import annotations

import io
import socket
import threading
from pathlib import Path

import pytest

import fm
from fm.cli.main import run as ftctl
from fm.deadline import within
from fm.remote.client import Call, Client
from fm.remote.contexts import Context, Contexts, contexts_path
from fm.testing.serving import Served
from support.certificates import certificates
from support.cutting import proxied
from support.data import many_pairs
from support.ftctl_server import server_process


class TestEnvironment:
    """FM_BACKEND and FM_TOKEN."""

    def test_an_address_and_a_token_are_all_that_is_needed(
        self, server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FM_BACKEND", server.url)
        with pytest.raises(fm.Unauthorised, match="FM_TOKEN"):
            fm.list()
        monkeypatch.setenv("FM_TOKEN", f"{server.token}\n")
        run = fm.create("fm/nano-llama", many_pairs(tmp_path / "p.jsonl", 4), task_type="INSTRUCTION_FINETUNE",
                        method="full")
        assert run.backend.name == server.url
        capsys.readouterr()
        assert ftctl(["runs", "list", "-q"]) == 0
        assert run.id in capsys.readouterr().out.splitlines()
        monkeypatch.setenv("FM_TOKEN", "ftc_wrong")
        with pytest.raises(fm.Unauthorised):
            fm.list()

    def test_the_token_of_the_environment_goes_before_a_kept_one(
        self, server: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Contexts().with_context("team", Context(url=server.url, token="ftc_old"), use=False).write()
        monkeypatch.setenv("FM_BACKEND", server.url)
        with pytest.raises(fm.Unauthorised):
            fm.list()
        monkeypatch.setenv("FM_TOKEN", server.token)
        fm.list()

    def test_a_contexts_name_brings_its_own_token(self, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        Contexts().with_context("team", Context(url=server.url, token=server.token), use=False).write()
        monkeypatch.setenv("FM_BACKEND", "team")
        monkeypatch.setenv("FM_TOKEN", "ftc_of_another_server")
        fm.list()
        monkeypatch.setenv("FM_BACKEND", "nobody")
        with pytest.raises(fm.RequestError, match="nobody"):
            fm.list()


@pytest.mark.parametrize("typed", ["\n", " \t\n", ""])
def test_a_login_with_an_empty_token_is_refused_and_keeps_what_there_was(
    server: Served, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Contexts().with_context("x", Context(url=server.url, token=server.token), use=True).write()
    before = contexts_path().read_bytes()
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert ftctl(["login", "x", server.url]) == 2
    assert "empty" in capsys.readouterr().err
    assert contexts_path().read_bytes() == before


class TestProxies:
    """Those of the environment are for the way out."""

    @pytest.fixture(autouse=True)
    def no_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)

    def test_another_machine_is_asked_through_the_proxy_and_by_the_deadline(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heard: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            def listen() -> None:
                connection, _ = proxy.accept()
                heard.append(connection.recv(1000))
                connection.recv(1)  # it never answers

            thread = threading.Thread(target=listen, daemon=True)
            thread.start()
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
            client = Client("https://train.example", "ftc_canary")
            with within(1.0), pytest.raises(fm.Unavailable, match="no answer in time"):
                client.send(Call("GET", "/v1"))
            thread.join(10)
        assert heard[0].startswith(b"CONNECT train.example:443") and b"canary" not in heard[0]

    def test_this_machine_is_asked_without_it(self, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        with proxied(server.url) as proxy:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            Client(server.url, server.token).send(Call("GET", "/v1"))
            assert proxy.connections == 0


def test_a_server_with_a_certificate_of_an_own_authority_is_reached_on_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    options = ("--no-agent", "--tls-cert", str(made.server), "--tls-key", str(made.key))
    with server_process(tmp_path / "home", *options, scheme="https") as server:
        token = Contexts.read().token_for(server.url)
        assert token
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
        assert ftctl(["login", "team", server.url]) == 0
        run = fm.create("fm/nano-llama", many_pairs(tmp_path / "p.jsonl", 4), task_type="INSTRUCTION_FINETUNE",
                        method="full")
        assert run.backend.name == server.url
        seen: list[fm.Status] = []
        waiting = threading.Thread(target=lambda: seen.append(run.wait(60, raise_on_failure=False).status))
        waiting.start()
        fm.cancel(run.id)
        waiting.join(60)
        assert seen == [fm.Status.STOPPED]
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(fm.Unavailable, match=r"CERTIFICATE_VERIFY_FAILED[\s\S]*SSL_CERT_FILE"):
            Client(server.url, token, sleep=lambda _: None).send(Call("GET", "/v1"))
