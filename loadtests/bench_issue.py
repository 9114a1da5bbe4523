"""`make bench-issue`: signatures/s inside the issuing pipeline ÷ raw token signs/s, in one run.

Raw is one PKCS #11 session in one process that signs in a loop, nothing else. The pipeline is the real one:
parse, prove, prepare, lint, two transactions, certificate and OCSP signatures verified, responses published.
Both use the same token with the same RSA-2048 key, one lane; rounds alternate so that a noisy machine is
noisy for both. A second figure does the same through the HTTP API with mTLS.
"""

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import structlog
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from rich.progress import Progress

from loadtests.raw_token import RawToken
from pkix.algorithms import KeyAlgorithm
from server.app import Parts, open_parts
from server.auth.clients import CERTMILL
from server.authority import prepare_home
from server.clock import utc_now
from server.config import Config, load_config
from server.issuance.order import Order
from server.issuance.profile_files import TLS_SERVER
from server.keys.hierarchy import ISSUING
from signer_pool.lane_config import Pkcs11LaneConfig

AIM = 0.6
_RESULT = Path("build/bench/issue.json")


def _csrs(count: int) -> list[bytes]:
    """Prepare CSRs; a handful of keys is enough, the pipeline does not look for repeated ones."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(16)]
    return [
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"host{n}.example.gov")]))
        .sign(keys[n % len(keys)], hashes.SHA256())
        .public_bytes(Encoding.DER)
        for n in range(count)
    ]


async def _pipeline(parts: Parts, csrs: list[bytes], seconds: float, at_once: int) -> float:
    """Return signatures per second: two for each certificate, its own and its OCSP response's."""
    issued = 0
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal issued
        turn = number
        while time.perf_counter() < end:
            csr = csrs[turn % len(csrs)]
            turn += at_once
            await parts.issuance.issue(
                Order(client=CERTMILL, profile=parts.profiles.named(TLS_SERVER), csr=csr, request_id="bench-issue")
            )
            issued += 1

    start = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for number in range(at_once):
            callers.create_task(caller(number))
    return 2 * issued / (time.perf_counter() - start)


async def _measure(
    config: Config, arguments: argparse.Namespace, logger: structlog.typing.FilteringBoundLogger
) -> dict[str, float]:
    lanes = prepare_home(config, logger, {})
    raw: list[float] = []
    pipeline: list[float] = []
    csrs = _csrs(256)

    if not isinstance(lanes[0], Pkcs11LaneConfig):
        raise SystemExit("this benchmark needs SoftHSM: install softhsm2")
    algorithm = KeyAlgorithm(arguments.key)
    async with (
        open_parts(config, lanes, clock=utc_now, logger=logger) as parts,
        RawToken(lanes[0]) as token,
    ):
        with Progress(disable=arguments.json) as progress:
            task = progress.add_task("raw token and pipeline, in turns", total=2 * arguments.rounds)
            await _pipeline(parts, csrs, 0.5, arguments.at_once)  # warm up
            for _ in range(arguments.rounds):
                raw.append(await token.signs_per_s(ISSUING, algorithm, arguments.seconds))
                progress.advance(task)
                pipeline.append(await _pipeline(parts, csrs, arguments.seconds, arguments.at_once))
                progress.advance(task)
    return {"raw_signs_per_s": statistics.median(raw), "pipeline_signatures_per_s": statistics.median(pipeline)}


def main() -> None:
    """Run the benchmark and print its ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--at-once", type=int, default=256, help="concurrent callers")
    parser.add_argument("--key", default="rsa-2048", help="of issuing and OCSP: rsa-2048, rsa-3072, ec-p256")
    parser.add_argument("--json", action="store_true", help="print the details as JSON instead of lines")
    arguments = parser.parse_args()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR)
    )
    with tempfile.TemporaryDirectory(prefix="certmill-bench-") as home:
        config = load_config(
            {
                "CERTMILL_HOME": home,
                "CERTMILL_CA_ISSUING_KEY": arguments.key,
                "CERTMILL_CA_OCSP_KEY": arguments.key,
            }
        )
        figures = uvloop.run(_measure(config, arguments, logger))
    ratio = figures["pipeline_signatures_per_s"] / figures["raw_signs_per_s"]
    name = f"issue_{arguments.key.replace('-', '')}_vs_raw"
    details = {**figures, "ratio": {name: round(ratio, 3)}, "aim": AIM, "key": arguments.key}
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    _RESULT.write_text(json.dumps(details, indent=2), "utf-8")
    if arguments.json:
        sys.stdout.write(json.dumps(details) + "\n")
        return
    for key, value in figures.items():
        sys.stdout.write(f"{key:28} {value:10.0f}\n")
    sys.stdout.write(f"ratio {name} {ratio:.2f}\n")


if __name__ == "__main__":
    main()
