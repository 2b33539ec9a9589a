"""The end of a run, also after an error: it is recorded in the run folder, and the report and the hooks follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import pluggy

from metaforge.authoring.hooks import Outcome, RunInfo
from metaforge.errors import MetaForgeError, StorageError
from metaforge.runs.folder import RunFolder
from metaforge.runs.hook_calls import end_run


class Ending:
    """A context manager that records the outcome of the training inside it.

    On exit it writes the status and the report of the run, calls `metaforge_run_end` of every hook plugin, and releases
    the lock of the run folder. An exception of the training is not suppressed. An error on exit is raised only if the
    training succeeded; otherwise it is added as a note to the exception of the training.

    Args:
        folder: The folder of the run; None on all ranks but 0, which write nothing.
        manager: The hooks of the run.
        info: The description of the run that hooks receive.
        facts: What `status.json` records besides the outcome; read on exit, so the training may still add to it.
        report: Writes the report of the run; None if there is none to write.

    Attributes:
        outcome: How the training ended; `"failed"` until the training sets it.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        manager: pluggy.PluginManager,
        info: RunInfo,
        facts: Mapping[str, Any],
        report: Callable[[Outcome], object] | None,
    ) -> None:
        self._folder, self._manager, self._info = folder, manager, info
        self._facts, self._report = facts, report
        self.outcome: Outcome = "failed"

    def __enter__(self) -> Ending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.outcome = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            unrecorded = self._record(error)
            # The hooks hear of the first error, even if only the record of the run failed.
            found = [unrecorded, self._call_hooks(error or unrecorded)]
            if failures := [failure for failure in found if failure is not None]:
                self._resolve(error, *failures)
        finally:
            if self._folder is not None:
                self._folder.close()

    def _record(self, error: BaseException | None) -> BaseException | None:
        """Write the status and the report; return the exception that prevented that, or None."""
        try:
            if self._folder is not None:
                self._folder.ended(self.outcome, error, self._facts)
            # On a full disk the plots of a report would fail too.
            if self._report is not None and not isinstance(error, StorageError):
                self._report(self.outcome)
        except BaseException as failure:
            # A signal may interrupt the report: the hooks are still called, and the status still gets its exit code.
            return failure
        return None

    def _call_hooks(self, error: BaseException | None) -> BaseException | None:
        """Call `metaforge_run_end` of every hook; return the first error in one of them, or None."""
        try:
            end_run(self._manager, self._info, self.outcome, error)
        except BaseException as failure:
            return failure
        return None

    def _resolve(self, error: BaseException | None, first: BaseException, *others: BaseException) -> None:
        """Raise the first failure of the ending, unless the training raised an `error`; others become notes of it.

        The outcome of the training stays as it is, but the exit code in the status must be that of the command.
        """
        if error is not None:
            for failure in (first, *others):
                error.add_note(f"The end of the run failed too: {failure}")
            return
        for failure in others:
            first.add_note(f"The end of the run failed too: {failure}")
        if self._folder is not None:
            try:
                self._folder.ended(self.outcome, first, self._facts)
            except MetaForgeError as unwritten:
                first.add_note(f"The status of the run could not be written: {unwritten}")
        raise first
