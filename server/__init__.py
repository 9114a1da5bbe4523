"""The certmill application: the authority, its storage, its API, its command line."""
