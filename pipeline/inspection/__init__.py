"""Looking at shards of grounding records: figures, single pairs, queries, pages, other formats."""
