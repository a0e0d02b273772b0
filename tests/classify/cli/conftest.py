"""The command in this process, for tests of what it prints."""

import sys

import pytest

from classify.cli import app as app_module


@pytest.fixture
def call(monkeypatch, capsys):
    """The command in this process: exit status, stdout, stderr."""

    def call(*arguments: object, columns: int | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["classify", *map(str, arguments)])
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # starting workers would take longest
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            app_module.app(prog_name="classify")
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call
