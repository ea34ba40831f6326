"""Grade programs: a sandbox computes what a test asks of them, and never sees what it expects."""
