"""Load tests and benchmarks; nothing imports them."""
