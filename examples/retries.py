"""Retries that keep the order: the task itself tries again, and its lane waits for it.

If a retry goes to the end of the queue, newer tasks overtake it: `0 1 2 3 0`. Here stamina
(`pip install stamina`) retries inside the task, which stays at the head: `0 0 1 2 3`.

`python examples/retries.py` prints the attempts, in order.
"""

import anyio
import stamina

from fifo_background import SerialExecutor

attempts: list[int] = []


@stamina.retry(on=ConnectionError, attempts=3, wait_initial=0.01)
async def store(n: int) -> None:
    attempts.append(n)
    if attempts == [0]:
        raise ConnectionError("the database has just been restarted")


async def main() -> None:
    async with SerialExecutor() as executor:
        for n in range(4):
            executor.submit_nowait(store, n)
    print(*attempts)


if __name__ == "__main__":
    anyio.run(main)
