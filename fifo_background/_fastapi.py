"""The one hook into FastAPI: a parameter annotated with our class gets an object of that class.

FastAPI builds what it injects itself, whatever subclass is annotated. Its `solve_dependencies` takes a
`background_tasks` to use instead; the hook passes one of the annotated class, for that app and route only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import fastapi
import fastapi.routing
from fastapi.dependencies.utils import get_dependant, get_typed_signature

from fifo_background import _call, _routes
from fifo_background._tasks import OrderedBackgroundTasks

get_telemetry_data: Any
telemetry_context: Any
try:
    from fastapi.telemetry import get_telemetry_data
    from opentelemetry.context import get_current as telemetry_context
except ImportError:  # FastAPI < 0.142 has none
    get_telemetry_data = telemetry_context = None

__all__ = ("install",)

Tasks = type[OrderedBackgroundTasks]

# By `id(dependant)`; the entry keeps the dependant, so that no other can get its id.
_wanted: dict[int, tuple[Any, Tasks | None]] = {}
_WANTED_MAX = 10_000


def install() -> None:
    """Wrap `fastapi.routing.solve_dependencies`, once. Raises RuntimeError if FastAPI does not take it."""
    original = fastapi.routing.__dict__["solve_dependencies"]
    if getattr(original, "_fifo_background", False):
        return

    @functools.wraps(original)
    def solve_dependencies(**given: Any) -> Any:
        if given.get("background_tasks") is None:
            wanted = _class_wanted(given["dependant"], given.get("dependency_overrides_provider"))
            if wanted is not None:
                given["background_tasks"] = wanted()
        return original(**given)

    solve_dependencies._fifo_background = True  # type: ignore[attr-defined]
    fastapi.routing.__dict__["solve_dependencies"] = solve_dependencies
    _probe()
    _routes.wants_ours = _wants_ours
    if not _call.is_starlettes(fastapi.BackgroundTasks.__call__):
        _call.around_here = _around_here


def _wants_ours(dependant: Any, provider: Any) -> bool:
    try:
        return _class_wanted(dependant, provider) is not None
    except TypeError:  # two unrelated classes: FastAPI's own call will say so
        return True


def _around_here() -> _call.Around:
    """FastAPI's own class, if its telemetry is on in this context: it opens a span around each task."""
    if not telemetry_context():  # nothing at all is in it: the quickest look there is
        return None
    return None if get_telemetry_data() is None else fastapi.BackgroundTasks


def _probe() -> None:
    """Refuse a FastAPI in which the hook would silently do nothing."""

    def endpoint(tasks: OrderedBackgroundTasks) -> None: ...

    endpoint.__annotations__["tasks"] = OrderedBackgroundTasks
    app = fastapi.FastAPI(openapi_url=None)
    route = fastapi.routing.APIRoute("/", endpoint)
    takes_hook = "solve_dependencies" in _names_used(fastapi.routing.get_request_handler)
    if not takes_hook or _class_wanted(route.dependant, app) is not _injected(OrderedBackgroundTasks):
        raise RuntimeError(
            f"fifo-background does not know how FastAPI {fastapi.__version__} injects background tasks, "
            "and would leave them unordered. Use FastAPI >= 0.96, or a newer fifo-background."
        )


def _names_used(function: Any) -> set[str]:
    """The names that a function and the functions defined in it look up."""
    codes = [function.__code__]
    found: set[str] = set()
    while codes:
        code = codes.pop()
        found |= set(code.co_names)
        codes += [const for const in code.co_consts if hasattr(const, "co_names")]
    return found


def _class_wanted(dependant: Any, provider: Any) -> Tasks | None:
    overrides = getattr(provider, "dependency_overrides", None)
    if overrides:
        return _find(dependant, overrides)
    entry = _wanted.get(id(dependant))
    if entry is None:
        if len(_wanted) >= _WANTED_MAX:
            _wanted.clear()
        entry = _wanted[id(dependant)] = (dependant, _find(dependant, {}))
    return entry[1]


def _find(dependant: Any, overrides: dict[Any, Any]) -> Tasks | None:
    """The class to inject: the most derived of ours that the route's functions are annotated with."""
    found: Tasks | None = None
    for annotated in _annotated(dependant, overrides):
        if found is None or issubclass(annotated, found):
            found = annotated
        elif not issubclass(found, annotated):
            raise TypeError(
                f"one request asks for both {found.__qualname__} and {annotated.__qualname__}, and FastAPI "
                "gives all of its functions one object: let one of the classes derive from the other"
            )
    return None if found is None else _injected(found)


def _annotated(dependant: Any, overrides: dict[Any, Any]) -> Iterator[Tasks]:
    name = dependant.background_tasks_param_name
    if name is not None:
        annotation = _plain(get_typed_signature(dependant.call).parameters[name].annotation)
        if isinstance(annotation, type) and issubclass(annotation, OrderedBackgroundTasks):
            yield annotation
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


def _injected(wanted: Tasks) -> Tasks:
    """The class wanted, which is also a `fastapi.BackgroundTasks`; made once, and kept by the class."""
    if issubclass(wanted, fastapi.BackgroundTasks):
        return wanted
    made: Tasks | None = vars(wanted).get("_injected_by_fastapi")
    if made is None:
        made = _derive(wanted)
        wanted._injected_by_fastapi = made  # type: ignore[attr-defined]
    return made


def _derive(wanted: Tasks) -> Tasks:
    body = {"__module__": wanted.__module__, "__qualname__": wanted.__qualname__, "__doc__": wanted.__doc__}
    return type(wanted.__name__, (wanted, fastapi.BackgroundTasks), body)
