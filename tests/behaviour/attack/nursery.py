"""The process that the commands are forked from: what it does; `starting` speaks to it.

It imports all that the commands import, once. A command that is forked from it begins in a few
milliseconds, and does from there on what the installed command does.

An order is a line of JSON on its input, an answer one on its output.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import runpy
import select
import signal
import sys
import time
from typing import Any

Order = dict[str, Any]


def load() -> None:
    """Import what the commands will need."""
    from importlib import import_module, invalidate_caches

    invalidate_caches()
    names = (
        *("torch", "torchvision", "sklearn.ensemble", "skops.io", "bokeh.plotting", "jinja2"),
        *(
            "featurize.cli.app",
            "featurize.extraction.run",
            "featurize.extraction.verify",
            "featurize.extraction.export",
        ),
        *(
            "featurize.backbones.backbone",
            "featurize.backbones.profiling",
            "featurize.engines.eager",
            "classify.cli.app",
        ),
        *(
            "classify.experiments.compare",
            "classify.report.page",
            "classify.strategy.advise",
            "classify.heads.io",
        ),
        *(
            "classify.finetuning.run",
            "classify.strategy.auto",
            "classify.heads.inference.classes",
            "classify.cli.tables.classes",
        ),
        *("torch._dynamo", "torch.fx", "rich.progress", "rich.console", "joblib.externals.loky"),
    )
    for name in (*names, *sys.argv[1:]):
        import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()  # what is frozen is not touched, so not copied, by those that are forked


def often() -> None:
    """Mark rows after every small batch, so that a kill can fall between two marks."""
    from featurize.cache import writer
    from featurize.engines import torch_settings

    assert hasattr(writer, "SYNC_INTERVAL_SECONDS")
    assert hasattr(torch_settings, "_PIXELS_PER_BATCH")
    writer.SYNC_INTERVAL_SECONDS, torch_settings._PIXELS_PER_BATCH = 0.01, 0


def begin(order: Order) -> None:
    """Become what the order asks for, from the point of view of everybody outside."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
    if order["background"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts `command &`
    streams = [os.devnull, order["out"], order["err"]]
    if order["terminal"]:
        import fcntl
        import termios

        fd = os.open(order["terminal"], os.O_RDWR)
        fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(fd, number)
    else:
        for number, path in enumerate(streams):
            how = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, how, 0o644), number)
    # As they would be of a process of its own: these were made for other files.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    os.environ.update(order["environment"] | {"HEADGRAFT_ATTACK_SESSION": str(os.getpid())})
    if order["folder"]:
        os.chdir(order["folder"])
    for name, value in order["limits"].items():
        if name == "RLIMIT_AS":  # so much more than it has now
            pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
            value += pages * resource.getpagesize()
        _, most = resource.getrlimit(getattr(resource, name))
        resource.setrlimit(getattr(resource, name), (value, most))
    if order["often"]:
        often()
    if order["fault"]:
        fault = order["fault"]
        arm = ctypes.CDLL(None).headgraft_arm
        arm.argtypes = [ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_long] * 4]
        words = (os.fsencode(fault["below"]), fault["call"].encode())
        arm(*words, fault["first"], fault["count"], fault["errno"], fault["delay_ms"])
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def become(order: Order) -> None:
    """Run the command, or a piece of Python, to its end; never returns."""
    code: Any = 70
    try:
        begin(order)
        sys.argv = [order["name"], *order["arguments"]]
        code = 0
        if order["name"].endswith(".py"):
            runpy.run_path(order["name"], run_name="__main__")
        else:
            from importlib import import_module

            import_module(f"{order['name']}.__main__").main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        code = 70
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def look(pid: int, seconds: float) -> int | None:
    """The status of a child if it ends in so many seconds, as `os.waitstatus_to_exitcode`."""
    end = time.monotonic() + seconds
    while True:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def main() -> None:
    """Answer orders until the input ends."""
    load()
    os.environ.pop("LD_PRELOAD", None)  # it is in here; what the commands start does without
    print(json.dumps({"ready": os.getpid()}), flush=True)
    while select.select([0], [], [])[0]:
        line = sys.stdin.readline()
        if not line:
            return
        order = json.loads(line)
        if "wait" in order:
            print(json.dumps(look(order["wait"], order["seconds"])), flush=True)
            continue
        child = os.fork()
        if not child:
            become(order)
        print(json.dumps(child), flush=True)


if __name__ == "__main__":
    main()
