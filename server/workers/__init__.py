"""Processes beside the authority for work that would hold its loop up: started, watched, replaced, ended."""
