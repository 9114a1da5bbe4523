"""The `certmill` command line."""
