"""Start commands as a shell would, from a nursery (milliseconds) or afresh (seconds); end them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HANG = 60.0  # seconds after which a command that says nothing is taken to hang
MARK = "HEADGRAFT_ATTACK_SESSION"
NURSERY = Path(__file__).with_name("nursery.py")


@dataclass
class Ended:
    """How a command ended: its exit code (or minus the signal), what it said, how long it took."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        return f"exit {self.code}\n{self.out[-3000:]}\n{self.err[-3000:]}"

    def json(self) -> Any:
        return json.loads(self.out)


class Started:
    """A command at work in a session of its own."""

    def __init__(self, pid: int, poll: Any, out: Path, err: Path) -> None:
        self.pid, self._poll, self._files = pid, poll, (out, err)
        self.began = time.monotonic()
        self._code: int | None = None

    def poll(self, seconds: float = 0) -> int | None:
        """Its exit code, if it ends within so many seconds."""
        if self._code is None:
            self._code = self._poll(seconds)
        return self._code

    def send(self, sign: int, group: bool = False) -> None:
        """Send a signal; its number is its own still, as nobody has waited for it."""
        if self._code is None:
            (os.killpg if group else os.kill)(self.pid, sign)

    def wait(self, seconds: float = HANG) -> Ended:
        """Wait for its end; one that hangs is ended, and is a failure."""
        code = self.poll(seconds)
        took = time.monotonic() - self.began
        if code is None:
            end_session(self.pid)
            self.poll(10)
            raise AssertionError(f"hangs: no end after {took:.0f} s; said {self.err!r}")
        return Ended(code, self.out, self.err, took)

    @property
    def out(self) -> str:
        return self._files[0].read_bytes().decode(errors="surrogateescape")

    @property
    def err(self) -> str:
        return self._files[1].read_bytes().decode(errors="surrogateescape")

    def listens(self, sign: int = signal.SIGTERM) -> bool:
        """Whether the process has said what a signal is to do: a handler, or nothing."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return False
        masks = [int(line.split()[1], 16) for line in lines if line[:6] in ("SigCgt", "SigIgn")]
        return any(mask >> (sign - 1) & 1 for mask in masks)


@dataclass
class Starter:
    """Starts commands: ``start("featurize", "run", ...)``, or runs them to their end by a call.

    `also` are modules that the nursery imports too. On `one_core` no command starts workers of
    its own, whose imports take seconds.
    """

    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="attack-")))
    shim: Path | None = None
    also: tuple[str, ...] = ()
    one_core: bool = False
    _server: subprocess.Popen[str] | None = None
    _count: int = 0

    def _ask(self, order: dict[str, Any]) -> Any:
        if self._server is None:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            if self.shim is not None:
                environment["LD_PRELOAD"] = str(self.shim)
            self._server = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-W", "ignore::DeprecationWarning"),
                    *(str(NURSERY), *self.also),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            if self.one_core and hasattr(os, "sched_setaffinity"):
                cores = sorted(os.sched_getaffinity(0))
                os.sched_setaffinity(self._server.pid, {cores[os.getpid() % len(cores)]})
            assert self._server.stdout is not None
            assert "ready" in json.loads(self._server.stdout.readline())
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def start(
        self,
        name: str,
        *arguments: object,
        background: bool = False,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
        limits: dict[str, int] | None = None,
        often: bool = False,
        terminal: str | None = None,
        fault: dict[str, Any] | None = None,
        fresh: bool = False,
    ) -> Started:
        """Start a command, or a file of Python, and come back at once.

        Parameters
        ----------
        background : bool
            As a shell starts ``command &``: deaf to SIGINT.
        limits : dict
            ``RLIMIT_...``: the soft limit; of ``RLIMIT_AS`` what is allowed beyond the start.
        often : bool
            Rows are marked after each small batch.
        terminal : str
            The device that is its terminal.
        fault : dict
            See `faults.fault`.
        fresh : bool
            The installed command in a process of its own, imports and all.
        """
        self._count += 1
        out, err = (self.home / f"{self._count % 50}.{kind}" for kind in ("out", "err"))
        for path in (out, err):  # what an earlier command said there is not this one's
            path.unlink(missing_ok=True)
        words = [str(word) for word in arguments]
        if fresh:
            assert not any((limits, often, terminal, fault))
            return self._fresh(name, words, background, environment or {}, folder, out, err)
        pid = self._ask(
            {
                **{"name": name, "arguments": words, "background": background},
                **{"environment": environment or {}, "folder": str(folder or ""), "often": often},
                **{"limits": limits or {}, "terminal": terminal, "fault": fault},
                **{"out": str(out), "err": str(err)},
            }
        )
        for path in (out, err):  # until the child opens them
            path.touch()
        return Started(pid, lambda seconds: self._ask({"wait": pid, "seconds": seconds}), out, err)

    def _fresh(
        self,
        name: str,
        words: list[str],
        background: bool,
        environment: dict[str, str],
        folder: Path | None,
        out: Path,
        err: Path,
    ) -> Started:
        ignore = signal.SIG_IGN if background else signal.default_int_handler
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            process = subprocess.Popen(
                marked([str(Path(sys.executable).with_name(name)), *words]),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                cwd=folder,
                preexec_fn=lambda: signal.signal(signal.SIGINT, ignore),
            )

        def poll(seconds: float) -> int | None:
            # Not `wait`: its steps of sleep grow to 50 ms.
            end = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
            return process.poll()

        return Started(process.pid, poll, out, err)

    def __call__(self, name: str, *arguments: object, hang: float = HANG, **options: Any) -> Ended:
        """Run a command to its end."""
        return self.start(name, *arguments, **options).wait(hang)

    def end(self) -> None:
        """End the nursery."""
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            assert self._server.wait(20) == 0
            assert self._server.stdout is not None
            self._server.stdout.close()


def marked(words: list[str]) -> list[str]:
    """A command that hands the number of its session to all that it starts, in whatever session."""
    return ["/bin/sh", "-c", f'{MARK}=$$ exec "$@"', "sh", *words]


def at_work(session: int) -> dict[int, str]:
    """The processes of a session that are left, by number; the dead do not count.

    One that was put into a session of its own is known by the mark in its environment.
    """
    found, mark = {}, f"\0{MARK}={session}\0".encode()
    for process in Path("/proc").iterdir():
        try:
            # After the name, in brackets: state, parent, group, session.
            state, _, _, of = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if state in "ZX":
                continue
            if int(of) == session or mark in b"\0" + (process / "environ").read_bytes():
                words = (process / "cmdline").read_text().replace("\0", " ")
                found[int(process.name)] = words
        except (OSError, ValueError):
            continue  # not a process, or not any more
    return found


def end_session(session: int) -> None:
    """Kill what is left of a session that this test started."""
    for pid in at_work(session):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def left_after(session: int, seconds: float = 5.0) -> dict[int, str]:
    """What of a session is still at work after so long."""
    end = time.monotonic() + seconds
    while (found := at_work(session)) and time.monotonic() < end:
        time.sleep(0.02)
    return found
