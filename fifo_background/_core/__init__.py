"""Who is next, and every move of a job: no await, no thread, no event loop, no logging, no ASGI."""
