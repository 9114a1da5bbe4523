"""The commands of `certmill`. They read the settings, start one thing, and end with one clear line on an error."""

import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any

import typer
import uvloop

from ocsp.errors import ListenError, OcspError
from ocsp.worker import BACKLOG, WorkerConfig
from ocsp.worker import run as run_worker
from server import __version__
from server.authority import initialise, prepare_home, run_authority
from server.cli.banner import banner
from server.cli.token import app as token_app
from server.config import Config, environment, load_config
from server.errors import AlreadyRunning, ConfigError, ServerError, StartRefused
from server.home import AUTHORITY, SUPERVISOR, Home, exclusive
from server.keys.pin import ask_on_terminal, receive_pins
from server.keys.token import ask_pins, read_pins
from server.logs import make_logger
from server.notify import notify
from server.public_port import listen, require_free
from server.supervisor import EXIT_CONFIG, EXIT_TEMPORARY, PIN_REFUSED, Supervisor
from signer_pool.errors import PinRejected, SignerPoolError

# What an operator must mend before another start can succeed. The rest may heal: the supervisor tries again.
_FINAL = (ConfigError, AlreadyRunning, PinRejected, ListenError, StartRefused)
_HANDOVER_S = 5.0  # how long the worker before us may take to notice that it is to stop
_STOPPING_S = 15.0  # and how long an authority may take to stop
_OURS = (ServerError, SignerPoolError, OcspError)

Supervised = Annotated[
    bool, typer.Option("--supervised", hidden=True, help="What is wrong goes to NOTIFY_SOCKET; its owner tells.")
]

app = typer.Typer(
    name="certmill",
    help="A certificate authority server: issues from HSMs, answers OCSP in advance, publishes CRLs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks print local variables, which may be secrets
)
app.add_typer(token_app, name="token")


@app.callback()
def private() -> None:
    """Keep what is written to its owner; what others may read is given its mode where it is written."""
    os.umask(0o077)


@app.command()
def serve() -> None:
    """Serve everything: the authority and the OCSP workers, started again when they end."""
    config = _config()
    home = Home(config.home)
    logger = make_logger(config.log, process="supervisor")

    def on_ready() -> None:
        sys.stdout.write(banner(config))
        sys.stdout.flush()

    def work() -> int:
        home.create()
        with exclusive(home, SUPERVISOR):  # before anything is bound, unlinked or asked for
            with exclusive(home, AUTHORITY, patience_s=_STOPPING_S):
                pass  # the authority of an earlier supervisor that was killed is gone
            require_free(home, config.listen.public)
            supervisor = Supervisor(
                home=home,
                workers=config.ocsp.workers,
                pins=ask_pins(config, ask_on_terminal),
                environ=dict(environment()),
                logger=logger,
                on_ready=on_ready,
            )
            _run(supervisor.run())
        return 0

    raise typer.Exit(_guarded(work))


@app.command()
def init() -> None:
    """Make what serving needs (token, keys, CAs, database, certificates), once, and stop."""
    config = _config()
    logger = make_logger(config.log, process="init")

    def work() -> int:
        lanes = prepare_home(config, logger, _pins(config, on_stdin=False))
        uvloop.run(initialise(config, lanes, logger))
        return 0

    raise typer.Exit(_guarded(work))


@app.command()
def authority(
    pins_on_stdin: Annotated[
        bool, typer.Option("--pins-on-stdin", help="PINs of prompted tokens come as JSON: {token name: PIN}.")
    ] = False,
    supervised: Supervised = False,
) -> None:
    """Serve the authority alone: API, admin, issuing, revocation, CRLs (for systemd units of your own)."""
    config = _config(supervised=supervised)
    logger = make_logger(config.log, process="authority")

    def work() -> int:
        lanes = prepare_home(config, logger, _pins(config, on_stdin=pins_on_stdin))
        _run(run_authority(config, lanes, logger, environment()))
        return 0

    raise typer.Exit(_guarded(work, supervised=supervised))


@app.command()
def ocsp(
    number: Annotated[int, typer.Option(min=0, help="Tells workers of one home apart; from 0.")] = 0,
    supervised: Supervised = False,
) -> None:
    """Serve one OCSP worker alone: no key, no database, read-only on the response store."""
    config = _config(supervised=supervised)
    home = Home(config.home)
    address = config.listen.public
    logger = make_logger(config.log, process=f"ocsp-{number}")

    def work() -> int:
        home.create()
        with exclusive(home, f"ocsp-{number}", patience_s=_HANDOVER_S) as lock:
            sockets = listen(home, address, backlog=BACKLOG)
            lock.write(str(address))  # siblings see it, and may listen beside us

            def on_stopping() -> None:
                lock.release()  # for a successor: it need not wait until the last answer is sent
                _notify("STOPPING=1")

            run_worker(
                WorkerConfig(
                    host=address.host,
                    port=address.port,
                    store_path=home.response_store,
                    public_dir=home.public,
                    authority_socket=home.authority_socket,
                    metrics_socket=home.worker_metrics_socket(number),
                    max_connections=config.ocsp.max_connections,
                    max_age_cap_s=config.ocsp.max_age_s,
                ),
                logger,
                sockets=sockets,
                on_ready=lambda: _notify("READY=1"),
                on_stopping=on_stopping,
            )
        return 0

    raise typer.Exit(_guarded(work, supervised=supervised))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _config(*, supervised: bool = False) -> Config:
    try:
        return load_config(environment())
    except ServerError as error:
        raise typer.Exit(_complain(error, supervised=supervised)) from None


def _pins(config: Config, *, on_stdin: bool) -> dict[str, str]:
    typed = receive_pins(sys.stdin.buffer) if on_stdin else ask_pins(config, ask_on_terminal)
    return read_pins(config, environment(), typed)


def _notify(state: str) -> None:
    notify(environment(), state)


def _run(main: Coroutine[Any, Any, None]) -> None:
    uvloop.run(main)


def _guarded(work: Callable[[], int], *, supervised: bool = False) -> int:
    """Run; an error that the operator can mend becomes one line and exit code 78 or 75, never a traceback."""
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except _OURS as error:
        return _complain(error, supervised=supervised)
    except ExceptionGroup as group:
        expected, other = group.split(_OURS)
        if other is not None or expected is None:
            raise
        errors = list(_leaves(expected))
        final = [error for error in errors if isinstance(error, _FINAL)]
        return _complain((final or errors)[0], supervised=supervised)


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _complain(error: Exception, *, supervised: bool) -> int:
    """Tell the supervisor, or systemd, in one line what is wrong, and the terminal unless the supervisor does."""
    line = str(error).replace("\n", " ")
    refused = f"\nERRNO={PIN_REFUSED}" if isinstance(error, PinRejected) else ""
    heard = notify(environment(), f"STATUS={line}{refused}")
    if not (supervised and heard):
        typer.echo(f"certmill: {line}", err=True)
    return EXIT_CONFIG if isinstance(error, _FINAL) else EXIT_TEMPORARY
