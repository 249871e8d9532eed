"""`ftctl server` as a user starts it: the token that is found, the addresses that are refused, a clean end."""

from __future__ import annotations

import signal
import stat
import threading
import time
from pathlib import Path

import httpx
import pytest

import fm
from fm.cli.main import run as ftctl
from fm.plugins import EXTRAS
from fm.remote.contexts import Contexts, contexts_path
from fm.store.store import RunStore
from fm.types import Principal
from support.data import many_pairs
from support.ftctl_server import server_process


def test_a_client_of_the_same_user_finds_the_token_by_itself(tmp_path: Path) -> None:
    with server_process(tmp_path / "home") as server:
        assert stat.S_IMODE(contexts_path().stat().st_mode) == 0o600
        token = Contexts.read().token_for(server.url)
        with fm.backend(server.url):
            run = fm.create("fm/nano-llama", many_pairs(tmp_path / "p.jsonl", 4), task_type="INSTRUCTION_FINETUNE",
                            method="full")
            assert fm.list() == [run] and run.status is fm.Status.QUEUED
        # Stopped while somebody follows, it ends at once and well; started again, it keeps the token.
        threading.Thread(target=lambda: next(iter(run.events(follow=True))), daemon=True).start()
        time.sleep(0.5)
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 8
        server.start()
        assert Contexts.read().token_for(server.url) == token
        assert fm.get(run.id, backend=server.url).id == run.id
        assert server.stop(signal.SIGINT) == 0


def test_without_an_agent_it_takes_runs_that_this_machine_could_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains = {module for extra, modules in EXTRAS.items() if extra != "server" for module in modules}
    absent = {*trains, "huggingface_hub", "tokenizers"}
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with server_process(tmp_path / "home", "--no-agent") as server, fm.backend(server.url):
        run = fm.create("org/model-7b", many_pairs(tmp_path / "p.jsonl", 4), task_type="INSTRUCTION_FINETUNE",
                        method="qlora", trackers=["mlflow"])
        assert fm.rerun(run).status is fm.Status.QUEUED


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "train.example"])
def test_an_address_that_others_reach_is_refused_without_tls_or_a_proxy(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ftctl(["server", "--host", host]) == 2
    assert "--tls-cert" in capsys.readouterr().err
    assert not contexts_path().exists()


@pytest.mark.parametrize("name", ["train.example:8443", "https://train.example", "train.example/", "//"])
def test_a_name_with_more_than_a_name_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ftctl(["server", "--name", name]) == 2
    assert "--name" in capsys.readouterr().err


@pytest.mark.parametrize("proxy", ["nginx", "no such thing", "", "10.0.0.1,proxy"])
def test_a_proxy_that_is_no_address_is_refused(proxy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ftctl(["server", "--host", "0.0.0.0", "--behind-proxy", proxy]) == 2
    assert "behind-proxy" in capsys.readouterr().err


def test_what_a_proxy_forwards_counts_and_what_others_forward_does_not(tmp_path: Path) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    for proxy, seen in (("127.0.0.1", "203.0.113.9"), ("192.0.2.1", "127.0.0.1")):
        home = tmp_path / proxy
        with server_process(home, "--no-agent", "--host", "0.0.0.0", "--behind-proxy", proxy) as server:
            store = RunStore(f"sqlite:///{home / 'ftctl.db'}")
            admin = store.administration(Principal(user="root"))
            admin.add_user("local", "ada")
            headers = {"Authorization": f"Bearer {admin.make_token('local', 'ada', scopes={'read'}).text}"}
            assert httpx.post(f"{server.url}/v1/validate", headers=headers | forwarded).status_code == 403
            assert admin.audit(1)[0].address == seen
            store.close()
        in_the_clear = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}
        with server_process(home, "--no-agent", "--host", "0.0.0.0", "--behind-proxy", proxy) as server:
            answer = httpx.get(f"{server.url}/v1", headers=headers | in_the_clear)
            assert answer.status_code == (403 if proxy == "127.0.0.1" else 200)


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    assert ftctl(["server", "--tls-cert", str(tmp_path / "c.pem")]) == 2


def test_a_port_that_is_taken_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server_process(tmp_path / "home") as server:
        assert ftctl(["server", "--port", str(server.port), "--no-agent"]) == 6
        assert "--port" in capsys.readouterr().err


def test_login_keeps_a_token_and_uses_the_server_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    with fm.testing.serve() as server:
        monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
        assert ftctl(["login", "team", server.url]) == 10
        assert not contexts_path().exists()
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{server.token}\n"))
        assert ftctl(["login", "team", server.url]) == 0
        run = fm.create("fm/nano-llama", many_pairs(tmp_path / "p.jsonl", 4), task_type="INSTRUCTION_FINETUNE",
                        method="full")
        assert run.backend.name == server.url
        assert ftctl(["context", "use", "local"]) == 0
        assert fm.list() == []
        assert fm.list(backend="team") == [run]
        capsys.readouterr()
        assert ftctl(["context", "list", "-q"]) == 0
        assert capsys.readouterr().out == "team\n"
        assert ftctl(["context", "rm", "team"]) == 0
        assert ftctl(["context", "use", "team"]) == 4
        assert server.token not in contexts_path().read_text()


def test_a_context_file_that_others_may_read_is_refused() -> None:
    Contexts().write()
    contexts_path().chmod(0o644)
    with pytest.raises(fm.Unavailable, match="chmod 600"):
        fm.list()


def test_a_token_is_in_no_file_event_or_line_of_the_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "served"
    with server_process(home) as server:
        token = Contexts.read().token_for(server.url) or ""
        secret = token.rsplit("_", 1)[1]
        with fm.backend(server.url):
            run = fm.create("fm/nano-llama", many_pairs(tmp_path / "p.jsonl", 4), task_type="INSTRUCTION_FINETUNE",
                            method="full")
            run.cancel()
            history = repr([event.model_dump() for event in run.get_events()]) + run.logs() + repr(run.refresh())
        headers = {"Authorization": f"Bearer {token}"}
        for path in ("/v1/runs?token=" + token, "/v1/nothing", "/v1/runs/none"):
            assert not httpx.get(server.url + path, headers=headers, trust_env=False).is_success
        longer = {"Authorization": f"Bearer {token}x"}
        assert httpx.get(server.url + "/v1", headers=longer, trust_env=False).status_code == 401
        said = capfd.readouterr()
        assert secret not in history + said.out + said.err
        files = [file for file in home.rglob("*") if file.is_file()]
        assert len(files) > 2 and not [file for file in files if secret.encode() in file.read_bytes()]
