"""Where tasks wait when one process is not enough. Imported only where an app asks for it."""
