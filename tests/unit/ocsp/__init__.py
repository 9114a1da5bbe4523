"""Tests: ocsp."""
