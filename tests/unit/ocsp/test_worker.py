"""What a worker says when it cannot begin."""

import os
import signal
import socket
from pathlib import Path

import pytest
import structlog

from ocsp.errors import ListenError
from ocsp.worker import WorkerConfig, run


def test_taken_port_names_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = WorkerConfig(
            host="127.0.0.1",
            port=port,
            store_path=tmp_path / "store",
            public_dir=tmp_path,
            authority_socket=tmp_path / "authority.sock",
            metrics_socket=tmp_path / "run/metrics.sock",
        )
        with pytest.raises(ListenError, match=f"setting listen.public: cannot listen on 127.0.0.1:{port}: "):
            run(config, structlog.get_logger())


def test_sockets_that_listen_already_are_served_until_told_to_stop(tmp_path: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    said: list[str] = []

    def ready() -> None:
        said.append("ready")
        os.kill(os.getpid(), signal.SIGTERM)

    config = WorkerConfig(
        host="127.0.0.1",
        port=0,
        store_path=tmp_path / "store",
        public_dir=tmp_path,
        authority_socket=tmp_path / "authority.sock",
        metrics_socket=tmp_path / "run/metrics.sock",
    )
    logger = structlog.wrap_logger(structlog.ReturnLogger())
    run(config, logger, sockets=[listening], on_ready=ready, on_stopping=lambda: said.append("stopping"))
    assert said == ["ready", "stopping"]
    assert listening.fileno() == -1
