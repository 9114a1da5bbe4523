"""A client of certmill's API for ministry systems; start at `api.py`. It needs nothing else of this repository."""
