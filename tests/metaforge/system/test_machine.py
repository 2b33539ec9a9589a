"""The machine: devices are chosen by name, threads and the allocator are set, and facts are recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from metaforge.errors import ConfigError
from metaforge.system import machine


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch report two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch report neither CUDA nor MPS."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def threads() -> Iterator[int]:
    """Return torch's number of threads, and restore it afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_gpus")
def test_auto_means_cuda_where_it_is_available() -> None:
    assert machine.choose_device("auto") == torch.device("cuda")
    assert machine.choose_device("auto", 1) == torch.device("cuda", 1)
    assert machine.choose_device("cpu", 1) == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
def test_a_process_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no GPU for process 2 \(counted from 0\): this machine has 2") as caught:
        machine.choose_device("cuda", 2)
    assert caught.value.remedy == "start at most one process per GPU"


@pytest.mark.usefixtures("cpu_only")
def test_auto_means_the_cpu_elsewhere() -> None:
    assert machine.choose_device("auto") == torch.device("cpu")


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "No cuda device is available on this machine"),
        ("mps", "No mps device"),
        ("cdua", r"no device 'cdua'\. Did you mean 'cuda'"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        machine.choose_device(name)
    assert caught.value.remedy == "use one of: auto, cpu"


def test_the_number_of_threads_is_set(threads: int) -> None:
    machine.prepare(1)
    assert torch.get_num_threads() == 1
    machine.prepare(None)
    assert torch.get_num_threads() == 1


def test_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 4, 5}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert machine.cores() == 1


@pytest.mark.parametrize("path", ["/usr/bin/g++", None])
def test_the_compiler_is_found_on_the_path(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: path if name == "g++" else None)
    assert machine.has_compiler() == (path is not None)


def test_the_facts_are_json() -> None:
    facts = machine.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["processor"] == str(facts["processor"]).strip() != ""
