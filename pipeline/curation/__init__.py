"""Web pairs: which are worth a teacher's time."""
