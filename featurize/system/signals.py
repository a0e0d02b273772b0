"""Ctrl-C and SIGTERM: a command ends within seconds, at whatever instant it is told to.

Python runs a signal's handler in the main thread, between two of its own instructions. There are
three ways in which that is not enough. The interrupt may be raised where exceptions are swallowed
(in a destructor, in a hook of ``fork``): then it is lost. The main thread may be inside a long
call: then nobody hears it. And a shell starts what it sends to the background deaf to SIGINT.

So the commands are watched. The system itself writes each signal to a pipe, and a thread reads it:
it repeats an interrupt that got lost, and after `MAX_EXIT_SECONDS` it ends the process. What is on
disk is whole at any instant, so that costs a second of work at most.

In a program that merely imports Headgraft nothing is watched: there signals are its own business.
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

MAX_EXIT_SECONDS = 2.5  # seconds from a signal to the end of the process
REPEAT_SECONDS = 0.5  # seconds until an interrupt that nobody took is raised again
EXIT_INTERRUPTED = 3  # the exit code
EXIT_MESSAGE = "stopped; what was finished is kept, and the same command goes on from there"
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


class _State:
    """What became of the process's signals; there is one."""

    has_handlers = False
    received_at = 0.0  # when the first signal came, by the monotonic clock
    acknowledged = False  # whether somebody has begun to end things in order
    exit_blockers: list[str] = []  # noqa: RUF012 - what a thread waits for that must not be cut off


def install_handlers() -> None:
    """Let Ctrl-C and SIGTERM end this process, as `MAX_EXIT_SECONDS` says.

    A command calls this first. A SIGINT that was ignored from the start stays so, as shells have it
    for background jobs.
    """
    if _State.has_handlers:
        return
    _State.has_handlers = True
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    for number in SIGNALS:
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle_signal)
    sys.unraisablehook = _hide_dropped_interrupt
    threading.Thread(target=_watch_pipe, args=(ears,), name="signals", daemon=True).start()


def has_handlers() -> bool:
    """Whether this process is one of our commands, and may be ended from anywhere."""
    return _State.has_handlers


def was_received() -> bool:
    """Whether the process has been told to end."""
    return _State.received_at > 0


def acknowledge() -> None:
    """Say that the interrupt has arrived where it is dealt with: no further one is raised."""
    _State.acknowledged = True


@contextmanager
def delay_exit(reason: str) -> Iterator[None]:
    """Keep the process from being ended inside, because a thread waits for `reason`.

    It is said, where that takes longer than `MAX_EXIT_SECONDS`.
    """
    _State.exit_blockers.append(reason)
    try:
        yield
    finally:
        _State.exit_blockers.remove(reason)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Note signals inside, and let them count when the block has ended.

    For calls in which an interrupt would be swallowed or leave a lock locked. To block the signals
    would not do: the system would hand them to another thread, and Python then runs the handler
    in this one all the same. Outside the main thread no handler runs, so nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    before = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, lambda n, _: noted.append(n))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


def import_uninterrupted(name: str) -> None:
    """Import a module whole: an interrupt inside torch's would abort the process."""
    with defer_signals():
        import_module(name)


def ignore_signals() -> None:
    """In a forked child: leave the signals of the terminal to the parent."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_process(code: int) -> NoReturn:
    """End a command with an exit code.

    After a signal the process ends at once: threads that decode or compute are not waited for.
    """
    if was_received() and _State.acknowledged:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)
    for number in SIGNALS:  # done: what comes now must not disturb the interpreter's own end
        with suppress(ValueError):
            signal.signal(number, signal.SIG_IGN)
    raise SystemExit(code)


def run_main(command: Callable[[], Any]) -> NoReturn:
    """Run a command line as the whole of a process: what `main` of a command does.

    Parameters
    ----------
    command : callable
        Ends with SystemExit, as click's do.
    """
    code: Any = 0
    try:
        install_handlers()
        command()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BaseException as error:
        # In the first or last instants, where no verb is there to say it.
        acknowledge()
        if not isinstance(error, KeyboardInterrupt) and not was_received():
            raise
        _write_stderr(EXIT_MESSAGE)
        code = EXIT_INTERRUPTED
    if was_received() and not _State.acknowledged and code in (1, 130):
        # Outside of a verb it is typer that hears of it, and has exit codes of its own.
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
    """Say nothing of an interrupt that Python drops, as in a destructor: it is raised again."""
    if not (was_received() and issubclass(dropped.exc_type, KeyboardInterrupt)):
        sys.__unraisablehook__(dropped)


def _watch_pipe(read_fd: int) -> None:
    """Read the pipe that signals are written to: what the watching thread does."""
    while os.read(read_fd, 1)[0] not in SIGNALS:
        pass
    _State.received_at = _State.received_at or time.monotonic()
    said = False
    while True:
        time.sleep(REPEAT_SECONDS)
        if time.monotonic() - _State.received_at < MAX_EXIT_SECONDS:
            if not _State.acknowledged:
                _repeat_interrupt()
        elif not _State.exit_blockers:
            _write_stderr((SHOW_CURSOR if os.isatty(2) else "") + EXIT_MESSAGE)
            os._exit(EXIT_INTERRUPTED)  # what is not flushed may wait for a reader, for ever
        elif not said:
            said = True
            _write_stderr(f"stopping: waiting for {_State.exit_blockers[0]}")


def _repeat_interrupt() -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGTERM)  # also ends a system call that it waits in
    else:
        _thread.interrupt_main()


def _write_stderr(text: str) -> None:
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:  # else nobody reads, and it would wait
            os.write(2, f"{text}\n".encode())
