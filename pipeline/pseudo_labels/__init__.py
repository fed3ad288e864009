"""A teacher labels web pairs; looking at the result."""
