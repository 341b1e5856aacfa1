"""One function for each endpoint; `StatusApp` and `router` both serve them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary

from starlette.requests import Request
from starlette.responses import Response

from fifo_background import ExecutorClosed, executor_of
from fifo_background.status.access import Authorize, is_local, may_operate, refuse_foreign
from fifo_background.status.events import EventStream
from fifo_background.status.executors import ShownExecutor, ShownJob, ShownLane, shown
from fifo_background.status.page import FILES, INDEX, Page
from fifo_background.status.problems import Failed, Problem, closed, no_method, no_page, refused
from fifo_background.status.query import Query, cursor_of, head_in_body, preferred_wait
from fifo_background.status.responses import Json, dumped, dumped_in_steps, secured
from fifo_background.status.waiting import wait_for_end
from fifo_background.status.watch import Watch, figures

__all__ = ("ADD_SLASH", "ENDPOINTS", "NOTHING", "Endpoint", "Status", "other_method")


SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


@dataclass(frozen=True)
class Call:
    """One request of a client that may make it, and what the client is shown."""

    status: Status
    request: Request
    executor: ShownExecutor
    watch: Watch
    operate: bool
    errors: bool

    def path_param(self, name: str) -> str:
        return str(self.request.path_params[name])

    def job_json(self, job: ShownJob) -> dict[str, Any]:
        return job.to_dict(results=self.status.show_results, errors=self.errors)

    def job_response(self, job: ShownJob, status: int = 200) -> Response:
        response = Json(self.job_json(job), status)
        if not job.done():
            response.headers["Retry-After"] = "1"
        return response


# -- the page ------------------------------------------------------------------------------------------------


def file(name: str) -> Callable[[Call], Awaitable[Response]]:
    async def answer(call: Call) -> Response:
        return call.status.page.file(name)

    return answer


async def add_slash(call: Call) -> Response:
    """The page's URLs are relative to a folder. So is this one, whatever path a proxy has taken off."""
    scope = call.request.scope
    last = (scope["path"] or scope["root_path"]).rpartition("/")[2]
    return Response(status_code=307, headers={"Location": f"./{quote(last, safe='')}/"})


async def nothing(call: Call) -> Response:
    raise no_page()


# -- looking -------------------------------------------------------------------------------------------------


async def summary(call: Call) -> Response:
    found = await figures(call.executor, await call.executor.lanes(limit=1))
    return Json(found | {"operate": call.operate})


async def jobs(call: Call) -> Response:
    query = Query(call.request)
    limit = query.limit()
    found = await call.executor.jobs(
        states=query.states(),
        lane=query.text("lane"),
        function=query.text("function"),
        search=query.text("q"),
        before=query.before(),
        limit=limit + 1,  # one more tells whether there are more
    )
    shown, following = found[:limit], None
    if len(found) > limit:
        following = cursor_of(shown[-1].number)
    items = await dumped_in_steps(call.job_json(job) for job in shown)
    response = Json(b'{"items":%b,"next":%b}' % (items, dumped(following)))
    if following is not None:
        others = [pair for pair in call.request.query_params.multi_items() if pair[0] != "cursor"]
        # relative to the request's own path, as that is right behind every proxy
        response.headers["Link"] = f'<?{urlencode([*others, ("cursor", following)])}>; rel="next"'
    return response


async def job(call: Call) -> Response:
    seconds = Query(call.request).wait()
    preferred = preferred_wait(call.request) if seconds is None else None
    found = await _job(call)
    wait = seconds or preferred
    if wait and not found.done():
        await wait_for_end(call.request, call.executor, found, wait)
        found = await call.executor.now(found)
    response = call.job_response(found)
    if preferred is not None:
        response.headers["Preference-Applied"] = f"wait={preferred}"
    return response


async def _job(call: Call) -> ShownJob:
    found = await call.executor.job(call.path_param("id"))
    if found is None:
        raise Problem(404, "There is no such job: it was never added here, or ended too long ago to be kept.")
    return found


async def lanes(call: Call) -> Response:
    found = await call.executor.lanes(limit=Query(call.request).limit())
    return Json({"items": [lane.to_dict(errors=call.errors) for lane in found.items], "total": found.total})


async def events(call: Call) -> Response:
    seconds = call.status.stream_seconds
    return EventStream(call.request, call.executor, call.watch, seconds, call.errors, call.operate)


# -- operating -----------------------------------------------------------------------------------------------


async def cancel(call: Call) -> Response:
    found = await _job(call)
    if found.done():
        raise Problem(409, f"The job has ended: its state is {found.state.value}.")
    if not await call.executor.cancel(found):
        raise Problem(409, "The job runs in a thread, or is about to end: nothing can stop it.")
    return call.job_response(await call.executor.now(found), 202)


async def pause(call: Call) -> Response:
    lane = await _lane(call)
    await lane.pause()
    return await _lane_response(call, lane)


async def resume(call: Call) -> Response:
    lane = await _lane(call)
    await lane.resume()
    return await _lane_response(call, lane)


async def skip(call: Call) -> Response:
    head = await head_in_body(call.request)
    lane = await _lane(call)
    if await lane.skip_head(head) is None:
        await _refuse_other_head(lane, head)
        raise Problem(409, "Nothing waits in the lane, or the job at its head has just started.")
    return await _lane_response(call, lane)


async def retry(call: Call) -> Response:
    head = await head_in_body(call.request)
    lane = await _lane(call)
    if await lane.retry_head(head) is None:
        await _refuse_other_head(lane, head)
        raise Problem(409, "The lane has not stopped, so there is nothing to retry.")
    return await _lane_response(call, lane)


async def clear(call: Call) -> Response:
    lane = await _lane(call)
    await lane.clear()
    return await _lane_response(call, lane)


async def _lane(call: Call) -> ShownLane:
    found = await call.executor.find_lane(call.path_param("lane_id"))
    if found is None:
        raise Problem(404, "There is no such lane: nothing waits in it, and nothing has run in it lately.")
    return found


async def _refuse_other_head(lane: ShownLane, head: str | None) -> None:
    """The client means the job that it was shown: another one may be the head now."""
    if head is None:
        return
    current = await lane.head_id()
    if current != head:
        raise Problem(409, "Another job is the head of the lane now.", head=current)


async def _lane_response(call: Call, lane: ShownLane) -> Response:
    return Json((await lane.record()).to_dict(errors=call.errors))


# -- all of them ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
    """A method and a path, and what answers it."""

    name: str
    method: str
    path: str
    function: Callable[[Call], Awaitable[Response]]

    @property
    def operates(self) -> bool:
        return self.method == "POST"


ENDPOINTS = (
    Endpoint("page", "GET", "/", file(INDEX)),
    *(Endpoint("file", "GET", f"/{name}", file(name)) for name in FILES if name != INDEX),
    Endpoint("summary", "GET", "/summary", summary),
    Endpoint("jobs", "GET", "/jobs", jobs),
    Endpoint("job", "GET", "/jobs/{id}", job),
    Endpoint("cancel", "POST", "/jobs/{id}/cancel", cancel),
    Endpoint("lanes", "GET", "/lanes", lanes),
    *(
        Endpoint(function.__name__, "POST", f"/lanes/{{lane_id}}/{function.__name__}", function)
        for function in (pause, resume, skip, retry, clear)
    ),
    Endpoint("events", "GET", "/events", events),
)
ADD_SLASH = Endpoint("add_slash", "GET", "", add_slash)
NOTHING = Endpoint("nothing", "GET", "", nothing)


def other_method(endpoint: Endpoint) -> Endpoint:
    """What answers a method that the path of an endpoint does not have."""

    async def refuse(call: Call) -> Response:
        allowed = "GET, HEAD" if endpoint.method == "GET" else endpoint.method
        raise no_method(call.request.method, allowed)

    return Endpoint("other_method", "GET", endpoint.path, refuse)


class Status:
    """The settings of one face, and what its clients share."""

    def __init__(
        self, authorize: Authorize | None, show_results: bool, show_errors: bool | None, stream_seconds: float
    ) -> None:
        if authorize is not None and not callable(authorize):
            raise TypeError(f"authorize must be a function of the request, not {authorize!r}")
        if not stream_seconds > 0:
            raise ValueError(f"stream_seconds must be more than 0, not {stream_seconds!r}")
        self.authorize: Authorize | None = authorize
        self.show_results: bool = show_results
        self.show_errors: bool | None = show_errors
        self.stream_seconds: float = stream_seconds
        self.page: Page = Page()
        self._watches: WeakKeyDictionary[Any, Watch] = WeakKeyDictionary()

    def _watch_of(self, executor: Any) -> Watch:
        return self._watches.setdefault(executor, Watch())

    async def answer(self, endpoint: Endpoint, request: Request) -> Response:
        """What the client gets: also for what it may not do, and what goes wrong in a way that is known."""
        try:
            call = await self._admit(endpoint, request)
            response = await endpoint.function(call)
        except Problem as problem:
            response = problem.response()
        except ExecutorClosed:
            response = closed().response()
        except Exception as error:
            known = refused(error)
            response = Failed(error) if known is None else known.response()
        return secured(response)

    async def _admit(self, endpoint: Endpoint, request: Request) -> Call:
        if request.method not in SAFE:
            refuse_foreign(request)
        operate = await may_operate(request, self.authorize)
        if endpoint.operates and not operate:
            raise Problem(403, "You may look, but not operate: `authorize(request)` says so.")
        try:
            executor = executor_of(request)
        except LookupError as error:
            raise Problem(500, str(error)) from None
        errors = is_local(request) if self.show_errors is None else self.show_errors
        return Call(self, request, shown(executor), self._watch_of(executor), operate, errors)
