"""A client of `tasks_ui.py`: it queues tasks, and follows each one to its result.

Run it with `python tasks_client.py`, or with another number and URL: `tasks_client.py 20 http://127.0.0.1:8000`.
"""

import asyncio
import sys

import httpx


async def follow(client: httpx.AsyncClient, job_id: str) -> None:
    while True:
        answer = await client.get(f"/tasks/jobs/{job_id}", params={"wait": 20})
        job = answer.raise_for_status().json()
        if job["done"]:
            print(job["number"], job["lane"]["name"], job["state"], job["result"] or job["error"])
            return


async def main(count: int = 10, url: str = "http://127.0.0.1:8000") -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        answer = await client.post("/task", json={"count": count})
        queued = answer.raise_for_status().json()
        print("queued", queued["queued"])
        await asyncio.gather(*[follow(client, job_id) for job_id in queued["jobs"]])


if __name__ == "__main__":
    asyncio.run(main(*[int(argument) for argument in sys.argv[1:2]], *sys.argv[2:3]))
