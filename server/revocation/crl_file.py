"""The published CRL as a file, which only ever gets a higher number. Blocking."""

from pathlib import Path

from cryptography import x509

from server.home import write_file


def published_number(path: Path) -> int:
    """Return the number of the CRL in the file, 0 if there is none that can be read."""
    try:
        crl = x509.load_der_x509_crl(path.read_bytes())
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (OSError, ValueError, x509.ExtensionNotFound):
        return 0


def publish_file(path: Path, number: int, crl_der: bytes) -> None:
    """Replace the file, unless a CRL with a higher number stands there: another authority was faster."""
    if published_number(path) <= number:
        write_file(path, crl_der)


def older_than_published(place: object, label: str, published: int, known: int) -> str:
    """Say what to do about a database that was put back without `certmill db restore`."""
    return (
        f"{place} is older than what was published: it knows CRLs of {label} up to number {known}, and number "
        f"{published} is in public/crl. It was put back by hand, and would take revocations back. Put it back so "
        "that those of the published CRLs are done again: `certmill db backup FILE`, then `certmill db restore "
        "FILE --overwrite` (docs/operating.md, Restore)"
    )
