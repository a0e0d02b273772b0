"""SECURITY.md names tests that are there, and every attack is named by it or the folder's page."""

import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def test_every_promise_names_tests_that_there_are():
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`([\w/]*test_\w+\.py)`", text)
    assert named
    for name in named:
        assert (ROOT / name).is_file() or (HERE / name).is_file(), name


def test_every_attack_is_described():
    text = (HERE / "README.md").read_text()
    for path in HERE.glob("test_*.py"):
        assert f"`{path.name}`" in text or path.samefile(__file__), path.name
