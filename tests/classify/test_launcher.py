"""Who speaks where several processes fail alike."""

import signal
import time

import pytest

from classify.errors import CallError
from classify.launcher import MAIN_SPEAKS_SECONDS, let_main_process_speak


@pytest.mark.parametrize(("rank", "waited"), [("0", []), ("1", [MAIN_SPEAKS_SECONDS])])
def test_others_wait_for_what_the_main_process_says(rank, waited, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    seen = []
    monkeypatch.setattr(time, "sleep", seen.append)
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(CallError, match="refused"), let_main_process_speak():
            raise CallError("refused")
        # The launcher's signal then ends the process without a word.
        assert (signal.getsignal(signal.SIGTERM) == signal.SIG_DFL) == bool(waited)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert seen == waited


def test_one_process_waits_for_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")  # containers may set it for purposes of their own
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    with pytest.raises(CallError), let_main_process_speak():
        raise CallError("refused")
