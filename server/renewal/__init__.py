"""Certificates that follow others: when, and that they are of the same holder."""
