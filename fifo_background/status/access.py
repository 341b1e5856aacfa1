"""Who may look, and who may operate. Closed by default: only clients on this machine, and no foreign page."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from ipaddress import IPv6Address, ip_address
from typing import Literal
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from fifo_background.status.problems import Problem

__all__ = ("Authorize", "Right", "is_local", "may_operate", "refuse_foreign")

Right = Literal["read", "operate"] | bool
Authorize = Callable[[Request], Right | Awaitable[Right]]

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
# Headers by which proxies name themselves, their clients, or what the client has asked for.
OF_A_PROXY = re.compile(
    r"via|cdn-loop|(x-)?(forwarded|original)(-.*)?|(cf|x-envoy)-.*"
    r"|(.*-)?(client|connecting|proxyuser|real|remote|socket|user)-?ip(v6)?"
)
OWN_SITE = frozenset({"same-origin", "none"})
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
HOW_TO_OPEN = (
    "To decide who may, write `StatusApp(authorize=may_see_tasks)`, or `router(authorize=may_see_tasks)`: "
    '`may_see_tasks(request)` returns True, "read" or False.'
)


async def may_operate(request: Request, authorize: Authorize | None) -> bool:
    """Whether the client may operate; one that may not even look gets a 403."""
    if authorize is None:
        refusal = why_not_local(request)
        if refusal is not None:
            raise Problem(403, f"Only clients on this machine may look: {refusal}. {HOW_TO_OPEN}")
        return True
    right = await _asked(request, authorize)
    if right is True or right == "operate":
        return True
    if right == "read":
        return False
    if not right:
        raise Problem(403, "You may not look at this: `authorize(request)` says so.")
    raise TypeError(f'authorize(request) must return True, "operate", "read" or False, not {right!r}')


async def _asked(request: Request, authorize: Authorize) -> Right:
    try:
        right = authorize(request)
        return await right if isawaitable(right) else right
    except HTTPException as error:
        raise Problem.of(error) from error


# -- this machine --------------------------------------------------------------------------------------------


def is_local(request: Request) -> bool:
    """Whether the client is a program on this machine, as far as can be told."""
    return why_not_local(request) is None


def why_not_local(request: Request) -> str | None:
    """Why the client may be elsewhere. None if it is on this machine, and no proxy says that it is one."""
    for name in request.headers:
        if OF_A_PROXY.fullmatch(name):
            return f"the header {name} says that a proxy passed the request on"
    if request.client is None or not _is_loopback(request.client.host):
        return "the client's address is not a loopback address"
    hosts = request.headers.getlist("host")
    if len(hosts) != 1 or _without_port(hosts[0].lower()) not in LOCAL_HOSTS:
        return "the Host header does not name localhost"  # a foreign page may have its name lead here
    return None


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


# -- foreign pages -------------------------------------------------------------------------------------------


def refuse_foreign(request: Request) -> None:
    """Refuse what a page of another site has a browser send. What is no browser sends neither header."""
    sites = request.headers.getlist("sec-fetch-site")
    if sites:
        if not OWN_SITE.issuperset(sites):
            raise Problem(403, f"A page of another site sent this (Sec-Fetch-Site: {', '.join(sites)}).")
        return
    origins = request.headers.getlist("origin")
    if not all(_is_own(origin, request.headers.get("host", "")) for origin in origins):
        raise Problem(403, "A page of another site sent this: its Origin is not this Host.")


def _is_own(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    port = DEFAULT_PORTS.get(parts.scheme)
    if port is None:
        return False
    return bool(parts.netloc) and parts.netloc.removesuffix(port) == host.lower().removesuffix(port)
