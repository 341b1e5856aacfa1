"""`tasks.lane(key)` and `tasks.options(...)`: adds tasks to an object, in one lane and with options."""

from __future__ import annotations

import functools
import threading
from collections.abc import Awaitable, Callable, Hashable
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from fifo_background._arguments import only_a_key
from fifo_background._core.job import Job
from fifo_background._core.lane import key_of
from fifo_background._entries import Entry
from fifo_background._settings import NOT_GIVEN, PLAIN, AfterFailure, Keep, NotGiven, Retry, check_key

if TYPE_CHECKING:
    from typing_extensions import Never

__all__ = ("TaskAdder", "asked_for", "note_override")

P = ParamSpec("P")
T = TypeVar("T")


class _AskedFor(threading.local):
    """The `add_task` of somebody else that runs in this thread, and what is asked for the task that it adds.

    What that asks for by `lane` and `options` itself goes past it. No context is copied with this.
    """

    tasks: object = None
    func: object = None
    entry: Entry | None = None

    def of(self, func: object) -> Entry | None:
        """What is asked for a task that is added meanwhile. Once it is the one that was meant, no more is."""
        entry = self.entry
        if func is self.func:
            self.entry = None
        return entry

    def during(self, tasks: object, func: object, entry: Entry | None, add: Callable[[], Any]) -> Any:
        """Call `add`, which comes to somebody else's `add_task`."""
        before = self.tasks, self.func, self.entry
        self.tasks, self.func, self.entry = tasks, func, entry
        try:
            return add()
        finally:
            self.tasks, self.func, self.entry = before


asked_for = _AskedFor()


def note_override(kind: Any, ours: type) -> None:
    """`kind` is a new subclass of `ours`: while its own `add_task` runs, `asked_for` knows that."""
    owner: Any = next(base for base in kind.__mro__ if "add_task" in vars(base))
    function = vars(owner)["add_task"]
    if type(function) is not FunctionType:
        return  # a mock, or what an agent has made
    if owner is kind:
        kind.add_task = _noted(function)
    elif not issubclass(owner, ours):  # a mixin's, which somebody may replace later

        @functools.wraps(function)
        def add_task(self: Any, *args: Any, **kwargs: Any) -> Any:
            return super(kind, self).add_task(*args, **kwargs)

        kind.add_task = _noted(add_task)


def _noted(add_task: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(add_task)
    def add(tasks: Any, *args: Any, **kwargs: Any) -> Any:
        if asked_for.tasks is tasks:
            return add_task(tasks, *args, **kwargs)
        func = args[0] if args else kwargs.get("func")
        return asked_for.during(tasks, func, None, functools.partial(add_task, tasks, *args, **kwargs))

    return add


class Adds(Protocol):
    """The object to which the tasks are added."""

    @property
    def _fifo_stored_by(self) -> object:
        """The request of an engine that keeps its tasks; None in memory."""
        ...

    @property
    def _fifo_adds_itself(self) -> bool:
        """Whether nobody has replaced or overridden its `add_task`."""
        ...

    @property
    def add_task(self) -> Callable[..., Any]: ...

    def _fifo_add(self, func: Any, args: Any, kwargs: Any, entry: Entry | None) -> Job[Any]: ...


class TaskAdder:
    """Adds tasks to an object, in one lane and with options: `tasks.lane(key)`, `tasks.options(...)`."""

    __slots__ = ("_entry", "_tasks")

    def __init__(self, tasks: Adds, entry: Entry) -> None:
        self._tasks = tasks
        self._entry = entry

    def lane(
        self,
        key: Hashable,
        *arguments: Never,
        keep: Keep | NotGiven = NOT_GIVEN,
        max_waiting: int | NotGiven | None = NOT_GIVEN,
        after_failure: AfterFailure | NotGiven = NOT_GIVEN,
    ) -> TaskAdder:
        """As `OrderedBackgroundTasks.lane`."""
        if arguments:
            raise only_a_key("tasks.lane(key).add_task(func, ...)")
        check_key(key)
        return self._with(
            key_of(key), {"keep": keep, "max_waiting": max_waiting, "after_failure": after_failure}
        )

    def options(
        self,
        *,
        timeout: float | NotGiven | None = NOT_GIVEN,
        wait: bool | NotGiven = NOT_GIVEN,
        retry: int | Retry | NotGiven | None = NOT_GIVEN,
    ) -> TaskAdder:
        """As `OrderedBackgroundTasks.options`."""
        if isinstance(retry, (int, Retry)) and self._tasks._fifo_stored_by is None:
            raise TypeError(
                f"retry={retry!r} is for a request of an app with an engine, such as PostgresEngine. In "
                "memory retry inside the task, for example by `@stamina.retry(on=OSError, attempts=3)`: its "
                "lane waits for it, too"
            )
        return self._with(self._entry.key, {"timeout": timeout, "wait": wait, "retry": retry})

    if not TYPE_CHECKING:

        def __call__(self, *args: object, **kwargs: object) -> None:
            raise TypeError(
                "`tasks.lane(key)` and `tasks.options(...)` add no task: write "
                "`tasks.lane(key).add_task(func, ...)`"
            )

    def _with(self, key: Hashable, changes: dict[str, Any]) -> TaskAdder:
        PLAIN.replace(**changes)  # raises for an invalid one
        given = {name: value for name, value in changes.items() if value is not NOT_GIVEN}
        return TaskAdder(self._tasks, Entry(key, {**self._entry.changes, **given}))

    @overload
    def add_task(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    @overload
    def add_task(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]: ...

    def add_task(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """As `OrderedBackgroundTasks.add_task`."""
        tasks = self._tasks
        if tasks._fifo_adds_itself:
            return tasks._fifo_add(func, args, kwargs, self._entry)
        if asked_for.tasks is tasks:  # an overriding `add_task` calls this
            return tasks._fifo_add(func, args, kwargs, self._entry.after(asked_for.of(func)))
        add = functools.partial(tasks.add_task, func, *args, **kwargs)
        job: Job[Any] = asked_for.during(tasks, func, self._entry, add)
        return job
