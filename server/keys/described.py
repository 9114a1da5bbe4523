"""A CA as certmill describes it in what it issues: where its CRL, its certificate and its OCSP answers are."""

from cryptography import x509

from pkix.issuer import Issuer


def describe_issuer(url: str, label: str, certificate: x509.Certificate) -> Issuer:
    """Return the CA that goes by this label; `url` is where its CRLs, certificates and OCSP answers are."""
    return Issuer.of(
        certificate,
        ocsp_url=f"{url}/ocsp",
        ca_issuers_url=f"{url}/ca/{label}.cer",
        crl_url=f"{url}/crl/{label}.crl",
    )
