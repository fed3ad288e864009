"""Noun phrases of captions."""
