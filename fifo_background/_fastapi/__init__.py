"""Everything for FastAPI; used only where FastAPI is installed, except `spans`, which works without it."""
