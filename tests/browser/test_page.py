"""The live page, in a real browser, of a real app under a real server.

Run it with `python -m nox -s page`. A test waits for what it expects to see.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import axe_playwright_python
import pytest
from playwright.sync_api import Locator, Page, expect
from starlette.exceptions import HTTPException
from starlette.requests import Request

import fifo_background.status
from fifo_background.status import watch
from tests.browser.app import HOSTILE, Site
from tests.browser.conftest import PATIENCE, Served, Visit

Serve = Callable[..., Served]
Open = Callable[..., Visit]

STATIC = Path(fifo_background.status.__file__).parent / "static"
(AXE,) = Path(axe_playwright_python.__file__).parent.rglob("axe.min.js")

# Settings of a browser's page; one that is magnified twice has half as many pixels of its own.
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "390 px": {"viewport": {"width": 390, "height": 844}},
    "200 % zoom": {"viewport": {"width": 640, "height": 500}, "device_scale_factor": 2},
}

# Frames that come only when a test lets them.
FRAMES = """
    const next = window.requestAnimationFrame.bind(window);
    let held = null;
    window.requestAnimationFrame = (draw) => (held ? held.push(draw) : next(draw));
    window.hold = () => { held = []; };
    window.letGo = () => {
        const draws = held;
        held = null;
        draws.forEach(next);
    };
"""

BAD_WORDS = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"),
    *("eval(", "new Function", " style=", "onclick="),
)


def lane(page: Page, name: str) -> Locator:
    return page.locator("#lanes > li").filter(
        has=page.locator("h3", has_text=re.compile(f"^{re.escape(name)}$"))
    )


def row(page: Page, number: int) -> Locator:
    return page.locator("#rows > tr").filter(
        has=page.locator('[data-part="number"]', has_text=re.compile(f"^{number}$"))
    )


def open_row(page: Page, number: int) -> None:
    row(page, number).locator("button.open").click()
    expect(page.locator("#job")).to_be_visible()


def drawn(page: Page) -> None:
    """Wait until the page has drawn what it knows: each part may take a frame, new elements several."""
    page.evaluate(
        """async () => {
            const made = () => document.querySelectorAll("#rows > tr, #lanes > li").length;
            for (let still = 0; still < 6;) {
                const before = made();
                await new Promise(requestAnimationFrame);
                still = made() === before ? still + 1 : 0;
            }
        }"""
    )


def until(page: Page, happened: Callable[[], Any]) -> None:
    """Wait for something that a handler of the page's events does here."""
    give_up = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < give_up
        page.wait_for_timeout(10)  # handlers run meanwhile


def numbers(page: Page) -> list[int]:
    found: list[int] = page.evaluate(
        """[...document.querySelectorAll('#rows [data-part="number"]')].map((one) => +one.textContent)"""
    )
    return found


def numbers_while_scrolled(page: Page, pixels: int) -> tuple[set[int], int]:
    """The numbers of all rows that one sees from the top to the end, and how many there were at most."""
    seen: set[int] = set()
    most, top = 0, 0
    while True:
        page.evaluate("(top) => { scroller.scrollTop = top; }", top)
        drawn(page)
        shown = numbers(page)
        assert shown == sorted(set(shown), reverse=True)
        seen.update(shown)
        most = max(most, len(shown))
        at_end, complete = page.evaluate(
            """[scroller.scrollTop + scroller.clientHeight >= scroller.scrollHeight - 1,
                document.querySelector("#table").getAttribute("aria-rowcount") !== "-1"]"""
        )
        if not at_end:
            top += pixels
        elif complete:  # else more are on their way
            return seen, most


def audit(page: Page) -> None:
    """axe finds nothing to complain of, and nothing is wider than the window."""
    drawn(page)
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))  # to which the page's policy does not apply
    run = "axe.run(document, {resultTypes: ['violations']})"
    found = page.evaluate(f"{run}.then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html)]))")
    assert found == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@contextmanager
def all_states(serve: Serve, **settings: Any) -> Iterator[Served]:
    """An app with a lane in each state."""
    served = serve(Site(**settings).app())
    for _ in range(3):
        served.add("stumbles", lane="billing", gate="charge")
    served.add("gated", lane="mail", gate="mail", count=2)
    served.add("short", lane="mail", count=9)
    served.add("hostile", lane="mail", gate="mail")
    served.add("short", lane="nightly", count=2)
    with served.held("/add/short/x", lane="player-7741", gate="never"):
        yield served
        served.open("mail")


# -- what it shows -----------------------------------------------------------------------------------------


def test_jobs_go_by(serve: Serve, visit: Open) -> None:
    """A hundred jobs go by, in order, and all of them are in the list at the end."""
    served = serve(Site().app())
    page = visit(served).page
    expect(page.locator("#noLanes")).to_contain_text("background_tasks.add_task")
    expect(page.locator("#noJobs")).to_have_text("No jobs yet.")
    page.evaluate(
        """() => {
            const figure = document.querySelector("#succeeded");
            window.seen = [];
            const note = () => seen.push(+figure.textContent);
            new MutationObserver(note).observe(figure, {subtree: true, childList: true, characterData: true});
        }"""
    )
    served.add("short", lane="player-7741", count=50)
    served.add("gated", lane="player-7741", gate="half")
    served.add("short", lane="player-7741", count=49)
    expect(page.locator("#succeeded")).to_have_text("50")
    expect(page.locator("#waiting")).to_have_text("49")
    served.open("half")
    expect(page.locator("#succeeded")).to_have_text("100")
    expect(page.locator("#waiting")).to_have_text("0")
    expect(page.locator("#pills button[value=all] span")).to_have_text("100")
    seen = page.evaluate("seen")
    assert seen == sorted(seen)
    expect(row(page, 100).locator(".state")).to_have_text("succeeded")
    assert numbers_while_scrolled(page, 360)[0] == set(range(1, 101))
    expect(lane(page, "player-7741")).to_contain_text("100 ended")


def test_result(serve: Serve, visit: Open) -> None:
    """The dialog shows the result of a finished job, and its address can be shared."""
    served = serve(Site().app())
    served.add("gated", gate="go")
    page = visit(served).page
    open_row(page, 1)
    expect(page.locator("#jobState")).to_have_text("running")
    expect(page.locator("#jobProgress")).to_have_text("5 of 10 rows written")
    served.open("go")
    expect(page.locator("#jobState")).to_have_text("succeeded")
    expect(page.locator("#jobResult")).to_contain_text('"gate": "go"')
    expect(page.locator("#jobRequest")).to_have_text("POST /add/gated")
    expect(page).to_have_url(re.compile("#job=1-"))
    shared = page.url
    page.keyboard.press("Escape")
    expect(page.locator("#job")).to_be_hidden()
    expect(page).to_have_url(re.compile("^[^#]+$"))  # a dialog tells that it has closed a little later
    other = visit(served, shared.removeprefix(served.url)).page
    expect(other.locator("#jobResult")).to_contain_text('"gate": "go"')


# What one opens before the dialog has told that it is closed: another row, the same one, another address.
OPENS = {
    "row": (2, "document.querySelectorAll('#rows .open')[0].click()"),
    "same row": (1, "document.querySelectorAll('#rows .open')[1].click()"),
    "address": (2, "location.hash = address"),
}


@pytest.mark.parametrize("way", OPENS)
def test_opened_while_closing(way: str, serve: Serve, visit: Open) -> None:
    """A dialog tells later that it has closed: a job that one has opened since stays open."""
    number, opens = OPENS[way]
    served = serve(Site().app())
    served.add("gated", gate="go", count=2)
    page = visit(served).page
    expect(row(page, 2)).to_be_visible()
    open_row(page, 1)
    expect(page.locator("#jobNumber")).to_have_text("1")
    address = f"#job={served.jobs()[0]['id']}"
    told = f"""(address) => new Promise((told) => {{
        const dialog = document.querySelector("#job");
        dialog.addEventListener("close", told, {{once: true}});
        dialog.close();
        {opens};
    }}).then(() => undefined)"""
    page.evaluate(told, address)
    drawn(page)
    expect(page).to_have_url(re.compile(f"#job={number}-"))
    expect(page.locator("#jobNumber")).to_have_text(str(number))
    expect(page.locator("#job")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("^[^#]+$"))
    expect(page.locator("#job")).to_be_hidden()
    served.open("go")


def test_answer_after_closing(serve: Serve, visit: Open) -> None:
    """What the app answers to an operation is not said in the dialog of another job."""
    served = serve(Site().app())
    served.add("gated", gate="go", count=3)
    page = visit(served).page
    routes: list[Any] = []
    page.route("**/cancel", lambda route: routes.append(route))
    open_row(page, 2)
    with page.expect_request("**/cancel"):
        page.locator("#jobCancel").click()
    page.keyboard.press("Escape")
    open_row(page, 3)
    expect(page.locator("#jobNumber")).to_have_text("3")
    until(page, lambda: routes)
    with page.expect_response("**/cancel") as response:
        routes[0].continue_()
    response.value.finished()
    expect(page.locator("#rows .state")).to_have_text(["waiting", "cancelled", "running"])
    drawn(page)
    expect(page.locator("#jobSays")).to_have_text("")
    served.open("go")


def test_progress_in_fractions(serve: Serve, visit: Open) -> None:
    """A number is written with a comma between thousands, but not behind the point."""
    served = serve(Site().app())
    served.add("measures", gate="go")
    page = visit(served).page
    note = lane(page, "default").locator('[data-part="note"]')
    expect(note).to_have_text("1,234.5678 of 1,000,000 MB")
    served.open("go")


def test_many_rows(serve: Serve, visit: Open) -> None:
    """Of 2,000 jobs, fewer than 60 rows are in the document, wherever one looks."""
    served = serve(Site().app())
    served.add("gated", gate="go")
    served.add("short", count=1999)
    page = visit(served).page
    expect(page.locator("#waiting")).to_have_text("1,999")
    expect(row(page, 2000)).to_be_visible()
    seen, most = numbers_while_scrolled(page, 2000)
    assert most < 60
    expect(page.locator("#table")).to_have_attribute("aria-rowcount", "2001")
    assert {1, 2000} <= seen


def test_slow_browser(serve: Serve, visit: Open) -> None:
    """Where drawing takes long, each part is drawn in a frame of its own, and all of them are."""
    served = serve(Site(stream_seconds=600).app())  # a stream that ends draws again
    served.add("gated", gate="go", count=12)  # more rows than are made in one frame
    page = visit(served).page
    page.add_init_script(
        """
        const now = performance.now.bind(performance);
        let late = 0;
        performance.now = () => now() + (late += 5);
        window.setInterval = () => 0;  // which would draw again each second
        """
    )
    page.reload()
    expect(page.locator("#running")).to_have_text("1")
    expect(page.locator("#lanes > li")).to_have_count(1)
    expect(row(page, 12).locator(".state")).to_have_text("waiting")
    expect(page.locator("#rows > tr")).to_have_count(12)
    open_row(page, 1)
    expect(page.locator("#jobState")).to_have_text("running")
    served.open("go")
    expect(page.locator("#succeeded")).to_have_text("12")
    expect(page.locator("#lanes > li")).to_contain_text("12 ended")
    expect(row(page, 12).locator(".state")).to_have_text("succeeded")
    expect(page.locator("#jobState")).to_have_text("succeeded")


def test_many_new_rows(serve: Serve, visit: Open) -> None:
    """What is made in several frames is all made, though nothing else asks for another one."""
    served = serve(Site(stream_seconds=600).app())  # a stream that ends draws again
    served.add("gated", gate="go", count=60)
    page = visit(served).page
    page.add_init_script("window.setInterval = () => 0;")  # which would draw again each second
    page.reload()
    expect(row(page, 60 - 20)).to_be_visible()
    page.get_by_role("button", name="Failed").click()
    expect(page.locator("#rows > tr")).to_have_count(0)
    page.get_by_role("button", name="All").click()
    expect(row(page, 60 - 20)).to_be_visible()


def test_rows_stay(serve: Serve, visit: Open) -> None:
    """Jobs that come above those that one sees do not move them, and what one scrolls to is there at once."""
    served = serve(Site().app())
    served.add("gated", gate="go")
    served.add("short", count=200)
    page = visit(served).page
    page.add_init_script(FRAMES)
    page.reload()
    expect(row(page, 201)).to_be_visible()
    first = """() => {
        const { x, y } = scroller.getBoundingClientRect();
        const row = document.elementFromPoint(x + 90, y + 51).closest("tr");
        return +row.querySelector('[data-part="number"]').textContent;
    }"""
    page.evaluate("scroller.scrollTop = 3600")
    drawn(page)
    assert page.evaluate(first) == 101
    for seen in (99, 97, 65):
        page.evaluate("hold()")
        with page.expect_response("**/jobs?limit=50") as response:
            served.add("short", lane="other", count=7)
        response.value.finished()
        page.evaluate("fetch('./summary').then((response) => response.json())")  # after it in line
        scroll = """(rows) => new Promise((told) => {
            scroller.addEventListener("scroll", () => told(), {once: true});
            scroller.scrollTop += rows * 36;
        })"""
        page.evaluate(scroll, page.evaluate(first) - seen)
        assert page.evaluate(first) == seen
        page.evaluate("letGo()")
        drawn(page)
        assert page.evaluate(first) == seen
    served.open("go")


def test_between_rows(serve: Serve, visit: Open) -> None:
    """To drag from one row to another is no click on a row."""
    served = serve(Site().app())
    served.add("gated", gate="go", count=5)
    page = visit(served).page
    expect(row(page, 1)).to_be_visible()
    row(page, 5).locator('[data-part="lane"]').hover()
    page.mouse.down()
    row(page, 3).locator('[data-part="lane"]').hover()
    page.mouse.up()
    expect(page.locator("#job")).to_be_hidden()
    served.open("go")


def test_ended_before(serve: Serve, visit: Open) -> None:
    """What has ended before one looks is counted, though more jobs than a list begins with wait."""
    served = serve(Site().app())
    served.add("short", lane="done", count=3)
    served.add("gated", gate="go", count=201)
    for job in served.jobs(q="done"):
        served.job(job["id"])
    page = visit(served).page
    told = "3 ended in the last 2 minutes, 0 of them failed"
    expect(page.locator("#spark")).to_have_attribute("aria-label", told)
    served.open("go")


def test_many_lanes(serve: Serve, visit: Open) -> None:
    """All lanes are drawn, in order, however many become visible at once."""
    served = serve(Site().app())
    names = [f"lane {number}" for number in range(30)]
    for name in names:
        served.add("gated", lane=name, gate="go")
    page = visit(served).page
    first = page.locator("#lanes > li")
    expect(first).to_have_count(12)
    page.locator("#allLanes").click()
    expect(first).to_have_count(30)
    listed = [lane["name"] for lane in served.client.get("/tasks/lanes").json()["items"]]
    assert sorted(listed) == sorted(names)
    expect(page.locator("#lanes h3")).to_have_text(listed)
    page.locator("#allLanes").click()
    expect(page.locator("#lanes h3")).to_have_text(listed[:12])
    served.open("go")


def test_search_and_states(serve: Serve, visit: Open) -> None:
    """The list shows what one asks for."""
    with all_states(serve) as served:
        page = visit(served).page
        page.locator("#pills button[value=failed]").click()
        expect(page.locator("#rows .state")).to_have_text(["failed"])
        page.locator("#pills button[value=all]").click()
        page.locator("#search").fill("STUMBLES")
        expect(page.locator("#rows .open")).to_have_text(["stumbles"] * 3)
        page.locator("#search").fill("nothing like it")
        expect(page.locator("#noJobs")).to_have_text("No job matches.")


@pytest.mark.parametrize(
    ("name", "text"), [("Straße", "STRASSE"), ("ΟΔΟΣΑ", "ΟΔΟΣ"), ("a.*(b[", ".*(b["), ("\0\u202e 👩‍👧", "👧")]
)
def test_search_in_any_script(name: str, text: str, serve: Serve, visit: Open) -> None:
    """What the app finds is listed: its way to compare texts is not the browser's."""
    served = serve(Site().app())
    served.add("short", lane=name, count=2)
    served.add("short", lane="other")
    page = visit(served).page
    expect(row(page, 3)).to_be_visible()
    page.locator("#search").fill(text)
    expect(row(page, 3)).to_have_count(0)
    expect(page.locator('#rows [data-part="number"]')).to_have_text(["2", "1"])


def test_jobs_that_cannot_be_loaded(serve: Serve, visit: Open) -> None:
    """In place of the jobs that one has asked for is why they do not come, not those of another list."""
    served = serve(Site().app())
    served.add("short", count=3)
    visited = visit(served)
    visited.allowed = ("422 (", "500 (")
    page = visited.page
    none, rows = page.locator("#noJobs"), page.locator("#rows > tr")
    expect(rows).to_have_count(3)
    page.locator("#search").fill("x" * 501)
    expect(none).to_have_text("q: has more than 500 characters")
    expect(rows).to_have_count(0)
    page.locator("#search").fill("")
    expect(rows).to_have_count(3)
    for state, status, why in (
        ("failed", 500, "The app answered 500."),
        ("succeeded", 200, "The app answered 200, but not in JSON."),
    ):
        page.unroute_all()
        page.route("**/jobs?*", lambda route, _, status=status: route.fulfill(status=status, body="<p>Hm"))
        page.locator(f"#pills button[value={state}]").click()
        expect(none).to_have_text(why)
        expect(rows).to_have_count(0)
    page.unroute_all()
    served.add("short")
    expect(rows).to_have_count(4)
    expect(none).to_be_hidden()


# -- what it operates --------------------------------------------------------------------------------------


def test_cancel(serve: Serve, visit: Open) -> None:
    """One that waits is canceled in its dialog."""
    served = serve(Site().app())
    served.add("gated", gate="go", count=2)
    page = visit(served).page
    open_row(page, 2)
    expect(page.locator("#jobBlocked")).to_contain_text("1 ahead")
    page.locator("#jobCancel").click()
    expect(page.locator("#jobState")).to_have_text("cancelled")
    expect(page.locator("#jobCancel")).to_be_hidden()
    served.open("go")
    expect(page.locator("#succeeded")).to_have_text("1")


def test_pause_and_resume(serve: Serve, visit: Open) -> None:
    """A paused lane starts nothing, until it is resumed."""
    served = serve(Site().app())
    served.add("gated", lane="mail", gate="go")
    page = visit(served).page
    mail = lane(page, "mail")
    mail.locator("[data-verb=pause]").click()
    expect(mail).to_have_attribute("data-state", "paused")
    served.add("short", lane="mail", count=3)
    served.open("go")
    expect(mail.locator(".why")).to_contain_text("Paused. 3 wait")
    expect(page.locator("#succeeded")).to_have_text("1")
    mail.locator("[data-verb=resume]").click()
    expect(page.locator("#succeeded")).to_have_text("4")
    expect(mail).to_have_attribute("data-state", "idle")


def test_retry_and_skip(serve: Serve, visit: Open) -> None:
    """A lane that has stopped runs its failed head again, or goes on without it."""
    served = serve(Site().app())
    for _ in range(2):
        served.add("stumbles", lane="billing", gate="charge")
    page = visit(served).page
    billing = lane(page, "billing")
    expect(billing.locator(".why")).to_have_text("Stopped: stumbles failed. 1 waits behind it.")
    expect(billing.locator('[data-part="note"]')).to_have_text("ValueError: card declined")
    billing.locator("[data-verb=skip]").click()
    expect(billing.locator(".why")).to_have_text("Stopped: stumbles failed. Nothing waits behind it.")
    served.open("charge")
    billing.locator("[data-verb=retry]").click()
    expect(page.locator("#succeeded")).to_have_text("1")
    expect(billing).to_have_attribute("data-state", "idle")


def test_stale_head(serve: Serve, visit: Open) -> None:
    """Where another job has become the head, nothing is skipped, and the page says so."""
    served = serve(Site().app())
    for _ in range(2):
        served.add("stumbles", lane="billing", gate="charge")
    visited = visit(served)
    visited.allowed = ("409 (Conflict)",)
    page = visited.page
    other = served.jobs(state="queued")[0]["id"]
    page.route("**/skip", lambda route: route.continue_(post_data=f'{{"head": "{other}"}}'))
    lane(page, "billing").locator("[data-verb=skip]").click()
    expect(page.locator("#toast")).to_have_text("Another job is the head of the lane now.")
    expect(page.locator("#waiting")).to_have_text("1")


def test_late_answer(serve: Serve, visit: Open) -> None:
    """An operation's answer that comes late does not undo what the stream has told since."""
    served = serve(Site().app())
    served.add("stumbles", lane="billing", gate="charge")
    page = visit(served).page
    billing = lane(page, "billing")
    expect(billing).to_have_attribute("data-state", "stopped")
    served.open("charge")
    answers: list[Any] = []
    page.route("**/retry", lambda route: answers.append((route, route.fetch())))
    billing.locator("[data-verb=retry]").click()
    expect(page.locator("#succeeded")).to_have_text("1")
    expect(billing).to_have_attribute("data-state", "idle")
    until(page, lambda: answers)
    ((route, answer),) = answers
    assert answer.json()["state"] == "busy"
    with page.expect_response("**/retry") as response:
        route.fulfill(response=answer)
    response.value.finished()
    drawn(page)
    expect(billing.locator("[data-verb=pause]")).not_to_have_attribute("aria-disabled", "true")
    assert billing.get_attribute("data-state") == "idle"


def test_clear(serve: Serve, visit: Open) -> None:
    """What waits in a lane is canceled once one has confirmed it."""
    served = serve(Site().app())
    served.add("gated", lane="mail", gate="go", count=4)
    page = visit(served).page
    for answer, waiting in (("#clear [data-close]", "3"), ("#clearYes", "0")):
        lane(page, "mail").locator("[data-verb=clear]").click()
        expect(page.locator("#clearText")).to_contain_text("3 waiting jobs will not run.")
        expect(page.locator("#clear [data-close]")).to_be_focused()
        page.locator(answer).click()
        expect(page.locator("#clear")).to_be_hidden()
        expect(page.locator("#waiting")).to_have_text(waiting)


def test_clear_says_how_many_there_are(serve: Serve, visit: Open) -> None:
    """What one is asked to confirm is true when one confirms it."""
    served = serve(Site().app())
    served.add("gated", lane="mail", gate="go", count=4)
    page = visit(served).page
    lane(page, "mail").locator("[data-verb=clear]").click()
    expect(page.locator("#clearText")).to_contain_text("3 waiting jobs will not run.")
    served.add("gated", lane="mail", gate="go", count=40)
    expect(page.locator("#clearText")).to_contain_text("43 waiting jobs will not run.")
    served.open("go")


def test_clear_when_lost(serve: Serve, visit: Open) -> None:
    """Where nothing can be cleared, the question stays instead of seeming to be answered."""
    served = serve(Site(stream_seconds=0.5).app())
    served.add("gated", lane="mail", gate="go", count=4)
    visited = visit(served)
    visited.allowed = ("ERR_", "EventSource")
    page, yes = visited.page, visited.page.locator("#clearYes")
    lane(page, "mail").locator("[data-verb=clear]").click()
    visited.context.set_offline(True)
    expect(yes).to_have_attribute("aria-disabled", "true")
    yes.click(force=True)
    expect(page.locator("#clear")).to_be_visible()
    visited.context.set_offline(False)
    expect(yes).not_to_have_attribute("aria-disabled", "true")
    yes.click()
    expect(page.locator("#clear")).to_be_hidden()
    expect(page.locator("#waiting")).to_have_text("0")
    served.open("go")


def test_read_only(serve: Serve, visit: Open) -> None:
    """Who may only look sees no operation, and gets a 403 for one."""
    served = serve(Site(authorize=lambda request: "read").app())
    for _ in range(2):
        served.add("stumbles", lane="billing", gate="charge")
    served.add("gated", lane="mail", gate="go", count=3)
    visited = visit(served)
    visited.allowed = ("403 (Forbidden)",)
    page = visited.page
    expect(page.locator("#lanes > li")).to_have_count(2)
    open_row(page, 5)
    expect(page.locator("#jobState")).to_have_text("waiting")
    drawn(page)
    expect(page.locator(".lane button[data-verb]")).to_have_count(8)
    expect(page.locator(".lane button[data-verb]:visible, #jobCancel:visible")).to_have_count(0)
    status = "fetch('./jobs/' + location.hash.slice(5) + '/cancel', {method: 'POST'}).then((r) => r.status)"
    assert page.evaluate(status) == 403
    served.open("go")


# -- by keyboard, and for who does not see it ----------------------------------------------------------------


def test_keyboard(serve: Serve, visit: Open) -> None:
    """Pause, resume and cancel by keyboard alone; the focus is never lost."""
    served = serve(Site().app())
    served.add("gated", lane="mail", gate="go", count=4)
    page = visit(served).page
    mail = lane(page, "mail")
    expect(mail).to_have_attribute("data-state", "busy")
    press_until(page, "Tab", mail.locator("[data-verb=pause]"))
    page.keyboard.press("Enter")
    expect(mail).to_have_attribute("data-state", "paused")
    expect(mail.locator("[data-verb=resume]")).to_be_focused()
    page.keyboard.press("Space")
    expect(mail).to_have_attribute("data-state", "busy")
    expect(mail.locator("[data-verb=pause]")).to_be_focused()
    press_until(page, "Tab", row(page, 4).locator("button"))
    page.keyboard.press("ArrowDown")
    expect(row(page, 3).locator("button")).to_be_focused()
    page.keyboard.press("Enter")
    press_until(page, "Tab", page.locator("#jobCancel"))
    page.keyboard.press("Enter")
    expect(page.locator("#jobState")).to_have_text("cancelled")
    expect(page.locator("#jobClose")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#job")).to_be_hidden()
    expect(row(page, 3).locator("button")).to_be_focused()
    served.open("go")


def press_until(page: Page, key: str, wanted: Locator) -> None:
    expect(wanted).to_be_visible()
    for _ in range(60):
        page.keyboard.press(key)
        if wanted.evaluate("(node) => node === document.activeElement"):
            return
    raise AssertionError(f"{key} does not lead to it")


def test_focus_stays(serve: Serve, visit: Open) -> None:
    """Live updates leave the focus where it is: in a lane, in the list, in the dialog."""
    served = serve(Site().app())
    served.add("gated", lane="mail", gate="go", count=2)
    page = visit(served).page
    ended = 0
    where = (lane(page, "mail").locator("[data-verb=pause]"), row(page, 2).locator("button"))
    for wanted in where:
        wanted.focus()
        page.evaluate("window.focused = document.activeElement")
        for other in range(4):
            served.add("short", lane=f"lane {other}", count=3)
            ended += 3
            expect(page.locator("#succeeded")).to_have_text(str(ended))
            expect(page.locator("#table")).to_have_attribute("aria-rowcount", str(ended + 3))
            assert page.evaluate("focused === document.activeElement && focused.isConnected")
    page.keyboard.press("Enter")
    expect(page.locator("#jobTitle")).to_have_text("Work.gated")
    page.locator("#jobCopy").focus()
    served.add("short", lane="mail 2", count=3)
    expect(page.locator("#succeeded")).to_have_text(str(ended + 3))
    expect(page.locator("#jobCopy")).to_be_focused()
    served.open("go")


def test_focus_in_a_lane_that_goes_down(serve: Serve, visit: Open) -> None:
    """A lane with the focus stays, though others need a look more than it does."""
    served = serve(Site().app())
    served.add("short", lane="quiet")
    page = visit(served).page
    pause = lane(page, "quiet").locator("[data-verb=pause]")
    pause.focus()
    for number in range(13):
        served.add("gated", lane=f"busy {number}", gate="go")
    expect(page.locator("#lanes h3")).to_have_text([*(f"busy {number}" for number in range(12)), "quiet"])
    expect(pause).to_be_focused()
    page.locator("#freeze").focus()
    expect(lane(page, "quiet")).to_have_count(0)
    served.open("go")


@pytest.mark.parametrize("look", LOOKS)
def test_accessible(look: str, serve: Serve, visit: Open) -> None:
    """axe finds nothing: in the page, in both dialogs, with a lane in each state."""
    with all_states(serve) as served:
        page = visit(served, **LOOKS[look]).page
        served.operate("nightly", "pause")
        for name, state in (
            ("billing", "stopped"),
            ("player-7741", "held"),
            ("nightly", "paused"),
            ("mail", "busy"),
        ):
            expect(lane(page, name)).to_have_attribute("data-state", state)
        served.add("short", lane="idle")
        expect(lane(page, "idle")).to_have_attribute("data-state", "idle")
        expect(page.locator("#rows > tr").nth(8)).to_be_visible()
        audit(page)
        lane(page, "mail").locator("button.head").click()
        expect(page.locator("#jobState")).to_have_text("running")
        audit(page)
        page.keyboard.press("Escape")
        lane(page, "mail").locator("[data-verb=clear]").click()
        expect(page.locator("#clear")).to_be_visible()
        audit(page)


@pytest.mark.parametrize("look", LOOKS)
def test_accessible_when_lost(look: str, serve: Serve, visit: Open) -> None:
    """axe finds nothing in a page that has lost the app, with a lane in each state."""
    with all_states(serve, stream_seconds=0.5) as served:
        visited = visit(served, **LOOKS[look])
        visited.allowed = ("ERR_", "EventSource")
        page = visited.page
        served.add("short", lane="idle")
        for name, state in (
            ("billing", "stopped"),
            ("player-7741", "held"),
            ("mail", "busy"),
            ("idle", "idle"),
        ):
            expect(lane(page, name)).to_have_attribute("data-state", state)
        visited.context.set_offline(True)
        expect(page.locator("#linkWord")).to_contain_text("Not connected since")
        audit(page)
        lane(page, "mail").locator("button.head").click()
        expect(page.locator("#jobTitle")).to_have_text("Work.gated")
        audit(page)


@pytest.mark.parametrize("width", [390, 1280])
def test_an_idle_lane_is_operated(width: int, serve: Serve, visit: Open) -> None:
    """Where one cannot point at a row, its operations are in sight."""
    served = serve(Site().app())
    served.add("short", lane="mail")
    touch = {"viewport": {"width": width, "height": 844}, "has_touch": True, "is_mobile": True}
    page = visit(served, **touch).page
    mail = lane(page, "mail")
    expect(mail).to_have_class("lane idle")
    expect(mail.locator(".operations")).to_have_css("opacity", "1")
    audit(page)
    mail.locator("[data-verb=pause]").tap()
    expect(mail).to_have_attribute("data-state", "paused")


def test_reduced_motion(serve: Serve, visit: Open) -> None:
    """Nothing moves for who does not want that."""
    served = serve(Site().app())
    for motion, moving in (("reduce", 0), ("no-preference", 1)):
        page = visit(served, reduced_motion=motion).page
        assert page.evaluate("document.getAnimations().length") == moving


def test_spoken(serve: Serve, visit: Open) -> None:
    """A stop is announced."""
    served = serve(Site().app())
    page = visit(served).page
    served.add("stumbles", lane="billing", gate="charge")
    expect(page.locator("#spoken")).to_contain_text("Lane billing stopped.")


# -- hostile texts -------------------------------------------------------------------------------------------


def test_hostile(serve: Serve, visit: Open) -> None:
    """Nothing of what an app's names, errors and results say runs, wherever the page shows it."""
    refuses = False

    def authorize(request: Request) -> bool:
        if refuses and request.method == "POST":
            raise HTTPException(418, HOSTILE)
        return True

    served = serve(Site(authorize=authorize, show_errors=True).app())
    path = f"/add/hostile/{quote(HOSTILE, safe='')}"
    served.post(path, lane=HOSTILE, gate="go", count=3)
    served.post(path, lane="result", gate="result")
    served.open("result")
    served.post(path, lane=f"failed {HOSTILE}", gate="fail")
    with served.held(path, lane=f"held {HOSTILE}", gate="go"):
        visited = visit(served)
        visited.allowed = ("418 (", "404 (Not Found)")
        page = visited.page
        mine = lane(page, HOSTILE)
        expect(mine.locator('[data-part="function"]')).to_have_text(HOSTILE)
        expect(mine.locator('[data-part="note"]')).to_have_text(f"1 of 2 {HOSTILE}")
        expect(mine.locator('[data-part="chip1"]')).to_contain_text(HOSTILE)
        expect(lane(page, f"held {HOSTILE}").locator(".why")).to_contain_text(HOSTILE[-20:])
        failed = lane(page, f"failed {HOSTILE}")
        expect(failed.locator(".why")).to_contain_text(HOSTILE)
        expect(failed.locator('[data-part="note"]')).to_have_text(f"{HOSTILE}: {HOSTILE}")
        expect(page.locator("#oldestLane")).to_contain_text(HOSTILE)
        for number, part in ((1, "#jobProgress"), (4, "#jobResult"), (5, "#jobError")):
            expect(row(page, number).locator('[data-part="function"]')).to_have_text(HOSTILE)
            open_row(page, number)
            expect(page.locator("#jobTitle")).to_have_text(HOSTILE)
            expect(page.locator("#jobRequest")).to_contain_text("hostile/")
            expect(page.locator(part)).to_contain_text("onerror=alert(1)")
            page.keyboard.press("Escape")
        refuses = True
        mine.locator("[data-verb=pause]").click()
        expect(page.locator("#toast")).to_have_text(HOSTILE)
        mine.locator("[data-verb=clear]").click()
        expect(page.locator("#clearTitle")).to_have_text(f"Clear {HOSTILE}?")
        page.keyboard.press("Escape")
        page.locator("#search").fill(HOSTILE[:30])
        expect(row(page, 1)).to_be_visible()
        page.evaluate("(id) => { location.hash = 'job=' + encodeURIComponent(id); }", HOSTILE)
        expect(page.locator("#jobMissing")).to_contain_text("There is no such")
        expect(page.locator("#spoken")).to_have_text("")
        assert page.locator("#main img, #main script, dialog img, dialog script, svg[onload]").count() == 0
    served.open("go")


def test_unknown_address(serve: Serve, visit: Open) -> None:
    """An address that names no job is told to name none."""
    served = serve(Site().app())
    visited = visit(served)
    visited.allowed = ("404 (",)
    page = visited.page
    for id in ("..", "%2e%2e", ".", "../lanes", "%", "?", "a/b", "\ud800", "x" * 5000):
        page.evaluate("(id) => { location.hash = `job=${id}`; }", id)
        expect(page.locator("#jobTitle")).to_have_text("Not known")
        expect(page.locator("#jobMissing")).to_have_text(re.compile("[.]$"))
        expect(page.locator("#jobKnown")).to_be_hidden()
        page.keyboard.press("Escape")
        expect(page).to_have_url(re.compile("^[^#]+$"))


@pytest.mark.parametrize("what", ["q", "cursor", "lane", "state", "function", "limit"])
def test_hostile_parameters(what: str, serve: Serve, visit: Open) -> None:
    """What an address says does not come back as markup."""
    served = serve(Site().app())
    visited = visit(served, f"/tasks/jobs?{what}={quote(HOSTILE)}", live=False)
    visited.allowed = ("422", "400", "404")
    assert visited.page.locator("script, img").count() == 0


def test_source() -> None:
    """The page makes no markup from text, and has no code or style of its own in its elements."""
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        for bad in BAD_WORDS:
            # `onclick` as a property is no attribute
            assert bad not in text.replace(".onclick =", ""), f"{bad} in {file.name}"


# -- where it is, and when it cannot be reached --------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "path"),
    [
        ("app", "/tasks"),
        ("nested", "/a/b/tasks"),
        ("fastapi", "/tasks"),
        ("app_at_root_path", "/api/tasks"),
        ("fastapi_behind_proxy", "/api/tasks"),
    ],
)
def test_paths(way: str, path: str, serve: Serve, visit: Open) -> None:
    """The page works wherever it is, with and without the last slash."""
    site = Site()
    served = serve(getattr(site, way)())
    prefix = "/api" if path.startswith("/api") else ""
    served.post(f"{prefix}/add/gated", gate="go", count=2)
    for asked in (path, f"{path}/"):
        page = visit(served, asked).page
        assert page.url == f"{served.url}{path}/"
        open_row(page, 1)
        expect(page.locator("#jobState")).to_have_text("running")
        page.keyboard.press("Escape")
    lane(page, "default").locator("[data-verb=pause]").click()
    expect(lane(page, "default")).to_have_attribute("data-state", "paused")
    open_row(page, 2)
    page.locator("#jobCancel").click()
    expect(page.locator("#jobState")).to_have_text("cancelled")
    served.post(f"{prefix}/open/go")


def test_refused(serve: Serve, visit: Open) -> None:
    """Who may not look reads why, and what to write."""
    served = serve(Site().app())
    visited = visit(served, live=False, extra_http_headers={"X-Forwarded-For": "1.2.3.4"})
    visited.allowed = ("403", "404")
    expect(visited.page.locator("body")).to_contain_text("StatusApp(authorize=may_see_tasks)")


def test_refused_later(serve: Serve, visit: Open) -> None:
    """Who may no longer look reads so in the page, which keeps nothing in sight."""
    allowed = True
    served = serve(Site(authorize=lambda request: allowed, stream_seconds=0.5).app())
    served.add("short")
    visited = visit(served)
    visited.allowed = ("403 (Forbidden)", "EventSource")
    page = visited.page
    open_row(page, 1)
    allowed = False
    expect(page.locator("#refusedDetail")).to_have_text(
        "You may not look at this: `authorize(request)` says so."
    )
    expect(page.locator("#data")).to_be_hidden()
    expect(page.locator("#job")).to_be_hidden()
    audit(page)


def test_streams_end_and_begin(serve: Serve, visit: Open) -> None:
    """A stream that ends by itself is no loss: the next one goes on behind the last event."""
    served = serve(Site(stream_seconds=0.3).app())
    visited = visit(served)
    page = visited.page
    page.evaluate(
        """() => {
            const link = document.querySelector("#link");
            window.words = [];
            const note = () => words.push(document.querySelector("#linkWord").textContent);
            new MutationObserver(note).observe(link, {subtree: true, childList: true, characterData: true});
        }"""
    )
    for count in (1, 2, 3):
        with page.expect_response("**/events*"):
            served.add("short")
        expect(page.locator("#succeeded")).to_have_text(str(count))
    assert set(page.evaluate("words")) <= {"Live"}
    expect(page.locator('#rows [data-part="number"]')).to_have_text(["3", "2", "1"])


def test_lost_and_back(serve: Serve, visit: Open) -> None:
    """Without the app the page stands still and says so; it goes on when an app is there again."""
    served = serve(Site().app())
    served.add("gated", lane="mail", gate="go")
    visited = visit(served)
    visited.allowed = ("ERR_", "EventSource")
    page = visited.page
    expect(row(page, 1)).to_be_visible()
    served.stop()
    expect(page.locator("#linkWord")).to_contain_text("Not connected since")
    expect(page.locator("#data")).to_have_class("data lost")
    expect(page.locator(".lane button[data-verb]:not([aria-disabled])")).to_have_count(0)
    again = serve(Site().app(), served.port)
    again.add("short", lane="mail", count=3)
    expect(page.locator("#linkWord")).to_have_text("Live")
    expect(page.locator("#succeeded")).to_have_text("3")
    expect(row(page, 3)).to_be_visible()
    expect(page.locator("#data")).to_have_class("data")


def test_job_of_an_app_that_is_gone(serve: Serve, visit: Open) -> None:
    """A job that ran when the app ended is not said to run in the next one."""
    served = serve(Site().app())
    served.add("gated", gate="go")
    visited = visit(served)
    visited.allowed = ("ERR_", "EventSource", "404 (")
    page = visited.page
    open_row(page, 1)
    expect(page.locator("#jobState")).to_have_text("running")
    served.stop()
    serve(Site(stream_seconds=600).app(), served.port)
    expect(page.locator("#jobMissing")).to_contain_text("There is no such job")
    expect(page.locator("#jobKnown")).to_be_hidden()


def test_silent_connection(serve: Serve, visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that hears nothing, as its connection has broken without a word, tries another and says so."""
    monkeypatch.setattr(watch, "HEARTBEAT", 0.1)
    served = serve(Site(stream_seconds=600).app())
    served.add("gated", gate="go")
    visited = visit(served, live=False)
    visited.allowed = ("ERR_",)
    page, word = visited.page, visited.page.locator("#linkWord")
    page.clock.install()
    page.reload()
    expect(page.locator("#running")).to_have_text("1")
    visited.requests.clear()
    for _ in range(3):  # as long as it hears the app, it stays
        page.evaluate(
            """() => {
                window.told = 0;
                window.other = new EventSource("./events");
                other.addEventListener("unchanged", () => { told += 1; });
            }"""
        )
        until(page, lambda: page.evaluate("told > 1"))
        page.evaluate("other.close()")
        page.clock.fast_forward(10_000)
    assert not any("after=" in url for url in visited.requests)
    monkeypatch.setattr(watch, "HEARTBEAT", 3600)
    page.wait_for_timeout(300)
    page.route("**/events?*", lambda route: None)  # no answer, as nothing arrives there
    with page.expect_request("**/events?after=*"):
        page.clock.fast_forward(20_000)
    page.clock.fast_forward(4_000)
    expect(word).to_contain_text("Not connected since")
    page.unroute_all()
    page.clock.fast_forward(20_000)
    expect(word).to_have_text("Live")
    served.open("go")


def test_request_without_an_answer(serve: Serve, visit: Open) -> None:
    """The list is brought up to date, though the answer to an earlier look has never come."""
    served = serve(Site().app())
    served.add("gated", gate="go")
    visited = visit(served, live=False)
    visited.allowed = ("ERR_",)
    page = visited.page
    page.add_init_script(
        "const limit = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = (ms) => limit(ms / 100);"
    )
    page.reload()
    expect(row(page, 1)).to_be_visible()
    unanswered: list[Any] = []
    page.route("**/jobs?limit=50", lambda route: unanswered.append(route), times=1)
    served.add("gated", gate="go")
    until(page, lambda: unanswered)
    served.add("gated", gate="go")
    expect(row(page, 3)).to_be_visible()
    served.open("go")


def test_freeze_and_hide(serve: Serve, visit: Open) -> None:
    """A frozen page stands still, and then goes on behind what it has seen; a hidden one has no stream."""
    served = serve(Site().app())
    visited = visit(served)
    page = visited.page
    freeze = page.locator("#freeze")
    freeze.click()
    expect(page.locator("#linkWord")).to_contain_text("Frozen at")
    served.add("short", count=3)
    for job in served.jobs():
        served.job(job["id"])
    drawn(page)
    expect(page.locator("#succeeded")).to_have_text("0")
    with page.expect_request("**/events?after=*"):
        freeze.click()
    expect(page.locator("#succeeded")).to_have_text("3")
    tell = """(hidden) => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(tell, True)
    served.add("short")
    served.job(served.jobs()[0]["id"])
    drawn(page)
    expect(page.locator("#succeeded")).to_have_text("3")
    with page.expect_request("**/events?after=*"):
        page.evaluate(tell, False)
    expect(page.locator("#succeeded")).to_have_text("4")


# A tick as the last one, but changed; as if the app told it.
TELL = """
    const Source = window.EventSource;
    window.EventSource = class extends Source {
        constructor(url) {
            super(url);
            window.source = this;
            this.addEventListener("tick", (event) => { window.told ??= event; });
        }
    };
    window.tell = (lanes) => {
        const data = JSON.parse(told.data);
        Object.assign(data, { ended: [], time: new Date(Date.parse(data.time) + 1).toISOString() });
        data.lanes.items = lanes(data.lanes.items);
        const init = { data: JSON.stringify(data), lastEventId: told.lastEventId };
        source.dispatchEvent(new MessageEvent("tick", init));
    };
"""


def test_focus_when_few_rows_become_many(serve: Serve, visit: Open) -> None:
    """The row in the place of the one with the focus takes over, though not all rows are made at once."""
    served = serve(Site(stream_seconds=600).app())
    served.add("gated", gate="go", count=3)
    page = visit(served).page
    page.add_init_script(TELL)
    page.reload()
    page.get_by_role("button", name="Waiting").click()
    expect(page.locator("#rows > tr")).to_have_count(2)
    row(page, 2).locator("button.open").click()
    page.locator("#jobClose").click()
    expect(row(page, 2).locator("button.open")).to_be_focused()
    one = served.jobs()[0]
    items = [{**one, "number": number, "id": f"id {number}"} for number in range(30, 15, -1)]
    page.route("**/jobs?limit=50&*", lambda route: route.fulfill(json={"items": items, "next": None}))
    page.evaluate("tell(() => [])")
    expect(row(page, 16).locator("button.open")).to_be_focused()
    served.open("go")


def test_rows_in_their_places(serve: Serve, visit: Open) -> None:
    """A row that was there is not moved up by those above it that are not made yet."""
    served = serve(Site(stream_seconds=600).app())
    served.add("gated", gate="go", count=30)
    served.add("stumbles", lane="other")
    served.add("gated", gate="go", count=15)
    page = visit(served).page
    expect(row(page, 46)).to_be_visible()
    page.get_by_role("button", name="Failed").click()
    expect(page.locator("#rows > tr")).to_have_count(1)
    displaced = page.evaluate(
        """async () => {
            document.querySelector("#pills [value=all]").click();
            let displaced = 0;
            for (let frame = 0; frame < 40; frame++) {
                await new Promise(requestAnimationFrame);
                const rows = document.querySelectorAll("#rows > tr");
                if (rows.length > 1)
                    for (const row of rows)
                        displaced += row.offsetTop !== (row.getAttribute("aria-rowindex") - 2) * 36;
            }
            return displaced;
        }"""
    )
    assert displaced == 0
    served.open("go")


def test_ended_before_and_no_list(serve: Serve, visit: Open) -> None:
    """What has ended before is counted, though the list does not come."""
    served = serve(Site(stream_seconds=600).app())
    served.add("short", lane="done", count=3)
    for job in served.jobs():
        served.job(job["id"])
    page = visit(served).page
    page.add_init_script(TELL)
    held: list[Any] = []
    page.route("**/jobs?limit=200", lambda route: held.append(route))
    page.reload()
    told = "3 ended in the last 2 minutes, 0 of them failed"
    expect(page.locator("#spark")).to_have_attribute("aria-label", told, timeout=5000)
