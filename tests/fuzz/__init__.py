"""Hostile input, a little of it at every run; `make fuzz` sends a hundred thousand."""
