"""Hooks as the manager calls them: an exception names its plugin and hook, and a trace tells every call."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pluggy

from metaforge.errors import MetaForgeError, PluginError


class Trace:
    """Tells every hook call on stderr: the hook, its step, and each plugin that was asked, with its milliseconds."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self.asked: list[str] = []
        manager.add_hookcall_monitoring(lambda *call: self.asked.clear(), self.tell)

    def tell(self, outcome: object, hook: str, plugins: Sequence[object], given: Mapping[str, Any]) -> None:
        """Print one line of a call that is over."""
        step = f" at step {given['step']}" if "step" in given else ""
        print(f"{hook}{step}: {', '.join(self.asked) or 'nobody asked'}", file=sys.stderr)  # noqa: T201


@dataclass(frozen=True)
class Place:
    """Where a hook stands: what its exceptions and its time are noted under."""

    cls: type[Any]
    hook: str
    label: str = ""
    trace: Trace | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Run a hook inside; a wrapper's time is that of all it wraps, too."""
        start = time.perf_counter()
        try:
            yield
        except MetaForgeError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"The hook {self.hook} of {self.cls.__name__} raised {type(error).__name__}: {error}",
                where=f"{self.cls.__module__}:{self.cls.__qualname__}",
                remedy="run without this hook, or correct it (METAFORGE_DEBUG=1 shows the trace)",
            ) from error
        finally:
            if self.trace is not None:
                self.trace.asked.append(f"{self.label} {1e3 * (time.perf_counter() - start):.2f} ms")


def calling(method: Callable[..., Any], place: Place) -> Callable[..., Any]:
    """Return a plain hook that is noted."""

    @functools.wraps(method)
    def call(*arguments: Any) -> Any:
        with place.noted():
            answer = method(*arguments)
            if place.hook == "metaforge_run_facts" and not isinstance(answer, Mapping | None):
                raise TypeError(f"it returned {answer!r}, which is no mapping of facts")
            return answer

    return call


def wrapping(method: Callable[..., Any], place: Place) -> Callable[..., Any]:
    """Return a hook that wraps others, noted; it sees what they answer or raise, and raises what it does not catch."""

    @functools.wraps(method)
    def call(*arguments: Any) -> Generator[None, Any, Any]:
        with place.noted():
            inner = method(*arguments)
            try:
                next(inner)
            except StopIteration:
                raise TypeError("a wrapper has to yield once") from None
            try:
                answer = yield
            except BaseException as error:
                resume = functools.partial(inner.throw, error)
            else:
                resume = functools.partial(inner.send, answer)
            try:
                resume()
            except StopIteration as end:
                return end.value
            inner.close()
            raise TypeError("a wrapper has to yield once")

    return call
