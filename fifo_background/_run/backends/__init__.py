"""What differs from event loop to event loop, and the worker threads."""
