"""The library that the stages call."""
