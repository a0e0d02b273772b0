"""Ctrl-C and SIGTERM: a command ends within seconds, at whatever point it is interrupted.

Python runs a signal's handler in the main thread, between two of its own instructions. There are
three ways in which that is not enough. The interrupt may be raised where exceptions are swallowed
(in a destructor, in a hook of ``fork``): then it is lost. The main thread may be inside a long
call: then the handler does not run. And a shell starts background jobs with SIGINT ignored.

So a thread watches the commands. Python's C-level handler writes each signal to a pipe, which the
thread reads. The thread repeats an interrupt that was lost. After `MAX_EXIT_SECONDS` it ends the
process. Files on disk are consistent at any time, so at most a second of work is lost.

A program that only imports Headgraft handles its own signals: nothing is installed there.
"""

import _thread
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

MAX_EXIT_SECONDS = 2.5  # from a signal to the end of the process
REPEAT_SECONDS = 0.5  # until an interrupt that was not acknowledged is raised again
EXIT_INTERRUPTED = 3  # the exit code
EXIT_MESSAGE = "stopped; what was finished is kept, and the same command goes on from there"
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


class _State:
    """State of signal handling in this process; a single instance in effect."""

    has_handlers = False
    received_at = 0.0  # time of the first signal, by the monotonic clock
    acknowledged = False  # whether an orderly exit has begun
    exit_blockers: list[str] = []  # noqa: RUF012 - reasons to wait before exiting


def install_handlers() -> None:
    """Make Ctrl-C and SIGTERM end this process within `MAX_EXIT_SECONDS`.

    A command calls this first. A SIGINT that was ignored from the start stays ignored, because
    shells start background jobs so.
    """
    if _State.has_handlers:
        return
    _State.has_handlers = True
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in SIGNALS:
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle_signal)
    sys.unraisablehook = _hide_dropped_interrupt
    threading.Thread(target=_watch_pipe, args=(read_fd,), name="signals", daemon=True).start()


def has_handlers() -> bool:
    """Tell whether this process is one of our commands, which may be ended at any point.

    Returns
    -------
    bool
        Whether `install_handlers` was called.
    """
    return _State.has_handlers


def was_received() -> bool:
    """Tell whether the process has received a signal to end.

    Returns
    -------
    bool
        True from the first SIGINT or SIGTERM on.
    """
    return _State.received_at > 0


def acknowledge() -> None:
    """Acknowledge the interrupt: the caller handles it, so no further one is raised."""
    _State.acknowledged = True


def hurry_exit() -> None:
    """End the process at its exit code without waiting for threads, as after a signal.

    For work that ends by itself because its time is up.
    """
    _State.received_at = _State.received_at or time.monotonic()
    acknowledge()


@contextmanager
def delay_exit(reason: str) -> Iterator[None]:
    """Prevent the watching thread from ending the process inside the block.

    If the block takes longer than `MAX_EXIT_SECONDS` after a signal, the reason is printed.

    Parameters
    ----------
    reason : str
        What the process waits for, for the message.

    Yields
    ------
    None
        The process may be ended again after the block.
    """
    _State.exit_blockers.append(reason)
    try:
        yield
    finally:
        _State.exit_blockers.remove(reason)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Record signals inside the block, and raise the first one at its end.

    This is for calls in which an interrupt would be swallowed or would leave a lock locked.
    Blocking the signals would not help: the system would deliver them to another thread, and
    Python would still run the handler in this one. Outside the main thread no handler runs, so
    nothing is done.

    Yields
    ------
    None
        The previous handlers are restored after the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous_handlers = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous_handlers[number] = signal.signal(number, lambda n, _: received.append(n))
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def import_uninterrupted(name: str) -> None:
    """Import a module without interruption; an interrupt while torch is imported would abort.

    Parameters
    ----------
    name : str
        Dotted name of the module.
    """
    with defer_signals():
        import_module(name)


def ignore_signals() -> None:
    """Ignore signals in a forked child, and leave those of the terminal to the parent."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_process(code: int) -> NoReturn:
    """End a command with an exit code.

    After a signal the process ends at once, without waiting for threads that decode or compute.

    Parameters
    ----------
    code : int
        The exit code.

    Raises
    ------
    SystemExit
        If no signal was received or acknowledged.
    """
    if was_received() and _State.acknowledged:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)
    for number in SIGNALS:  # a late signal must not disturb the interpreter's shutdown
        with suppress(ValueError):
            signal.signal(number, signal.SIG_IGN)
    raise SystemExit(code)


def run_main(command: Callable[[], Any]) -> NoReturn:
    """Run a command line, then end the process.

    Parameters
    ----------
    command : callable
        Takes no argument and ends with SystemExit, as click's commands do.

    Raises
    ------
    SystemExit
        With the command's exit code; with `EXIT_INTERRUPTED` after a signal.
    """
    code: Any = 0
    try:
        install_handlers()
        command()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BaseException as error:
        # At the very start or end, outside of any verb, which would print the message itself.
        acknowledge()
        if not isinstance(error, KeyboardInterrupt) and not was_received():
            raise
        _write_stderr(EXIT_MESSAGE)
        code = EXIT_INTERRUPTED
    if was_received() and not _State.acknowledged and code in (1, 130):
        # Outside of a verb typer catches the interrupt and uses its own exit codes.
        acknowledge()
        _write_stderr(EXIT_MESSAGE)
        code = EXIT_INTERRUPTED
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    exit_process(code)


def _handle_signal(_number: int, _frame: FrameType | None) -> None:
    if not _State.received_at:
        _State.received_at = time.monotonic()
    if not _State.acknowledged:
        raise KeyboardInterrupt


def _hide_dropped_interrupt(dropped: "sys.UnraisableHookArgs") -> None:
    """Hide an interrupt that Python drops, as in a destructor: it will be raised again."""
    if not (was_received() and issubclass(dropped.exc_type, KeyboardInterrupt)):
        sys.__unraisablehook__(dropped)


def _watch_pipe(read_fd: int) -> None:
    """Read the pipe that signals are written to, in the watching thread."""
    while os.read(read_fd, 1)[0] not in SIGNALS:
        pass
    _State.received_at = _State.received_at or time.monotonic()
    reported = False
    while True:
        time.sleep(REPEAT_SECONDS)
        if time.monotonic() - _State.received_at < MAX_EXIT_SECONDS:
            if not _State.acknowledged:
                _repeat_interrupt()
        elif not _State.exit_blockers:
            _write_stderr((SHOW_CURSOR if os.isatty(2) else "") + EXIT_MESSAGE)
            os._exit(EXIT_INTERRUPTED)  # flushing could wait for a reader for ever
        elif not reported:
            reported = True
            _write_stderr(f"stopping: waiting for {_State.exit_blockers[0]}")


def _repeat_interrupt() -> None:
    main_ident = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main_ident is not None:
        signal.pthread_kill(main_ident, signal.SIGTERM)  # also interrupts a blocking system call
    else:
        _thread.interrupt_main()


def _write_stderr(text: str) -> None:
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:  # otherwise nobody reads it, and the write would block
            os.write(2, f"{text}\n".encode())
