"""Benchmarks, their metrics, and the report."""
