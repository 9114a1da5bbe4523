"""The commands of `certmill`. They read the settings, start one thing, and end with one clear line on an error."""

import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer
import uvloop

from ocsp.errors import ListenError, OcspError
from ocsp.worker import WorkerConfig
from ocsp.worker import run as run_worker
from server import __version__
from server.authority import initialise, prepare_home, run_authority
from server.cli.banner import banner
from server.config import Config, environment, load_config
from server.errors import AlreadyRunning, ConfigError, ServerError
from server.home import Home, exclusive
from server.logs import make_logger
from server.supervisor import EXIT_CONFIG, EXIT_TEMPORARY, Supervisor, require_free
from signer_pool.errors import PinRejected, SignerPoolError

# What an operator must mend before another start can succeed. The rest may heal: the supervisor tries again.
_FINAL = (ConfigError, AlreadyRunning, PinRejected, ListenError)

app = typer.Typer(
    name="certmill",
    help="A certificate authority server: issues from HSMs, answers OCSP in advance, publishes CRLs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks print local variables, which may be secrets
)


@app.command()
def serve() -> None:
    """Serve everything: the authority and the OCSP workers, started again when they end."""
    config = _config()
    home = Home(config.home)
    home.create()
    supervisor_logger = make_logger(config.log, process="supervisor")

    async def run() -> int:
        printed = False

        def on_ready() -> None:
            nonlocal printed
            if not printed:
                printed = True
                sys.stdout.write(banner(config))
                sys.stdout.flush()

        supervisor = Supervisor(
            home=config.home,
            workers=config.ocsp.workers,
            environ=dict(environment()),
            logger=supervisor_logger,
            on_ready=on_ready,
        )
        return await supervisor.run()

    def work() -> int:
        # Before anything is bound or unlinked: a second start by mistake must not touch the first one.
        with exclusive(home, "supervisor"):
            require_free(config.listen.public)
            return uvloop.run(run())

    raise typer.Exit(_guarded(work))


@app.command()
def init() -> None:
    """Make what serving needs (token, keys, CAs, database, certificates), once, and stop."""
    config = _config()
    logger = make_logger(config.log, process="init")

    def work() -> int:
        lanes = prepare_home(config, logger)
        uvloop.run(initialise(config, lanes, logger))
        return 0

    raise typer.Exit(_guarded(work))


@app.command()
def authority() -> None:
    """Serve the authority alone: API, admin, issuing, revocation, CRLs (for systemd units of your own)."""
    config = _config()
    logger = make_logger(config.log, process="authority")

    def work() -> int:
        lanes = prepare_home(config, logger)
        _run(run_authority(config, lanes, logger, environment()))
        return 0

    raise typer.Exit(_guarded(work))


@app.command()
def ocsp(number: Annotated[int, typer.Option(help="Tells workers of one host apart; from 0.")] = 0) -> None:
    """Serve one OCSP worker alone: no key, no database, read-only on the response store."""
    config = _config()
    home = Home(config.home)
    logger = make_logger(config.log, process=f"ocsp-{number}")

    def work() -> int:
        run_worker(
            WorkerConfig(
                host=config.listen.public.host,
                port=config.listen.public.port,
                store_path=home.response_store,
                public_dir=home.public,
                authority_socket=home.authority_socket,
                metrics_socket=home.worker_metrics_socket(number),
                max_connections=config.ocsp.max_connections,
                max_age_cap_s=config.ocsp.max_age_s,
            ),
            logger,
        )
        return 0

    raise typer.Exit(_guarded(work))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _config() -> Config:
    try:
        return load_config(environment())
    except ServerError as error:
        raise typer.Exit(_complain(error)) from None


def _run(main: Coroutine[Any, Any, None]) -> None:
    uvloop.run(main)


def _guarded(work: Callable[[], int]) -> int:
    """Run; an error that the operator can mend becomes one line and exit code 78 or 75, never a traceback."""
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except (ServerError, SignerPoolError, OcspError) as error:
        return _complain(error)
    except ExceptionGroup as group:
        expected, other = group.split((ServerError, SignerPoolError, OcspError))
        if other is not None or expected is None:
            raise
        return _complain(_first(expected))


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _complain(error: Exception) -> int:
    typer.echo(f"certmill: {error}", err=True)
    return EXIT_CONFIG if isinstance(error, _FINAL) else EXIT_TEMPORARY
