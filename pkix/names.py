"""Names that keep integers and byte strings of different meaning apart."""

from typing import NewType

SerialNumber = NewType("SerialNumber", int)
"""A certificate serial number: positive, below 2**159 (RFC 5280 §4.1.2.2)."""

TbsDer = NewType("TbsDer", bytes)
"""The DER of a to-be-signed structure: TBSCertificate, TBSCertList or ResponseData."""

CertificateDer = NewType("CertificateDer", bytes)
"""The DER of a signed Certificate."""


def serial_hex(serial: int) -> str:
    """Write a serial number as lower-case hex of whole octets, as it stands in URLs and the database."""
    text = f"{serial:x}"
    return text if len(text) % 2 == 0 else "0" + text
