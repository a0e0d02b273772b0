"""`diagnose`: whether Headgraft works here, and what is missing."""

import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from featurize.diagnosis.machine import Machine, describe_machine
from featurize.diagnosis.packages import BROKEN, INSTALLED, Extra, Package, check_packages
from featurize.diagnosis.self_test import SelfTest, run_self_test
from featurize.progress import Report, ignore
from featurize.text import format_bytes
from featurize.version import __version__

LOW_DISK_BYTES = 1 << 30
_FOLDER_ADVICE = {
    "working folder": "give -o a path elsewhere",
    "hub": "set HF_HOME to a folder that can, or weights of the hub cannot be downloaded",
    "torch": "set TORCH_HOME to a folder that can, or torchvision's weights cannot be downloaded",
    "compiled kernels": "--engine compile then makes its kernels anew in every run",
}


@dataclass(frozen=True)
class Diagnosis:
    """What is installed, what the machine has, and whether the whole works.

    Attributes
    ----------
    headgraft, python, platform : str
        Versions of Headgraft and Python; the system.
    packages : tuple of Package
        The packages that are always needed.
    extras : tuple of Extra
        The optional parts.
    machine : Machine
        Cores, memory, folders, settings.
    self_test : SelfTest
        Drawn images embedded, and compared with stored numbers.
    problems : tuple of str
        What is wrong, each with what to do. A missing extra is no problem, a broken one is.
    notices : tuple of str
        What may surprise.
    """

    headgraft: str
    python: str
    platform: str
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    machine: Machine
    self_test: SelfTest
    problems: tuple[str, ...]
    notices: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether all but a broken extra works."""
        return self.self_test.ok and all(p.status == INSTALLED for p in self.packages)

    @property
    def versions(self) -> dict[str, str | None]:
        """The version of each package by its name, None for those that are missing."""
        optional = [package for extra in self.extras for package in extra.packages]
        return {package.name: package.version for package in (*self.packages, *optional)}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON, with ``ok``, ``works`` and ``versions``.

        Returns
        -------
        dict of str to object
            JSON values only.
        """
        return {
            "ok": not self.problems,
            "works": self.works,
            "versions": self.versions,
            **asdict(self),
        }


def diagnose(*, report: Report = ignore) -> Diagnosis:
    """Say what is installed, and test whether images become features here.

    Packages are imported, and images embedded, in child processes: what crashes there is reported.
    Nothing is downloaded, and nothing written but a temporary folder.

    Parameters
    ----------
    report : callable
        Called with the `Progress`.

    Returns
    -------
    Diagnosis
        What was found; `works` and `problems` sum it up.
    """
    machine = describe_machine()
    packages, extras = check_packages(report)
    self_test = run_self_test(report)
    return Diagnosis(
        headgraft=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=tuple(packages),
        extras=tuple(extras),
        machine=machine,
        self_test=self_test,
        problems=tuple(_find_problems(packages, extras, self_test)),
        notices=tuple(_find_notices(machine, self_test)),
    )


def _find_problems(
    packages: list[Package], extras: list[Extra], self_test: SelfTest
) -> Iterator[str]:
    for package in packages:
        if package.status != INSTALLED:
            yield _describe_package_problem(package, f"pip install {package.name}")
    for step in self_test.steps:
        if not step.ok:
            yield f"self-test: {step.name}: {step.problem}; {step.advice}"
    # A package of two extras, as timm is, is named with the first.
    in_extras = [(package, extra) for extra in reversed(extras) for package in extra.packages]
    broken = {p.name: (p, extra) for p, extra in in_extras if p.status == BROKEN}
    for package, extra in broken.values():
        yield f"extra {extra.name}: {_describe_package_problem(package, extra.install)}"


def _describe_package_problem(package: Package, install: str) -> str:
    if package.status != BROKEN:
        return f"{package.name} is missing: {install}"
    reinstall = f"{shlex.quote(sys.executable)} -m pip install --force-reinstall {package.name}"
    return f"{package.name} cannot be imported: {package.error}; {reinstall}"


def _find_notices(machine: Machine, self_test: SelfTest) -> Iterator[str]:
    for folder in machine.folders:
        if not folder.writable:
            advice = _FOLDER_ADVICE[folder.purpose]
            yield f"{folder.purpose} {folder.path} cannot be written; {advice}"
    working_folder = machine.folders[0]
    if working_folder.free_bytes is not None and working_folder.free_bytes < LOW_DISK_BYTES:
        yield f"the working folder's disk has {format_bytes(working_folder.free_bytes)} left"
    if machine.settings.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        yield "HF_HUB_OFFLINE is set: nothing is downloaded from the hub"
    n_threads = machine.settings.get("OMP_NUM_THREADS", "")
    if n_threads.isdecimal() and int(n_threads) < machine.physical_cores:
        yield f"OMP_NUM_THREADS lets torch use {n_threads} of {machine.physical_cores} cores"
    if self_test.device is not None and self_test.device.unused:
        yield self_test.device.unused
