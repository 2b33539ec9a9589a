"""The process group of a run: which tasks each rank computes, and the collectives that combine the results.

Except for the launcher, this is the only module that calls `torch.distributed`. Learners and other plugins need not
know whether a run has one process or several.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from metaforge.authoring.functional import sum_of
from metaforge.authoring.protocols import Params
from metaforge.engine.contract import require_same_metrics
from metaforge.engine.local_batch import LocalBatch, reduce_groups
from metaforge.errors import ConfigError, WorkerError, shown

# Gloo notices immediately when another rank has exited; the timeout is for one that hangs.
_TIMEOUT = datetime.timedelta(seconds=120)
_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class World:
    """The process group of a run. With one process there is no group, and every collective returns its input.

    Args:
        rank: The rank of this process.
        size: The world size: the number of processes.
        device: The device of this rank's tensors; the CPU if None.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device or torch.device("cpu")

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which alone calls the hooks and writes the run folder."""
        return self.rank == 0

    def local_batch(self, total: int, shards: int | None, *, varied: bool = False) -> LocalBatch:
        """Return the tasks of a batch that this rank computes, with the reduction over all ranks.

        Args:
            total: The number of tasks in the whole batch.
            shards: Cut the batch into this many groups, independently of the world size, and add their sums in order:
                every world size that divides `shards` then gives the same bits. None makes one group per rank, and adds
                with `all_reduce`, in an unspecified order.
            varied: Whether the tasks of a batch have several shapes. Then the ranks compare the names of their metrics
                in every step, because they would add those of one name to those of another.

        Raises:
            ConfigError: The world size does not divide `shards`, or there are fewer tasks than groups.
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
        per_rank = groups // self.size
        own = slice(self.rank * per_rank, (self.rank + 1) * per_rank)
        if self.size == 1:
            return LocalBatch(total, tuple(sizes))
        first, add = sum(sizes[: own.start]), self._sum if shards is None else self._ordered_sum

        def reduce(groups: list[Params], rows: Tensor) -> tuple[Params, Tensor]:
            return reduce_groups(add, total, first, groups, rows)

        return LocalBatch(total, tuple(sizes[own]), first, reduce, self._require_same_metrics if varied else None)

    def maximum(self, *numbers: int) -> list[int]:
        """Return the maximum of each number over all ranks (an `all_reduce`)."""
        if self.size == 1:
            return list(numbers)
        maxima = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        with _worker_errors():
            dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return [int(number) for number in maxima.tolist()]

    def broadcast(self, data: bytes) -> bytes:
        """Return the `data` of rank 0 on every rank; the `data` of the other ranks is ignored."""
        if self.size == 1:
            return data
        (size,) = self.maximum(len(data) if self.is_rank_zero else 0)
        buffer = torch.zeros(size, dtype=torch.uint8, device=self.device)
        if self.is_rank_zero and size:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        with _worker_errors():
            dist.broadcast(buffer, 0)
        return bytes(buffer.cpu().numpy().tobytes())

    def path(self, own: Path) -> Path:
        """Return the path that rank 0 passes, on every rank."""
        return Path(os.fsdecode(self.broadcast(os.fsencode(own))))

    def gather(self, own: list[float], counts: list[int]) -> list[float]:
        """Return the numbers of all ranks, in the order of ranks.

        It is an `all_reduce` of lists padded with zeros, because ranks may have different numbers of them.

        Args:
            own: The numbers of this rank.
            counts: How many numbers each rank has.
        """
        if self.size == 1:
            return own
        first = sum(counts[: self.rank])
        gathered = torch.zeros(sum(counts), dtype=torch.float64, device=self.device)
        gathered[first : first + len(own)] = torch.tensor(own, dtype=torch.float64)
        with _worker_errors():
            dist.all_reduce(gathered)
        return [float(number) for number in gathered.tolist()]

    def _require_same_metrics(self, names: Sequence[str]) -> None:
        """Raise `ContractError` on every rank unless all of them have the same sorted names (one `all_reduce`)."""
        text = json.dumps(names).encode()
        digest = int.from_bytes(hashlib.sha256(text).digest()[:7])
        largest, smallest = self.maximum(digest, -digest)
        if largest != -smallest:
            require_same_metrics(json.loads(each) for each in self._from_all_ranks(text))

    def _from_all_ranks(self, own: bytes) -> list[bytes]:
        """Return the bytes of each rank."""
        counts = [int(count) for count in self.gather([len(own)], [1] * self.size)]
        numbers = iter(self.gather([*own], counts))
        return [bytes(map(int, itertools.islice(numbers, count))) for count in counts]

    def _sum(self, groups: Tensor) -> Tensor:
        """Return the sum `[n]` over all ranks, each of which has one group `[1, n]`."""
        total = groups[0]
        with _worker_errors():
            dist.all_reduce(total)
        return total

    def _ordered_sum(self, groups: Tensor) -> Tensor:
        """Return the sum `[n]` over the groups `[groups, n]` of all ranks, added in order."""
        gathered = [torch.empty_like(groups) for _ in range(self.size)]
        with _worker_errors():
            dist.all_gather(gathered, groups)
        return sum_of(group for part in gathered for group in part.unbind(0))


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return all(name in os.environ for name in _SET_BY_TORCHRUN)


def restart_count() -> int:
    """Return how often torchrun has restarted the processes."""
    return _variable("TORCHELASTIC_RESTART_COUNT", 0) if "TORCHELASTIC_RESTART_COUNT" in os.environ else 0


def job_id() -> str | None:
    """Return the id of the torchrun job, which a restart does not change; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID") if under_torchrun() else None


def rank() -> int:
    """Return the rank of this process; 0 without torchrun."""
    return _variable("RANK", 0) if under_torchrun() else 0


def local_rank() -> int:
    """Return the rank of this process among those of its machine; 0 without torchrun."""
    return _variable("LOCAL_RANK", 0) if under_torchrun() else 0


def _variable(name: str, least: int, most: int = 2**31 - 1) -> int:
    """Return an integer from an environment variable that torchrun sets; raise `ConfigError` if it is no such number.

    With a wrong number, such as a rank beyond the world size, the processes would wait for each other in vain.
    """
    text = os.environ[name]
    if text.isascii() and text.isdecimal() and least <= (number := int(text[:20])) <= most:
        return number
    raise ConfigError(
        f"The environment variable {name} is {shown(text)}, but should be an integer from {least} to {most}.",
        where=name,
        remedy="start the processes with --nproc or torchrun, which set it, or unset " + ", ".join(_SET_BY_TORCHRUN),
    )


def exit_now(code: object) -> NoReturn:
    """Exit without shutting down the interpreter, as one of several processes.

    During the shutdown, background threads of torch can abort a process that has already finished its work, which the
    launcher would report as a failure.

    Args:
        code: The `code` of a `SystemExit`: an exit code, None for success, anything else for failure.
    """
    os._exit(code if isinstance(code, int) else int(code is not None))


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Initialise the process group if torchrun started this process, and destroy it on exit."""
    if not under_torchrun():
        yield World(device=device)
        return
    size = _variable("WORLD_SIZE", 1)
    number = _variable("RANK", 0, size - 1)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _worker_errors():
        dist.init_process_group(backend, store=_store(number, size), rank=number, world_size=size, timeout=_TIMEOUT)
    try:
        yield World(number, size, device)
    finally:
        dist.destroy_process_group()


def _store(number: int, size: int) -> Store:
    """Return a store with a new key prefix: after a restart, the agent's store has addresses of dead processes."""
    address, port = os.environ["MASTER_ADDR"], _variable("MASTER_PORT", 0, 2**16 - 1)
    is_server = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(address, port, size, is_server, timeout=_TIMEOUT)
    except dist.DistError as error:
        raise _connection_error(error, address, port) from error
    # A process may train several runs, one after another. Each rank counts its runs, so all ranks get the same prefix.
    runs = store.add(f"metaforge/{restart_count()}/runs of {number}", 1)
    return PrefixStore(f"metaforge/{restart_count()}/{runs}", store)


def _connection_error(error: Exception, address: str, port: int) -> ConfigError | WorkerError:
    """Return the error for a store that rank 0 cannot open, or that another rank cannot connect to."""
    if "EADDRINUSE" in str(error):
        return ConfigError(
            f"The port {port} of {address} is in use by another program.",
            where="MASTER_PORT",
            remedy="set MASTER_PORT to a free port, or start the processes with --nproc, which finds one",
        )
    return WorkerError(
        f"There is no connection to rank 0 at {address}, port {port}.",
        where="MASTER_ADDR, MASTER_PORT",
        remedy="check that both name the machine and the port of rank 0, and that it runs",
    )


@contextmanager
def _worker_errors() -> Iterator[None]:
    """Turn an error of a collective into a `WorkerError`: as a rule, another rank has failed."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        raise WorkerError(
            "Another process of the run has ended or does not answer.",
            where=f"process {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')}",
            remedy="read the first error that another process printed (METAFORGE_DEBUG=1 shows the traceback of this"
            " one), then continue with --resume",
        ) from error
