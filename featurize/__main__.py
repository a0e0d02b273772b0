"""The command `featurize`."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` searches the working folder for modules first. It stays only if this package
    # lies in it. `python -P` does the same from the start. pathlib is not imported: it could
    # come from that folder.
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    if os.path.abspath(sys.path[0]) != home:  # noqa: PTH100
        del sys.path[0]


def main() -> None:
    """Run the command line; signal handlers are installed before anything else is imported."""
    from featurize.system import signals, startup

    startup.prepare_process()
    signals.run_main(_run_app)


def _run_app() -> None:
    from featurize.cli.app import app

    app(prog_name="featurize")


if __name__ == "__main__":
    main()
