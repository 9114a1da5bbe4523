"""A certmill of its own for `make bench-issue`, and what is measured on it."""

import asyncio
import http.client
import itertools
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from loadtests.bare_loop import BareLoop
from loadtests.issue_load import Calls, in_a_process
from loadtests.raw_token import RawToken
from pkix.algorithms import KeyAlgorithm
from pkix.issuer import Issuer
from server.authority import prepare_home
from server.config import load_config
from server.keys.hierarchy import ISSUING
from signer_pool.lane_config import Pkcs11LaneConfig
from tests.support.authority import quiet_logger
from tests.support.certmill import RunningCertmill, certmill

PROFILE = "tls-server"
_POLL_S = 0.02
_BATCH_DEADLINE_S = 300.0
_HOSTS, _KEYS = 256, 16


def make_csrs() -> list[x509.CertificateSigningRequest]:
    """Prepare P-256 CSRs; a handful of keys is enough, the pipeline does not look for repeated ones."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(_KEYS)]
    return [
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"host{n}.example.gov")]))
        .sign(keys[n % len(keys)], hashes.SHA256())
        for n in range(_HOSTS)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A running certmill and the bare things that it is compared with."""

    running: RunningCertmill
    token: RawToken
    algorithm: KeyAlgorithm
    bare: BareLoop
    csrs: list[x509.CertificateSigningRequest]

    async def raw(self, seconds: float) -> float:
        """Signatures per second of the bare token."""
        return await self.token.signs_per_s(ISSUING, self.algorithm, seconds)

    async def floor(self, seconds: float) -> float:
        """Certificates per second of the bare software loop."""
        ders = [csr.public_bytes(Encoding.DER) for csr in self.csrs]
        return await asyncio.to_thread(self.bare.certificates_per_s, ders, seconds)

    async def single(self, seconds: float, connections: int) -> float:
        """Certificates per second by single calls."""
        demo = self.running.home / "clients/demo"
        return await in_a_process(
            Calls(
                port=self.running.api_port,
                root=str(self.running.home / "ca/root.pem"),
                certificate=str(demo / "cert.pem"),
                key=str(demo / "key.pem"),
                profile=PROFILE,
                csrs=[csr.public_bytes(Encoding.PEM).decode() for csr in self.csrs],
                connections=connections,
                seconds=seconds,
            )
        )

    async def bulk(self, rows: int) -> float:
        """Certificates per second of one batch, from the first byte sent until its last row is issued."""
        return await asyncio.to_thread(self._bulk, rows)

    def _bulk(self, rows: int) -> float:
        lines = [
            json.dumps({"csr": csr.public_bytes(Encoding.PEM).decode()}).encode() + b"\n" for csr in self.csrs
        ]
        body = b"".join(itertools.islice(itertools.cycle(lines), rows))
        start = time.perf_counter()
        reply = self.running.api(
            "POST", f"/v1/batches?profile={PROFILE}", body, {"Content-Type": "application/x-ndjson"}
        )
        if reply.status != http.client.ACCEPTED:
            raise SystemExit(f"the batch was not accepted: {reply.body.decode()[:500]}")
        path = reply.headers["location"]
        while (batch := self.running.api("GET", path).json)["state"] not in {"done", "failed", "cancelled"}:
            if time.perf_counter() - start > _BATCH_DEADLINE_S:
                raise SystemExit(f"the batch does not end: {batch}")
            time.sleep(_POLL_S)
        seconds = time.perf_counter() - start
        if batch["issued"] != rows:
            raise SystemExit(f"not every row was issued: {batch}")
        return rows / seconds


@asynccontextmanager
async def site(
    algorithm: KeyAlgorithm, csrs: list[x509.CertificateSigningRequest], **settings: str
) -> AsyncIterator[Site]:
    """Start a certmill with SoftHSM keys of this kind, a bare token beside it and a bare loop."""
    with tempfile.TemporaryDirectory(prefix="certmill-bench-") as directory:
        home = Path(directory)
        settings = {
            "CERTMILL_CA_ISSUING_KEY": algorithm.value,
            "CERTMILL_CA_OCSP_KEY": algorithm.value,
            **settings,
        }
        lanes = prepare_home(load_config({"CERTMILL_HOME": directory, **settings}), quiet_logger(), {})
        if not isinstance(lanes[0], Pkcs11LaneConfig):
            raise SystemExit("this benchmark needs SoftHSM: install softhsm2")
        with certmill(home, **settings) as running:
            certificate = x509.load_pem_x509_certificate((home / "ca/issuing.pem").read_bytes())
            url = f"http://127.0.0.1:{running.public_port}"
            issuer = Issuer.of(
                certificate, ocsp_url=f"{url}/ocsp", ca_issuers_url=f"{url}/ca/issuing.cer",
                crl_url=f"{url}/crl/issuing.crl",
            )  # fmt: skip
            async with RawToken(lanes[0]) as token:
                with BareLoop(issuer) as bare:
                    yield Site(running=running, token=token, algorithm=algorithm, bare=bare, csrs=csrs)
