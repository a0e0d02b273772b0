"""torch's compiled kernels lie in a folder that nobody else can write to."""

import os
import stat
from pathlib import Path

import pytest

from featurize.engines.torch_settings import CACHE_DIR_VARIABLE, use_private_cache


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(CACHE_DIR_VARIABLE, "")
    monkeypatch.delenv(CACHE_DIR_VARIABLE)
    return tmp_path / "cache"


def chosen():
    use_private_cache()
    return Path(os.environ[CACHE_DIR_VARIABLE])


def test_it_is_the_users_own(home):
    folder = chosen()
    assert folder == home / "headgraft" / "inductor"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_one_that_the_user_named_stays(home, monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "named"))
    assert chosen() == tmp_path / "named"
    assert not home.exists()


def test_the_one_that_torch_names_itself_is_not_the_users(home, monkeypatch, tmp_path):
    """It does so where it finds none named, be it only that torchvision is imported."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert Path(cache_dir()).parent == tmp_path
    assert Path(os.environ[CACHE_DIR_VARIABLE]).parent == tmp_path
    assert chosen() == home / "headgraft" / "inductor"


@pytest.mark.parametrize("trap", ["open", "foreign", "link", "file", "no home"])
def test_somebody_elses_is_not_taken(home, monkeypatch, tmp_path, trap):
    folder = home / "headgraft"
    home.mkdir()
    if trap == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif trap == "foreign":
        if os.geteuid():
            pytest.skip("only root gives a folder away")
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
    elif trap == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    elif trap == "file":
        folder.write_text("")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    found = chosen()
    assert home not in found.parents
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert not list(found.iterdir())
