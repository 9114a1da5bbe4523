"""Unit tests of the signer pool."""
