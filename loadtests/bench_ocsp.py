"""`make bench-ocsp`: one OCSP worker against nginx and aiohttp, on the same cores, in one run.

The server under test runs on one core, wrk on the other, 1,000 different certificates by GET over keep-alive
connections. In turns: our worker; nginx serving files of the same size (one worker, open_file_cache, sendfile,
no log); nginx `return` with the same body; an aiohttp handler on uvloop with the same bodies. All four get
the same requests from the same wrk script. Medians over the rounds; the ratios are what counts.
"""

import argparse
import asyncio
import base64
import datetime as dt
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from rich.progress import Progress

from loadtests.bench_servers import aiohttp_command, nginx_files_config, nginx_return_config, worker_command
from ocsp.lmdb_store import LmdbStore
from ocsp.store import ResponseKey, Status, StoredResponse, issuer_tag, response_key
from pkix.names import SerialNumber
from pkix.ocsp_response import CertificateStatus, Responder, assemble_response, prepare_response
from pkix.unsigned import tlv

SERVER_CORE, LOAD_CORE = 0, 1
_RESULT = Path("build/bench/ocsp.json")
WEEK = dt.timedelta(days=7)
_HOST = "127.0.0.1"
_SHA1_ALGORITHM = bytes.fromhex("300906052b0e03021a0500")
AIMS = {"ocsp_vs_nginx_static": 1.3, "ocsp_vs_nginx_return": 0.8, "ocsp_vs_aiohttp": 2.5}


@dataclass(frozen=True)
class Sample:
    """What wrk and the kernel say about one round."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    server_busy: float


def make_responses(count: int) -> tuple[list[str], list[tuple[ResponseKey, StoredResponse]], Responder]:
    """Sign `count` real responses; returns the paths to ask for them with, and the store's entries."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "certmill benchmark OCSP responder")])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + WEEK)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    hashes_of_issuer = (os.urandom(20), os.urandom(20))
    responder = Responder.of(certificate, {"sha1": hashes_of_issuer, "sha256": (os.urandom(32), os.urandom(32))})
    tag = issuer_tag(responder.certificate_der)
    paths, entries = [], []
    for _ in range(count):
        serial = SerialNumber(int.from_bytes(os.urandom(16), "big") >> 1)
        prepared = prepare_response(
            responder=responder,
            status=CertificateStatus(serial=serial),
            hash_name="sha1",
            this_update=now,
            next_update=now + dt.timedelta(days=4),
        )
        signature = key.sign(prepared.tbs, ec.ECDSA(hashes.SHA256()))
        der = assemble_response(prepared, responder, signature)
        stored = StoredResponse(
            status=Status.GOOD,
            this_update=int(now.timestamp()),
            next_update=int(prepared.next_update.timestamp()),
            der=der,
        )
        entries.append((response_key(tag, "sha1", serial), stored))
        paths.append("/ocsp/" + quote(base64.b64encode(_request(hashes_of_issuer, serial)), safe=""))
    return paths, entries, responder


def _request(issuer_hashes: tuple[bytes, bytes], serial: int) -> bytes:
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    cert_id = _SHA1_ALGORITHM + tlv(0x04, issuer_hashes[0]) + tlv(0x04, issuer_hashes[1]) + tlv(0x02, octets)
    return tlv(0x30, tlv(0x30, tlv(0x30, tlv(0x30, tlv(0x30, cert_id)))))


async def fill_store(
    directory: Path, entries: Sequence[tuple[ResponseKey, StoredResponse]], responder: Responder
) -> None:
    """Write the store that the worker serves from."""
    async with LmdbStore(directory, max_bytes=2**30) as store:
        tag = issuer_tag(responder.certificate_der)
        await store.put_issuer(tag, sha1=responder.issuer_hashes["sha1"], sha256=responder.issuer_hashes["sha256"])
        await store.publish(entries)


def write_script(directory: Path, paths: Sequence[str]) -> Path:
    """Write wrk's script: every request is formatted beforehand, so that wrk is not what we measure."""
    lines = ["local requests = {}", "function init(args)"]
    lines += [f'  requests[{n}] = wrk.format("GET", "{path}")' for n, path in enumerate(paths, 1)]
    lines += ["end", "local turn = 0", "function request()"]
    lines += [f"  turn = turn % {len(paths)} + 1", "  return requests[turn]", "end"]
    script = directory / "requests.lua"
    script.write_text("\n".join(lines), "utf-8")
    return script


@contextmanager
def server(command: Sequence[str], url: str, log: Path) -> Iterator[int]:
    """Run a server on its core until the block ends; yields the process id."""
    with log.open("ab") as output:
        process = subprocess.Popen(["taskset", "-c", str(SERVER_CORE), *command], stdout=output, stderr=output)
    try:
        _wait_for(url, process, log)
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=1) as response:
                if response.status == 200 and len(response.read()) > 100:
                    return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"a server did not start; see its output:\n{log.read_text()}")


def load(url: str, script: Path, pid: int, arguments: argparse.Namespace) -> Sample:
    """Let wrk ask for a while; any answer but 200 ends the benchmark."""
    before, start = _cpu_seconds(pid), time.perf_counter()
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{arguments.connections}", f"-d{arguments.seconds}s",
         "--latency", "-s", str(script), url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    busy = (_cpu_seconds(pid) - before) / (time.perf_counter() - start)
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"wrong answers under load:\n{done.stdout}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if rate is None:
        raise SystemExit(f"wrk said something unexpected:\n{done.stdout}")
    return Sample(float(rate[1]), _latency(done.stdout, "50%"), _latency(done.stdout, "99%"), busy)


def _latency(text: str, quantile: str) -> float:
    match = re.search(rf"{quantile}\s+([\d.]+)(us|ms|s)", text)
    return -1.0 if match is None else float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and its children so far."""
    total = 0.0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    for one in [pid, *map(int, children)]:
        fields = Path(f"/proc/{one}/stat").read_text("ascii").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, list[Sample]]:
    """Run every server for every round, in turns."""
    paths, entries, responder = make_responses(arguments.responses)
    asyncio.run(fill_store(directory / "store", entries, responder))
    bodies = [stored.der for _, stored in entries]
    script = write_script(directory, paths)
    ports = {name: 18080 + n for n, name in enumerate(("certmill", "nginx_static", "nginx_return", "aiohttp"))}
    commands = {
        "certmill": worker_command(directory, ports["certmill"]),
        "nginx_static": nginx_files_config(directory, ports["nginx_static"], paths, bodies),
        "nginx_return": nginx_return_config(directory, ports["nginx_return"], bodies[0]),
        "aiohttp": aiohttp_command(directory, ports["aiohttp"], bodies),
    }
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    with ExitStack() as stack, Progress(disable=arguments.json) as progress:
        pids = {
            name: stack.enter_context(
                server(command, f"http://{_HOST}:{ports[name]}{paths[0]}", directory / f"{name}.log")
            )
            for name, command in commands.items()
        }
        task = progress.add_task("rounds", total=arguments.rounds * len(commands))
        for _ in range(arguments.rounds):
            for name, pid in pids.items():
                samples[name].append(load(f"http://{_HOST}:{ports[name]}", script, pid, arguments))
                progress.update(task, advance=1, description=name)
    return samples


def main() -> None:
    """Run the benchmark and print its ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each round")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--responses", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print the details as JSON instead of lines")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="certmill-bench-") as directory:
        Path(directory).chmod(0o755)  # nginx drops root and must still read its files
        samples = measure(arguments, Path(directory))
    rate = {name: statistics.median(s.requests_per_s for s in rounds) for name, rounds in samples.items()}
    ratios = {
        "ocsp_vs_nginx_static": rate["certmill"] / rate["nginx_static"],
        "ocsp_vs_nginx_return": rate["certmill"] / rate["nginx_return"],
        "ocsp_vs_aiohttp": rate["certmill"] / rate["aiohttp"],
    }
    details = {
        "requests_per_s": rate,
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "at_least": AIMS,
        "rounds": {name: [vars(s) for s in rounds] for name, rounds in samples.items()},
    }
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    _RESULT.write_text(json.dumps(details, indent=2), "utf-8")
    if arguments.json:
        sys.stdout.write(json.dumps(details) + "\n")
        return
    for name, rounds in samples.items():
        busy = statistics.median(s.server_busy for s in rounds)
        p99 = statistics.median(s.p99_ms for s in rounds)
        sys.stdout.write(f"{name:14} {rate[name]:10.0f} requests/s  p99 {p99:6.2f} ms  core {busy:4.0%} busy\n")
    for name, value in ratios.items():
        sys.stdout.write(f"ratio {name} {value:.2f}\n")


if __name__ == "__main__":
    main()
