"""The screen of `featurize doctor`."""

from collections.abc import Iterator

from featurize.diagnosis.diagnose import Diagnosis
from featurize.diagnosis.machine import Machine
from featurize.diagnosis.packages import BROKEN, INSTALLED
from featurize.diagnosis.self_test import SelfTest
from featurize.text import format_bytes, to_printable

# Those whose versions matter for a report of a bug.
SHOWN = ("torch", "torchvision", "timm", "onnxruntime", "scikit-learn", "h5py", "pillow")
LABEL_WIDTH = 11


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print a diagnosis on one screen.

    Parameters
    ----------
    diagnosis : Diagnosis
        As `featurize.diagnose` returns it.
    """
    versions = diagnosis.versions
    for label, text in (
        ("headgraft", f"{diagnosis.headgraft}, Python {diagnosis.python}, {diagnosis.platform}"),
        ("packages", ", ".join(f"{name} {versions[name] or '-'}" for name in SHOWN)),
        *_describe_machine(diagnosis.machine),
        *_describe_self_test(diagnosis.self_test),
    ):
        print(f"{label:{LABEL_WIDTH}}{to_printable(text)}")
    installed = [extra.name for extra in diagnosis.extras if extra.status == INSTALLED]
    print(f"{'extras':{LABEL_WIDTH}}{', '.join(installed) or 'none'}")
    for extra in diagnosis.extras:
        if extra.status != INSTALLED:
            install = "see below" if extra.status == BROKEN else extra.install
            print(f"  {extra.status}  {extra.name}: {extra.brings}; {install}")
    for notice in diagnosis.notices:
        print(f"note: {to_printable(notice, 1000)}")
    for problem in diagnosis.problems:
        print(f"problem: {to_printable(problem, 1000)}")
    n_problems = len(diagnosis.problems)
    if not n_problems:
        print("all is well")
    else:
        verdict = "works apart from that" if diagnosis.works else "does not work here"
        print(f"{n_problems} problem{'s' if n_problems > 1 else ''}; Headgraft {verdict}")


def _describe_machine(machine: Machine) -> Iterator[tuple[str, str]]:
    cores = f"{machine.usable_cores} usable cores, {machine.physical_cores} physical"
    yield "processor", ", ".join(filter(None, (machine.processor, cores)))
    yield "memory", f"{format_bytes(machine.memory_bytes)} free"
    for folder in machine.folders:
        label = folder.purpose.removesuffix(" folder").removeprefix("compiled ")
        writable = "can be written" if folder.writable else "cannot be written"
        if folder.writable and not folder.exists:
            writable = "not there yet"
        free = "" if folder.free_bytes is None else f", {format_bytes(folder.free_bytes)} free"
        yield label, f"{folder.path}: {writable}{free}"
    if machine.settings:
        yield "settings", ", ".join(f"{name}={value}" for name, value in machine.settings.items())


def _describe_self_test(self_test: SelfTest) -> Iterator[tuple[str, str]]:
    device = self_test.device
    if device is not None:
        memory = "" if device.memory_bytes is None else f", {format_bytes(device.memory_bytes)}"
        yield "device", f"{device.kind}: {device.name}{memory}"
    steps = ", ".join(
        f"{step.name} {f'{step.seconds:.1f} s' if step.ok else 'FAILED'}"
        for step in self_test.steps
    )
    yield "self-test", steps
    if self_test.decoded_per_second and self_test.run_per_second:
        yield (
            "",
            f"{self_test.images} small images by seedling: a thread decodes "
            f"{self_test.decoded_per_second:,.0f} a second, the network runs "
            f"{self_test.run_per_second:,.0f}",
        )
    if self_test.difference is not None:
        yield "", f"numbers agree with the stored ones, to {self_test.difference:.0e} of the norm"
