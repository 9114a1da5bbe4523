"""`certmill ocsp`: a worker's process. No key, no database, and not even the code for them is loaded here."""

from ocsp.worker import BACKLOG, WorkerConfig
from ocsp.worker import run as run_worker
from server.cli.guard import guarded, read_config
from server.config import environment
from server.home import Home, exclusive
from server.logs import make_logger
from server.notify import notify
from server.public_port import listen

_HANDOVER_S = 5.0  # how long the worker before us may take to notice that it is to stop


def ocsp(*, number: int, supervised: bool) -> int:
    """Serve one worker until told to stop; returns the exit code."""
    config = read_config(supervised=supervised)
    home = Home(config.home)
    address = config.listen.public
    logger = make_logger(config.log, process=f"ocsp-{number}")

    def work() -> None:
        home.create()
        with exclusive(home, f"ocsp-{number}", patience_s=_HANDOVER_S) as lock:
            sockets = listen(home, address, backlog=BACKLOG)
            lock.write(str(address))  # siblings see it, and may listen beside us

            def on_ready() -> None:
                notify(environment(), "READY=1")

            def on_stopping() -> None:
                lock.release()  # for a successor: it need not wait until the last answer is sent
                notify(environment(), "STOPPING=1")

            run_worker(
                WorkerConfig(
                    host=address.host,
                    port=address.port,
                    store_path=config.response_store,
                    public_dir=home.public,
                    authority_socket=home.authority_socket,
                    metrics_socket=home.worker_metrics_socket(number),
                    max_connections=config.ocsp.max_connections,
                    max_age_cap_s=config.ocsp.max_age_s,
                ),
                logger,
                sockets=sockets,
                on_ready=on_ready,
                on_stopping=on_stopping,
            )

    return guarded(work, supervised=supervised)
