"""Runs jobs: on an event loop, in worker threads, and to a clean end."""
