"""PKCS #11 URIs (RFC 7512): which library, which token, which object. Text in, value out; no I/O.

Stricter than the RFC where a mistake would go unseen: an attribute that we do not know is refused unless its
name says that it is a vendor's (`x-…`, or `vendor-…` as in the RFC's examples), and so is a PIN.
"""

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args
from urllib.parse import quote, unquote_to_bytes

ObjectType = Literal["public", "private", "cert", "secret-key", "data"]

_SCHEME = "pkcs11:"
_QUERY = {"pin-source": "pin_source", "module-name": "module_name", "module-path": "module_path"}
_VENDOR_PREFIXES = ("x-", "vendor-")
# RFC 7512 §2.3, pk11-path-res-avail and pk11-query-res-avail; "~-._", letters and digits are unreserved.
_PATH_AVAILABLE = ":[]@!$'()*+,=&"
_QUERY_AVAILABLE = ":[]@!$'()*+,=/?|"
_UNRESERVED = r"A-Za-z0-9._~\-"
_NOT_PATH = re.compile(rf"[^{_UNRESERVED}%{re.escape(_PATH_AVAILABLE)}]")
_NOT_QUERY = re.compile(rf"[^{_UNRESERVED}%{re.escape(_QUERY_AVAILABLE)}]")
_LARGEST_SLOT_ID = 2**64 - 1  # CK_ULONG


class Pkcs11UriError(ValueError):
    """The text is no PKCS #11 URI that we accept (operator): one line with the attribute and the remedy.

    It never quotes the value of an attribute that it does not know, which may be a secret.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Pkcs11Uri:
    """The attributes of a PKCS #11 URI, decoded; None where absent, which is not the same as empty.

    `str()` gives the canonical form: attributes in the order below, nothing encoded that need not be, except
    `=` (so that no value looks like an attribute) and every byte of `id` (RFC 7512 §2.3). It holds no secret:
    `pin_source` says where a PIN is, not what it is.
    """

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    library_manufacturer: str | None = None
    library_description: str | None = None
    library_version: str | None = None
    slot_id: int | None = None
    slot_manufacturer: str | None = None
    slot_description: str | None = None
    object: str | None = None
    id: bytes | None = None
    type: ObjectType | None = None
    pin_source: str | None = None
    module_name: str | None = None
    module_path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URI; raises `Pkcs11UriError`. Everything in it is significant, white space too."""
        if text[: len(_SCHEME)].lower() != _SCHEME:
            raise Pkcs11UriError("no PKCS #11 URI: write pkcs11:token=… or pkcs11:object=… (RFC 7512)")
        if "pin-value=" in text.lower():
            raise Pkcs11UriError(
                "attribute pin-value: a PIN in a URI ends up in files, process lists and logs; "
                "remove it and say with pin-source where the PIN is, for example pin-source=file:/etc/certmill/pin"
            )
        path, _, query = text[len(_SCHEME) :].partition("?")
        found: dict[str, Any] = {}
        for attribute in path.split(";") if path else []:
            _add(found, attribute, _PATH, _NOT_PATH, "before the question mark")
        for attribute in query.split("&") if query else []:
            _add(found, attribute, _QUERY, _NOT_QUERY, "after the question mark")
        return cls(**found)

    @property
    def attributes(self) -> dict[str, str | bytes | int]:
        """The attributes that are there, by the names that the RFC gives them."""
        values = ((name, getattr(self, field)) for name, field in [*_PATH.items(), *_QUERY.items()])
        return {name: value for name, value in values if value is not None}

    def __str__(self) -> str:
        there = self.attributes
        path = ";".join(_written(name, there[name], _PATH_AVAILABLE) for name in _PATH if name in there)
        query = "&".join(_written(name, there[name], _QUERY_AVAILABLE) for name in _QUERY if name in there)
        return _SCHEME + path + ("?" + query if query else "")


_PATH = {f.name.replace("_", "-"): f.name for f in fields(Pkcs11Uri) if f.name not in _QUERY.values()}


def _add(
    found: dict[str, Any], attribute: str, known: dict[str, str], unavailable: re.Pattern[str], place: str
) -> None:
    name, equals, value = attribute.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise Pkcs11UriError(f"every attribute {place} must be written name=value; one is not")
    if name.startswith(_VENDOR_PREFIXES):
        return
    if name not in known:
        if name in _PATH or name in _QUERY:
            raise Pkcs11UriError(f"attribute {name}: it cannot stand {place}; move it to the other side")
        raise Pkcs11UriError(f"attribute {name}: unknown {place}; correct its name or remove it")
    if known[name] in found:
        raise Pkcs11UriError(f"attribute {name}: it is there twice; keep one")
    found[known[name]] = _value(name, value, unavailable)


def _value(name: str, text: str, unavailable: re.Pattern[str]) -> str | bytes | int:
    wrong = unavailable.search(text)
    if wrong:
        encoded = quote(wrong[0], safe="", errors="replace")
        raise Pkcs11UriError(f"attribute {name}: {wrong[0]!r} must be written {encoded}")
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise Pkcs11UriError(f"attribute {name}: two hexadecimal digits must follow a %; write % itself as %25")
    data = unquote_to_bytes(text)
    if name == "id":
        return data
    try:
        value = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Pkcs11UriError(f"attribute {name}: not UTF-8; percent-encode the bytes of its UTF-8 form") from None
    return _typed(name, value)


def _typed(name: str, value: str) -> str | int:
    if name == "type" and value not in get_args(ObjectType):
        raise Pkcs11UriError(f"attribute type: must be one of {', '.join(get_args(ObjectType))}")
    if name == "library-version" and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        raise Pkcs11UriError("attribute library-version: must be a number or two with a dot, for example 2.40")
    if name != "slot-id":
        return value
    if not re.fullmatch(r"[0-9]{1,20}", value) or int(value) > _LARGEST_SLOT_ID:
        raise Pkcs11UriError("attribute slot-id: must be a decimal number below 2^64")
    return int(value)


def _written(name: str, value: str | bytes | int, available: str) -> str:
    if isinstance(value, bytes):
        return f"{name}=" + "".join(f"%{byte:02X}" for byte in value)
    return f"{name}={quote(str(value), safe=available.replace('=', ''))}"
