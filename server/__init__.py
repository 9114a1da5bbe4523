"""The certmill application: the authority, its storage, its API, its command line."""

__version__ = "0.1.0"
