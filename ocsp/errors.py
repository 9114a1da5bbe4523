"""Errors of the ocsp package: all of them the operator's."""


class OcspError(Exception):
    """Base of all errors of this package."""


class StoreError(OcspError):
    """The response store cannot be read or written."""


class StoreBroken(StoreError):
    """The store has stopped for good in this process; another process can open it."""


class StoreFull(StoreError):
    """The response store has reached its configured size."""


class ListenError(OcspError):
    """The public address cannot be listened on."""


class AuthorityUnavailable(OcspError):
    """The authority did not sign an answer in time."""
