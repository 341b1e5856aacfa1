pytest_plugins = ["fifo_background.testing.plugin"]
