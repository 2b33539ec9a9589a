"""Starts the processes of one run on this machine with torchrun's agent, and returns their exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from metaforge.errors import WorkerError
from metaforge.system import machine
from metaforge.system.signals import DoublePressDetector, hangup_is_ignored


def launch(words: Sequence[str], processes: int, restarts: int) -> int:
    """Run a `metaforge` command in several processes on this machine.

    If one process fails, all are restarted. The first Ctrl-C shuts them down gracefully, so that the run is saved; a
    second one within two seconds kills them.

    Args:
        words: The arguments of the command, without `metaforge` itself.
        processes: The number of processes.
        restarts: The maximum number of restarts.

    Returns:
        The exit code of the run.
    """
    # The store that the agent would share with the processes keeps the addresses of processes that have failed.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # Without SIGINT, which is handled below. The agent would handle SIGHUP under `nohup` too.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = f"SIGTERM,SIGQUIT{'' if hangup_is_ignored() else ',SIGHUP'}"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, machine.cores() // processes)))
    # Each process prints its own error; the agent's log would repeat it.
    logging.disable()
    rendezvous = RendezvousParameters("c10d", "localhost:0", uuid.uuid4().hex, 1, 1)
    spec = WorkerSpec(
        role="metaforge",
        local_world_size=processes,
        entrypoint=sys.executable,
        args=("-u", "-m", "metaforge", *words),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    agent = LocalElasticAgent(spec, DefaultLogsSpecs())
    previous_handler = signal.signal(signal.SIGINT, _InterruptHandler(agent).receive)
    try:
        failures = agent.run().failures
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        signal.signal(signal.SIGINT, previous_handler)
        spec.rdzv_handler.shutdown()
    return _exit_code({rank: failure.exitcode for rank, failure in failures.items()})


class _InterruptHandler:
    """Handles Ctrl-C for the processes, which do not receive it: each runs in a session of its own."""

    def __init__(self, agent: LocalElasticAgent) -> None:
        self._agent, self._patience, self._stopping = agent, DoublePressDetector(), False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT: after the first one the agent shuts the processes down, a second one soon after kills them."""
        if self._patience.is_double_press():
            for worker in self._agent.get_worker_group().workers:
                with suppress(ProcessLookupError):
                    os.killpg(worker.id, signal.SIGKILL)
            os._exit(128 + number)
        if not self._stopping:
            self._stopping = True
            raise SignalException("Ctrl-C", sigval=signal.SIGINT)


def _exit_code(failures: Mapping[int, int]) -> int:
    """Return the exit code of a run from the exit codes of its failed ranks, in the order of the failures.

    An exit code above 0 and below that of `WorkerError` stands for an error of the process itself. Of these codes the
    run gets that of rank 0, or else the first. Every other code is a consequence of the failure of another process: a
    signal (negative, or 128 and more) or a lost connection (the code of `WorkerError`). If there are only such codes,
    the run gets that of `WorkerError`; without failures it gets 0.
    """
    lost = WorkerError.exit_code
    own_errors = [code for code in (failures.get(0, 0), *failures.values()) if 0 < code < lost]
    return next(iter(own_errors), lost if failures else 0)
