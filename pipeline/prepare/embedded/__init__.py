"""The emoji scenes that ship with the project."""
