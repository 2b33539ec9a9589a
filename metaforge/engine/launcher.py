"""Start several processes of one run on this machine, and return their exit code."""

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
from metaforge.system.signals import DoublePressDetector


def launch(words: Sequence[str], processes: int, restarts: int) -> int:
    """Run `metaforge` with these words in several processes of this machine, and return its exit code.

    When one of them dies all are started again, at most `restarts` times. A second Ctrl-C kills them and leaves at
    once.
    """
    # The agent's own store keeps the addresses of processes that are dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # Ctrl-C is received below.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGHUP,SIGQUIT"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, machine.cores() // processes)))
    # What went wrong in a process, the process has said.
    logging.disable()
    place = RendezvousParameters("c10d", "localhost:0", uuid.uuid4().hex, 1, 1)
    spec = WorkerSpec(
        role="metaforge",
        local_world_size=processes,
        entrypoint=sys.executable,
        args=("-u", "-m", "metaforge", *words),
        rdzv_handler=get_rendezvous_handler(place),
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    agent = LocalElasticAgent(spec, DefaultLogsSpecs())
    before = signal.signal(signal.SIGINT, _Impatience(agent).receive)
    try:
        failures = agent.run().failures
    except SignalException as stop:
        return 128 + int(stop.sigval)
    finally:
        signal.signal(signal.SIGINT, before)
        spec.rdzv_handler.shutdown()
    return _code_of({rank: failure.exitcode for rank, failure in failures.items()})


class _Impatience:
    """Hears Ctrl-C for a group of processes, which do not hear it themselves: each is a session of its own."""

    def __init__(self, agent: LocalElasticAgent) -> None:
        self._agent, self._patience, self._asked = agent, DoublePressDetector(), False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Ask all of them to end in order; the second time soon after, kill them and leave."""
        if self._patience.is_double_press():
            for worker in self._agent.get_worker_group().workers:
                with suppress(ProcessLookupError):
                    os.killpg(worker.id, signal.SIGKILL)
            os._exit(128 + number)
        if not self._asked:
            self._asked = True
            raise SignalException("Ctrl-C", sigval=signal.SIGINT)


def _code_of(failures: Mapping[int, int]) -> int:
    """Return the exit code of processes that have failed, given the rank and the code of each in order, or 0 of none.

    What a process says of its own work counts, first what the leading one says. One that was lost, or that a signal
    has ended which was not sent to the launcher, has nothing to say: nor have those that miss it.
    """
    lost = WorkerError.exit_code
    said = [code for code in (failures.get(0, 0), *failures.values()) if 0 < code < lost]
    return next(iter(said), lost if failures else 0)
