"""Ask certmill for a certificate with its Python package: issue.py PROFILE REQUEST.csr CERTIFICATE.pem."""

import os
import sys
import uuid
from pathlib import Path

from client.api import CertmillClient
from client.errors import CertmillProblem, CertmillUnreachable

profile, csr, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

# One key for one certificate, kept until the certificate is here: run it again after whatever happened.
kept = out.with_name(out.name + ".idempotency-key")
if not kept.exists():
    kept.write_text(str(uuid.uuid4()))

where = [os.environ[f"CERTMILL_CLIENT_{name}"] for name in ("URL", "CERTIFICATE", "KEY", "CA")]
with CertmillClient(*where) as certmill:
    try:
        issued = certmill.issue(csr.read_bytes(), profile, idempotency_key=kept.read_text())
    except CertmillProblem as problem:
        sys.stderr.write(f"{problem.title}: {problem} ({problem.remedy})\n")
        raise SystemExit(75 if problem.temporary else 1) from None
    except CertmillUnreachable as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(75) from None
out.write_text(issued.pem)
kept.unlink()
