"""Captions by a model, for web pairs whose own say little."""
