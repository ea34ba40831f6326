"""The command line, one module per command; each imports its needs late, for a fast `--help`."""
