"""Several processes as one run: who they are, how their parts of a batch are joined, and what they agree on.

The one module that speaks to `torch.distributed`. Learners and plugins know nothing of it.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from metaforge.authoring.functional import sum_of
from metaforge.authoring.protocols import Params
from metaforge.engine.batch import Share
from metaforge.errors import ConfigError, WorkerError

# A peer that is gone is noticed at once by gloo; this is for one that hangs.
_TIMEOUT = datetime.timedelta(seconds=120)
_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class World:
    """The processes of a run; alone, every method gives back what it is given."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device or torch.device("cpu")

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes, and asks the hooks."""
        return self.rank == 0

    def share(self, total: int, shards: int | None) -> Share:
        """Return this process's part of a batch of `total` tasks.

        With `shards` the batch is cut into as many groups whatever the number of processes, and their sums are added in
        order: the same bits for any number of processes that divides it. Without, each process is one group.
        """
        groups = self.size if shards is None else shards
        if groups % self.size or groups > total:
            raise ConfigError(
                f"{total} tasks in {groups} groups cannot be shared by {self.size} processes.",
                where="engine.shards" if shards else "train.tasks",
                remedy=f"choose a number of groups that {self.size} divides, and at least as many tasks",
            )
        ends = [total * index // groups for index in range(groups + 1)]
        sizes = [after - before for before, after in itertools.pairwise(ends)]
        each = groups // self.size
        own = slice(self.rank * each, (self.rank + 1) * each)
        if self.size == 1:
            return Share(total, tuple(sizes))
        add = self._sum if shards is None else self._ordered_sum
        return Share(total, tuple(sizes[own]), sum(sizes[: own.start]), functools.partial(_joined, add))

    def maximum(self, *numbers: int) -> list[int]:
        """Return the largest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        with _peers():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return [int(number) for number in found.tolist()]

    def broadcast(self, data: bytes) -> bytes:
        """Return what the leading process has handed over."""
        if self.size == 1:
            return data
        (size,) = self.maximum(len(data) if self.is_rank_zero else 0)
        buffer = torch.zeros(size, dtype=torch.uint8, device=self.device)
        if self.is_rank_zero and size:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        with _peers():
            dist.broadcast(buffer, 0)
        return bytes(buffer.cpu().numpy().tobytes())

    def path(self, own: Path) -> Path:
        """Return the path that the leading process has chosen."""
        return Path(os.fsdecode(self.broadcast(os.fsencode(own))))

    def gather(self, own: list[float], counts: list[int]) -> list[float]:
        """Return the numbers of all processes in order, given how many each of them has."""
        if self.size == 1:
            return own
        first = sum(counts[: self.rank])
        found = torch.zeros(sum(counts), dtype=torch.float64, device=self.device)
        found[first : first + len(own)] = torch.tensor(own, dtype=torch.float64)
        with _peers():
            dist.all_reduce(found)
        return [float(number) for number in found.tolist()]

    def _sum(self, own: Tensor) -> Tensor:
        """Return the sum over all processes, given one row each."""
        total = own[0]
        with _peers():
            dist.all_reduce(total)
        return total

    def _ordered_sum(self, own: Tensor) -> Tensor:
        """Return the sum over the rows of all processes, added up in order."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _peers():
            dist.all_gather(parts, own)
        return sum_of(row for part in parts for row in part.unbind(0))


def _joined(add: Callable[[Tensor], Tensor], groups: list[Params]) -> Params:
    """Return the sum of the groups of all processes, each dtype by itself, so that all is rounded as in one process."""
    sums = Params()
    for dtype in dict.fromkeys(value.dtype for value in groups[0].values()):
        alike = [{name: value for name, value in group.items() if value.dtype == dtype} for group in groups]
        rows = torch.stack([torch.cat([value.detach().reshape(-1) for value in part.values()]) for part in alike])
        pieces = torch.split(add(rows), [value.numel() for value in alike[0].values()])
        sums |= {name: piece.view(alike[0][name].shape) for name, piece in zip(alike[0], pieces, strict=True)}
    return sums


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return all(name in os.environ for name in _SET_BY_TORCHRUN)


def restart_count() -> int:
    """Return how often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def job_id() -> str | None:
    """Return the name that torchrun gave the job, the same after a restart; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID") if under_torchrun() else None


def rank() -> int:
    """Return this process's number, 0 without torchrun."""
    return int(os.environ["RANK"]) if under_torchrun() else 0


def local_rank() -> int:
    """Return this process's number on its machine, 0 without torchrun."""
    return int(os.environ["LOCAL_RANK"]) if under_torchrun() else 0


def exit_now(code: object) -> NoReturn:
    """End one of several processes with an exit code, as it stands.

    When the interpreter is taken down, torch's background threads can abort a process whose work is done and written,
    and the launcher would take that for a failure.
    """
    os._exit(code if isinstance(code, int) else int(code is not None))


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun has started, or stand alone; leave them at the end."""
    if not under_torchrun():
        yield World(device=device)
        return
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _peers():
        dist.init_process_group(backend, store=_store(number, size), rank=number, world_size=size, timeout=_TIMEOUT)
    try:
        yield World(number, size, device)
    finally:
        dist.destroy_process_group()


def _store(number: int, size: int) -> Store:
    """Return a store of this attempt's own: after a restart, the agent's still has the addresses of dead processes."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(address, port, size, serves, timeout=_TIMEOUT)
    # One process may train several runs; the others count with it.
    runs = store.add(f"metaforge/{restart_count()}/runs of {number}", 1)
    return PrefixStore(f"metaforge/{restart_count()}/{runs}", store)


@contextmanager
def _peers() -> Iterator[None]:
    """Turn the failure of another process into one sentence."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        raise WorkerError(
            "Another process of the run has ended or does not answer.",
            where=f"process {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')}",
            remedy="the first error of another process says why (METAFORGE_DEBUG=1: what was seen here); go on with"
            " --resume",
        ) from error
