"""The source of a PKCS #11 module that breaks on command; see tests/support/faulty_module.py."""
