"""Records, shards, pictures, and readers of raw data sets."""
