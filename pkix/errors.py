"""Errors of the pkix package, by whose fault they are."""


class PkixError(Exception):
    """Base of all errors of this package."""


class RequesterError(PkixError):
    """The request is wrong; the requester can mend it.

    `field` names the part of the request, `remedy` says what to do about it.
    """

    def __init__(self, detail: str, *, field: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.remedy = remedy


class MalformedCsr(RequesterError):
    """The bytes are not a PKCS #10 request (RFC 2986), or not one that we can read."""


class ProofOfPossessionFailed(RequesterError):
    """The signature on the request does not verify with the key in it (RFC 2986 §4.2)."""


class KeyRejected(RequesterError):
    """The subject key is too weak, malformed or of a kind the profile does not allow."""


class ProfileViolation(RequesterError):
    """The request asks for something that the profile does not give."""


class ProfileError(PkixError):
    """A profile is wrong (operator). `key` names the place in its file, `remedy` says what to write there."""

    def __init__(self, detail: str, *, key: str, remedy: str) -> None:
        super().__init__(f"{key}: {detail}; {remedy}")
        self.detail = detail
        self.key = key
        self.remedy = remedy


class MalformedOcspRequest(PkixError):
    """The bytes are not an OCSPRequest that a responder may answer (RFC 6960 §4.1)."""


class LintError(PkixError):
    """A to-be-signed certificate breaks a rule: a bug or a bad profile, not the requester's fault.

    Its words name the rule and the field of the certificate, and may be told to everybody.
    """

    @property
    def detail(self) -> str:
        """Name the rule that is broken, and where."""
        return str(self)


class ContentRefused(LintError):
    """As `LintError`, but everything that breaks a rule is content of the request: names or key."""


class SignatureMismatch(PkixError):
    """A signature does not verify: broken hardware, a fault attack or the wrong key."""


class UnsupportedKey(PkixError):
    """No signature algorithm is defined for this kind of key."""
