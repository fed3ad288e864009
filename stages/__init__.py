"""Entry points: one a DVC stage, and the glip command."""
