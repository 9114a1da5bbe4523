"""One module at a time, injected clocks."""
