"""Benchmarks that print ratios of figures from one run, because seconds differ between machines."""
