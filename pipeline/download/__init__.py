"""Pictures of lists of URLs, into tar shards."""
