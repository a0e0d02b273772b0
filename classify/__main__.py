"""The command `classify`."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks for modules in the working folder first. If only we ourselves lie there,
    # it stays; `-P` does the same, and from the first instant.
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    if os.path.abspath(sys.path[0]) != home:  # noqa: PTH100
        del sys.path[0]


def main() -> None:
    """Run the command line; signals are watched before anything else is imported."""
    from featurize.system import signals, startup

    startup.prepare_process()
    signals.run_main(_run)


def _run() -> None:
    from classify.cli.app import app
    from classify.launcher import leave_peers

    try:
        app(prog_name="classify")
    except SystemExit as stop:
        leave_peers(stop.code if isinstance(stop.code, int) else 1 if stop.code else 0)
        raise


if __name__ == "__main__":
    main()
