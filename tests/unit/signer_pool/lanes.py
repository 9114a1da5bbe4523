"""What the tests of the signer pool share: a logger that remembers, software lanes, a SoftHSM token."""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

from prometheus_client import CollectorRegistry

from pkix.algorithms import KeyAlgorithm
from signer_pool.lane_config import Pkcs11LaneConfig, SoftwareLaneConfig
from signer_pool.software import SoftwareSession
from signer_pool.token_init import initialise_token

P = ParamSpec("P")
MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "pin-7391-secret"
SO_PIN = "so-pin-8842-secret"
PASSPHRASE = "passphrase-5150-secret"
SECRETS = (PIN, SO_PIN, PASSPHRASE)


class MemoryLogger:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def info(self, event: str, **details: object) -> None:
        self.lines.append(("info", event, details))

    def warning(self, event: str, **details: object) -> None:
        self.lines.append(("warning", event, details))

    def error(self, event: str, **details: object) -> None:
        self.lines.append(("error", event, details))


def software_config(directory: Path, *keys: tuple[str, KeyAlgorithm]) -> SoftwareLaneConfig:
    """Make a directory of software keys."""
    directory.mkdir(exist_ok=True)
    config = SoftwareLaneConfig(directory=str(directory), passphrase=PASSPHRASE)
    _beside_the_loop(_generate, config, keys)
    return config


def _generate(config: SoftwareLaneConfig, keys: tuple[tuple[str, KeyAlgorithm], ...]) -> None:
    session = SoftwareSession(config)
    for label, algorithm in keys:
        session.generate(label, algorithm)


def _beside_the_loop(work: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
    """Do what prepares a test in a thread, so that the check for blocking calls sees only what is tested."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work, *arguments, **named).result()


def p256_config(directory: Path) -> SoftwareLaneConfig:
    """Make a directory with one P-256 key, `ec`: the cheapest lane."""
    return software_config(directory, ("ec", KeyAlgorithm.EC_P256))


@contextmanager
def softhsm_token(label: str = "test") -> Iterator[Pkcs11LaneConfig]:
    """Initialise a fresh SoftHSM token in a directory of its own."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "tokens").mkdir()
        conf = Path(home) / "softhsm2.conf"
        conf.write_text(f"directories.tokendir = {home}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
        env = {"SOFTHSM2_CONF": str(conf)}
        _beside_the_loop(initialise_token, MODULE, label, SO_PIN, PIN, env)
        yield Pkcs11LaneConfig(module_path=MODULE, token_label=label, pin=PIN, env=env)


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """Read one metric; 0 when it was never touched."""
    return registry.get_sample_value(name, labels) or 0.0
