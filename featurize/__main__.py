"""The command `featurize`."""

from featurize import signals


def main() -> None:
    """Run the command line; signals are watched before anything else is imported."""
    signals.guard(_run)


def _run() -> None:
    from featurize.cli import app

    app(prog_name="featurize")


if __name__ == "__main__":
    main()
