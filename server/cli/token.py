"""`certmill token list|check|benchmark`: how the commands are called; token_run.py does what they do."""

from typing import Annotated

import typer

app = typer.Typer(
    help="Look at the tokens (HSMs): what is in them, whether they are fit for serving, how fast they are.",
    no_args_is_help=True,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command("list")
def list_tokens(*, as_json: AsJson = False) -> None:
    """Show every configured token and its keys. Exit code 1 if one cannot be opened."""
    from server.cli import token_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(token_run.list_tokens(as_json=as_json))


@app.command()
def check(*, as_json: AsJson = False) -> None:
    """Sign a probe with each key that certmill needs, and compare the keys. Exit code 0 only if all is well."""
    from server.cli import token_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(token_run.check(as_json=as_json))


@app.command()
def benchmark(
    *,
    key: Annotated[
        list[str] | None, typer.Option(help="Key to sign with; repeat for more.", show_default="issuing, ocsp")
    ] = None,
    lanes: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="The most lanes (sessions) for a token.", show_default="as configured"),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1000, help="Size of a batch; repeat for more.", show_default="1, 8, 64"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, max=600, help="Length of each measurement.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Measure signatures a second by number of lanes (1, 2, 4, …) and size of batches, and single signatures."""
    from server.cli import token_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(token_run.benchmark(keys=key, lanes=lanes, batches=batch, seconds=seconds, as_json=as_json))
