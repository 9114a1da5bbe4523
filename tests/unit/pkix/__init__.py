"""Tests: pkix."""
