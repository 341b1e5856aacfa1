"""Takes `docs/status-light.png` and `docs/status-dark.png` from the real page, of `examples/tasks_ui.py`.

`python scripts/take_pictures.py` runs the example with uvicorn for about a minute, queues tasks, pauses a
lane, and waits for a payment that stops one. It needs Playwright and Chromium. Look at the pictures before
you commit them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import async_playwright

ROOT = Path(__file__).parent.parent
PORT = 8471
URL = f"http://127.0.0.1:{PORT}"
SCHEMES = ("light", "dark")


async def lane(client: httpx.AsyncClient, name: str) -> Any:
    listed = (await client.get("/tasks/lanes")).json()["items"]
    return next(one for one in listed if one["name"] == name)


async def until_answers(client: httpx.AsyncClient) -> None:
    for _ in range(100):
        try:
            await client.get("/tasks/summary")
        except httpx.ConnectError:
            await asyncio.sleep(0.2)
        else:
            return
    raise SystemExit(f"{URL} does not answer")


async def until_a_payment_stops(client: httpx.AsyncClient) -> None:
    """Payments, until one has failed behind some others, with more in line."""
    for _ in range(60):
        for amount in range(10, 30, 10):
            await client.post(f"/payments/{amount}")
        await asyncio.sleep(1.5)
        payments = await lane(client, "payments")
        if payments["state"] == "stopped":
            if payments["waiting"] > 2 and len(payments["recent"]) > 4:
                return
            await client.post(f"/tasks/lanes/{payments['id']}/retry")
    raise SystemExit("no payment has stopped the lane")


async def take(client: httpx.AsyncClient) -> None:
    await client.post("/task", json={"count": 9})
    await asyncio.sleep(24)  # so that there is a past
    await client.post("/task", json={"count": 60})
    await until_a_payment_stops(client)
    reports = await lane(client, "reports")
    await client.post(f"/tasks/lanes/{reports['id']}/pause")
    async with async_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        pages = {}
        for scheme in SCHEMES:
            page = await browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
            await page.goto(f"{URL}/tasks/")
            pages[scheme] = page
        while (await lane(client, "reports"))["running"] is not None:
            await asyncio.sleep(0.5)
        await asyncio.sleep(9)
        for scheme, page in pages.items():
            await page.screenshot(path=ROOT / "docs" / f"status-{scheme}.png")
        await browser.close()


async def main() -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [
        "-m",
        "uvicorn",
        "tasks_ui:app",
        "--app-dir",
        "examples",
        "--port",
        str(PORT),
        "--log-level",
        "critical",
    ]
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        async with httpx.AsyncClient(base_url=URL, timeout=30) as client:
            await until_answers(client)
            await take(client)
    finally:
        server.kill()
        await server.wait()


if __name__ == "__main__":
    asyncio.run(main())
