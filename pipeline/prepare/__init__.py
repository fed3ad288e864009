"""Raw data sets into records: readers, checks, and the stage over Ray."""
