"""Entry points: a module for every command, and ``glip``, which runs them by name."""
