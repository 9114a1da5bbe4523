"""Batches: up to 100,000 requests in one call, worked off row by row, each exactly once."""
