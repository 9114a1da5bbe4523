"""Ask certmill for a certificate with `requests` alone: issue_requests.py PROFILE REQUEST.csr CERTIFICATE.pem."""

import os
import sys
import time
import uuid
from pathlib import Path

import requests

profile, csr, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
url, certificate, key, ca = (os.environ[f"CERTMILL_CLIENT_{name}"] for name in ("URL", "CERTIFICATE", "KEY", "CA"))

# One key for one certificate, kept until the certificate is here: run it again after whatever happened.
kept = out.with_name(out.name + ".idempotency-key")
if not kept.exists():
    kept.write_text(str(uuid.uuid4()))

for attempt in range(6):
    pause_s = float(attempt + 1)
    try:
        answer = requests.post(
            f"{url}/v1/certificates",
            json={"profile": profile, "csr": csr.read_text()},
            headers={"Idempotency-Key": kept.read_text()},
            cert=(certificate, key),
            verify=ca,
            timeout=40,
        )
    except requests.exceptions.SSLError:
        raise  # a file is wrong: no repetition mends it
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
        time.sleep(pause_s)
        continue
    if answer.status_code == requests.codes.created:
        issued = answer.json()
        out.write_text(issued["certificate"] + "".join(issued["chain"]))
        kept.unlink()
        raise SystemExit(0)
    if answer.status_code not in {429, 502, 503, 504}:
        sys.stderr.write(answer.text + "\n")  # application/problem+json: type, title, detail, field, remedy
        raise SystemExit(1)
    time.sleep(float(answer.headers.get("Retry-After", pause_s)))  # as long as certmill asks for
raise SystemExit(75)
