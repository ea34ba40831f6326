"""Grade programs: what a test asks of them is computed in a sandbox, what it expects never goes there."""
