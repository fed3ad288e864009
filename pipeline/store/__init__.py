"""What all stages keep: records, shards, pictures, and the places that they rest in."""
