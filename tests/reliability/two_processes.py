"""Call a function in two processes that form one process group, with the environment that torchrun would set."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.reliability import children

_FORKS = multiprocessing.get_context("forkserver")


def call_in_two(function: Callable[..., None], *arguments: str, log: Path, seconds: float = 100.0) -> list[int]:
    """Call a function as rank 0 and as rank 1, and return both exit codes.

    A process that takes longer than `seconds` is killed. Their output goes to `<log>-0` and `<log>-1`.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [
        _FORKS.Process(target=_call_as_rank, args=(rank, port, function, arguments, f"{log}-{rank}")) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def _call_as_rank(rank: int, port: int, function: Callable[..., None], arguments: Sequence[str], log: str) -> None:
    children.redirect(log)
    torch.set_num_threads(1)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    function(*arguments)
