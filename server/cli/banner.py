"""What `certmill serve` prints when it is ready: where it listens, and three lines to try it with."""

from server.config import Config
from server.home import Home


def banner(config: Config) -> str:
    """Return the text; the three commands work as printed, from any directory."""
    home = Home(config.home)
    api, ca = f"https://{config.listen.api}", home.ca
    client = f"--cert {home.clients}/demo/cert.pem --key {home.clients}/demo/key.pem --cacert {ca}/root.pem"
    issue = (
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout www.key "
        f"-subj /CN=www.example.gov | curl -sS --fail-with-body {client} -H 'Content-Type: application/pkcs10' "
        f"--data-binary @- '{api}/v1/certificates?profile=tls-server' -o www.pem"
    )
    check = (
        f"openssl ocsp -issuer {ca}/issuing.pem -cert www.pem -CAfile {ca}/chain.pem "
        f"-url {config.listen.url}/ocsp -no_nonce"
    )
    serial = "$(openssl x509 -in www.pem -noout -serial | cut -d= -f2)"
    revoke = (
        f"curl -sS {client} -H 'Content-Type: application/json' -d '{{\"reason\":\"superseded\"}}' "
        f'"{api}/v1/certificates/{serial}/revocation"'
    )
    return f"""
certmill is ready. Home: {config.home}
  API     {api}  (client certificate required; documentation at /docs)
  public  {config.listen.url}  (/ocsp, /crl/issuing.crl, /ca/issuing.cer)
  admin   http://{config.listen.admin}  (/metrics, /healthz, /readyz, /docs)

Try it. Issue a certificate:
{issue}

Ask for its status:
{check}

Revoke it, then ask again:
{revoke}

Ctrl-C stops everything.
"""
