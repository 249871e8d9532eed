"""The Ray launcher without a cluster: what it is told by its settings, and by heads that are away, old or no Ray."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import httpx
import pytest
import respx

import fm
from fm.errors import DiskFull, RequestError, Unavailable, Unsupported
from fm.job import EXIT_DISK_FULL, EXIT_LOST, Job
from fm.layout import StageFolder
from fm.ray.cluster import NO_ENVIRONMENT, NOT_STARTED, Node, RayCluster
from fm.ray.placing import Ask, admit, no_room, place
from fm_local.ray_job import __main__ as ray_job
from fm_local.ray_job.__main__ import EXIT_MISFIT, main
from fm_local.ray_job.fence import is_over
from support.data import many_pairs
from support.ray_jobs import request, write_job

HEAD = "http://127.0.0.1:8265"


def node(**resources: float) -> Node:
    return Node("n", {"CPU": 4.0, "memory": 8.0 * 2**30, **resources})


def test_without_an_address_the_launcher_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="FM_RAY_ADDRESS is not set"):
        admit(request(), allow_oversize=False)
    monkeypatch.setenv("FM_RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(RequestError, match="no HTTP address"):
        admit(request(), allow_oversize=False)


def test_a_head_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FM_RAY_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9 can't be reached"):
        admit(request(), allow_oversize=False)


@respx.mock
def test_what_is_no_ray_or_too_old_is_refused() -> None:
    version = respx.get(f"{HEAD}/api/version")
    version.respond(json={"ray_version": "2.9.3"})
    with pytest.raises(Unsupported, match=r"Ray 2\.9\.3"):
        RayCluster.at(HEAD).check_version()
    for answer in (httpx.Response(200, text="<html>"), httpx.Response(200, json={"name": "another"})):
        version.mock(return_value=answer)
        with pytest.raises(Unavailable, match="not the dashboard"):
            RayCluster.at(HEAD).check_version()


@respx.mock
def test_an_error_of_the_dashboard_is_told_by_its_last_line() -> None:
    respx.post(f"{HEAD}/api/jobs/").respond(500, text="Traceback:\n  File x\nRuntimeError: no agent\n")
    with pytest.raises(Unavailable, match="500 to /api/jobs/: RuntimeError: no agent"):
        RayCluster.at(HEAD).submit("run-1", "true", {}, cpus=0)


def test_processes_are_placed_evenly_and_only_as_many_as_the_request_allows() -> None:
    two = request(num_nodes=2)
    assert two.num_processes == 2
    whole = place(two, [node(), node()])
    assert whole and (whole.nodes, whole.per_node, whole.each) == (2, 1, {"CPU": 1.0})
    assert place(two, [node()]) is None
    fewer = place(request(num_nodes=2, num_processes=4, min_processes=2), [node()])
    assert fewer and (fewer.nodes, fewer.per_node) == (1, 2)


def test_a_process_gets_a_gpu_where_there_are_any() -> None:
    found = place(request(), [node(GPU=2.0)])
    assert found and found.each == {"CPU": 1.0, "GPU": 1.0}


def test_no_room_says_what_is_asked_for_and_what_there_is() -> None:
    wide = request(num_nodes=2, num_processes=4, process_gpus=1, process_memory=2)
    assert place(wide, [node()]) is None
    assert no_room(wide, [node()]) == (
        "the Ray cluster has no room for this run: it asks for 4 processes with 1 CPU, 1 GPU, 2.0 GiB of memory each, "
        "2 on each of 2 nodes; the cluster has 1 node: 1 with 4 CPU, 0 GPU, 8.0 GiB of memory"
    )


@pytest.mark.parametrize("wrong", [{"num_nodes": 2, "num_processes": 3}, {"num_processes": 2, "min_processes": 3}])
def test_numbers_that_do_not_fit_each_other_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(RequestError):
        request(**wrong)


def test_what_only_a_cluster_does_is_refused_on_one_machine(tmp_path: Path) -> None:
    data = many_pairs(tmp_path / "pairs.jsonl", 8)
    with pytest.raises(Unsupported, match="num_nodes is for a cluster"):
        fm.validate("fm/nano-llama", str(data), task_type="INSTRUCTION_FINETUNE", method="full", num_nodes=2)


def test_a_node_without_the_folder_or_with_another_version_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = StageFolder(tmp_path / "attempts" / "1")
    assert main("train", away, fm.__version__, 1, 1, {"CPU": 1.0}) == EXIT_MISFIT
    assert "set FM_RUNS to a folder that all of its nodes and the agent's machine share" in capsys.readouterr().out
    assert main("train", away, "9.9.9", 1, 1, {"CPU": 1.0}) == EXIT_MISFIT
    assert f"the Ray cluster has ftctl {fm.__version__}, and the run was started by 9.9.9" in capsys.readouterr().out


def test_an_environment_file_refers_to_variables_and_never_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fm.ray.environment import runtime_environment

    file = tmp_path / "env.yaml"
    file.write_text(json.dumps({"pip": ["ftctl[ray]"], "env_vars": {"HF_TOKEN": "${MY_TOKEN}"}}))
    monkeypatch.setenv("FM_RAY_ENV", str(file))
    with pytest.raises(RequestError, match="MY_TOKEN"):
        runtime_environment({})
    monkeypatch.setenv("MY_TOKEN", "secret")
    made = runtime_environment({"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0"})
    assert made["pip"] == ["ftctl[ray]"]
    assert made["env_vars"].items() >= {"HF_TOKEN": "secret", "OMP_NUM_THREADS": "2"}.items()
    assert "CUDA_VISIBLE_DEVICES" not in made["env_vars"]


class Ended(BaseException):
    """What `os._exit` would do to the process, with its code."""


def ends(code: int) -> None:
    raise Ended(code)


@pytest.mark.parametrize(
    ("living", "said"),
    [(["a", "c"], "gone before the training began: b"), (["a"], "gone before the training began: b"), ([], "gone")],
)
def test_a_job_does_not_wait_for_a_node_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], living: list[str], said: str
) -> None:
    monkeypatch.setattr("os._exit", ends)
    looks = iter([["a", "b"], ["a", "b"], living])
    monkeypatch.setattr(ray_job, "_living_nodes", lambda: [Node(name, {"CPU": 4.0}) for name in next(looks)])
    monkeypatch.setattr("time.sleep", lambda _: None)
    folder = write_job(tmp_path, num_nodes=2, num_processes=4)
    with pytest.raises(Ended, match=str(EXIT_LOST)):
        ray_job._wait_for_place(folder, Job.read(folder).request, Ask(2, 2, {"CPU": 1.0}), {"a", "b"})
    assert said in capsys.readouterr().out


def test_a_job_that_can_not_show_that_it_lives_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os._exit", ends)
    monkeypatch.setattr(ray_job, "_living_nodes", lambda: [node()])
    folder = write_job(tmp_path)

    def full(*_: object) -> None:
        raise DiskFull("no space left")

    monkeypatch.setattr("fm.job.Reporter.sign", full)
    with pytest.raises(Ended, match=str(EXIT_DISK_FULL)):
        ray_job._wait_for_place(folder, Job.read(folder).request, Ask(1, 1, {"CPU": 1.0}), set())


def test_a_job_waits_on_while_the_head_or_the_disk_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([ConnectionError("no head"), OSError(errno.ESTALE, "Stale file handle"), None, None])
    folder = write_job(tmp_path)

    def nodes() -> list[Node]:
        if error := next(looks, None):
            raise error
        folder.process.write_text("{}")
        return [node()]

    monkeypatch.setattr("os._exit", ends)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(ray_job, "_living_nodes", nodes)
    ray_job._wait_for_place(folder, Job.read(folder).request, Ask(1, 1, {"CPU": 1.0}), set())
    assert folder.process.exists()


def test_a_disk_that_can_not_be_read_just_now_orders_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_job(tmp_path)
    folder.order.write_text("kill")
    assert is_over(folder)
    with monkeypatch.context() as away:
        away.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
        away.setattr(Path, "iterdir", lambda *_: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
        assert not is_over(folder)
    assert is_over(folder)


def test_errors_of_jobs_are_known_by_rays_own_names() -> None:
    from ray.dashboard.modules.job.common import JobErrorType

    assert {JobErrorType(NO_ENVIRONMENT), JobErrorType(NOT_STARTED)}
