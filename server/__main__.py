"""Entry point of `certmill` and `python -m server`."""

from server.cli.commands import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
