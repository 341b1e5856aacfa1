"""Which class of background tasks the functions of a route are annotated with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import fastapi
from fastapi.dependencies.utils import get_dependant, get_typed_signature

from fifo_background._background import OrderedBackgroundTasks
from fifo_background._run.call import is_starlettes

__all__ = ("Tasks", "class_wanted", "injected", "wants_plain")

Tasks = type[OrderedBackgroundTasks]

# By `id(dependant)`; the entry keeps the dependant, so that no other can get its id. With the class wanted,
# and whether tasks are wanted at all.
_wanted: dict[int, tuple[Any, Tasks | None, bool]] = {}
_WANTED_MAX = 10_000

_FASTAPIS_ADD: Any = vars(fastapi.BackgroundTasks).get("add_task")
_FASTAPIS_CALL: Any = vars(fastapi.BackgroundTasks).get("__call__")


def class_wanted(dependant: Any, provider: Any) -> Tasks | None:
    """The class to inject for a route: the most derived of ours that its functions are annotated with.

    None if none is. Raises TypeError for two of which neither derives from the other.
    """
    return _entry(dependant, provider)[1]


def wants_plain(dependant: Any, provider: Any) -> bool:
    """Whether a function of the route asks for tasks, and none for ours."""
    _, wanted, asks = _entry(dependant, provider)
    return asks and wanted is None


def _entry(dependant: Any, provider: Any) -> tuple[Any, Tasks | None, bool]:
    overrides = getattr(provider, "dependency_overrides", None)
    if overrides:
        return dependant, *_find(dependant, overrides)
    entry = _wanted.get(id(dependant))
    if entry is None:
        if len(_wanted) >= _WANTED_MAX:
            _wanted.clear()
        entry = _wanted[id(dependant)] = (dependant, *_find(dependant, {}))
    return entry


def _find(dependant: Any, overrides: dict[Any, Any]) -> tuple[Tasks | None, bool]:
    found: Tasks | None = None
    asks = False
    for annotated in _annotated(dependant, overrides):
        asks = True
        if not (isinstance(annotated, type) and issubclass(annotated, OrderedBackgroundTasks)):
            continue
        if found is None or issubclass(annotated, found):
            found = annotated
        elif not issubclass(found, annotated):
            raise TypeError(
                f"one request asks for both {found.__qualname__} and {annotated.__qualname__}, and FastAPI "
                "gives all of its functions one object: let one of the classes derive from the other"
            )
    return (None if found is None else injected(found)), asks


def _annotated(dependant: Any, overrides: dict[Any, Any]) -> Iterator[Any]:
    name = dependant.background_tasks_param_name
    if name is not None:
        yield _plain(get_typed_signature(dependant.call).parameters[name].annotation)
    for sub in dependant.dependencies:
        call = overrides.get(sub.call)
        yield from _annotated(
            sub if call is None else get_dependant(path=sub.path or "", call=call), overrides
        )


def _plain(annotation: Any) -> Any:
    """The class inside `Annotated[...]` and `type X = ...`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def injected(wanted: Tasks) -> Tasks:
    """The class wanted, which is also a `fastapi.BackgroundTasks`; made once, and kept by the class."""
    if issubclass(wanted, fastapi.BackgroundTasks):
        return wanted
    made: Tasks | None = vars(wanted).get("_fifo_injected")
    if made is None:
        made = _derive(wanted)
        wanted._fifo_injected = made  # type: ignore[attr-defined]
    return made


def _derive(wanted: Tasks) -> Tasks:
    def reduce(self: Any) -> Any:  # pickle finds the class that was annotated, not this one
        return _rebuild, (wanted,), self.__getstate__()

    body = {
        "__module__": wanted.__module__,
        "__qualname__": wanted.__qualname__,
        "__doc__": wanted.__doc__,
        "__reduce__": reduce,
        "_fifo_fastapi_add_is_replaced": staticmethod(_add_is_replaced),
        "_fifo_fastapi_call_is_replaced": staticmethod(_call_is_replaced),
        "_fifo_class_below": fastapi.BackgroundTasks,
    }
    return type(wanted.__name__, (wanted, fastapi.BackgroundTasks), body)


def _rebuild(wanted: Tasks) -> OrderedBackgroundTasks:
    return object.__new__(injected(wanted))


def _add_is_replaced() -> bool:
    add = vars(fastapi.BackgroundTasks).get("add_task")
    return add is not _FASTAPIS_ADD and not (add is None or is_starlettes(add))


def _call_is_replaced() -> bool:
    return vars(fastapi.BackgroundTasks).get("__call__") is not _FASTAPIS_CALL
