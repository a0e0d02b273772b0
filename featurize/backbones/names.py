"""Names of backbones and weights, as users write them. Nothing is loaded to read one.

This module does not import torch, so that a finished cache is recognised without it.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from featurize.errors import BackboneError, CallError

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
TIMM, HUB = "timm:", "hf-hub:"
_CODE = ("torch.hub:", "torchhub:")  # what would have to be run to get a network
LITE = "lite0"
"""The backbone whose weights come as a Python package."""
LITE_ARCHITECTURE = "tf_efficientnet_lite0"
CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?")
_ARCHITECTURE = re.compile(r"[a-z0-9]\w*")


class TimmName(NamedTuple):
    """The name of a network of timm: ``timm:ARCH[.TAG][?ARGUMENT=VALUE&...]``.

    Parameters
    ----------
    architecture : str
        As timm has it.
    tag : str
        Of its weights; empty for timm's default.
    arguments : tuple of (str, object)
        What the network is built with, where it differs from the architecture. It changes features
        and not weights, so it is part of the backbone's name. Sorted.
    """

    architecture: str
    tag: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "TimmName":
        """Parse a name.

        Parameters
        ----------
        text : str
            With or without ``timm:`` in front.

        Returns
        -------
        TimmName
            Whether timm has such a network is not checked.

        Raises
        ------
        BackboneError
            If the text has another form.
        """
        name, _, query = text.removeprefix(TIMM).partition("?")
        architecture, _, tag = name.partition(".")
        if not _ARCHITECTURE.fullmatch(architecture):
            raise BackboneError(f"{text!r} is no name of a network: timm:ARCHITECTURE[.TAG]")
        arguments = {}
        for word in filter(None, query.split("&")):
            key, _, value = word.partition("=")
            try:
                arguments[key] = json.loads(value)
            except ValueError:
                arguments[key] = value
        return cls(architecture, tag, tuple(sorted(arguments.items())))

    def __str__(self) -> str:
        """Return the name without the tag, as it stands in a cache."""
        words = [
            f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
            for key, value in self.arguments
        ]
        return f"{TIMM}{self.architecture}" + (f"?{'&'.join(words)}" if words else "")


def split_name(name: str, weights: str | None) -> tuple[str, str | None]:
    """Split what a user calls a backbone into the network and its weights.

    Parameters
    ----------
    name : str
        Value of ``--backbone``.
    weights : str or None
        Value of ``--weights``.

    Returns
    -------
    name : str
        The network's name as it stands in a cache. For a repository of the hub and for a folder it
        is in their configuration: then it is the value itself.
    weights : str or None
        The weights; None for the default.

    Raises
    ------
    BackboneError
        If the name has a form that nothing here can have.
    CallError
        If weights are named twice.
    """
    if name.startswith(_CODE):
        raise BackboneError(
            "networks of torch.hub are Python code of strangers, which is not run here. Load it "
            "yourself if you trust it, and pass it as featurize.Backbone(network, ...)"
        )
    if name == LITE:
        return f"{TIMM}{LITE_ARCHITECTURE}", weights or LITE
    if name.startswith(TIMM):
        parsed = TimmName.parse(name)
        if parsed.tag and weights not in (None, parsed.tag):
            raise CallError(f"{name} names its weights; then --weights has no place")
        return str(parsed), weights or parsed.tag or None
    if name.startswith(HUB):
        if not _HUB_ID.fullmatch(name.removeprefix(HUB)) or ".." in name:
            raise BackboneError(
                f"{name!r} is no name of a model: hf-hub:ORGANISATION/NAME[@REVISION]"
            )
        if weights is not None:
            raise CallError(f"{name} brings its weights; then --weights has no place")
    if weights is not None and is_pretrained_folder(name):
        raise CallError(f"{name} is a folder with its weights; then --weights has no place")
    return name, weights


def is_pretrained_folder(text: str) -> bool:
    """Tell whether the value of ``--backbone`` or ``--weights`` is a folder with a network.

    Parameters
    ----------
    text : str
        A name or a path.

    Returns
    -------
    bool
        Whether it is a folder with a ``config.json``.
    """
    return not text.startswith((TIMM, HUB)) and os.path.isfile(os.path.join(text, CONFIG_FILE))  # noqa: PTH113, PTH118


def is_file_path(text: str) -> bool:
    """Tell whether the value of ``--backbone`` or ``--weights`` is a local file or folder.

    Parameters
    ----------
    text : str
        A name or a path.

    Returns
    -------
    bool
        True if it has the suffix of a weights file, contains a slash, or exists as a file.
    """
    if text.startswith((TIMM, HUB, *_CODE)):
        return False
    is_written_so = text.endswith(WEIGHTS_SUFFIXES) or "/" in text
    return is_written_so or os.path.isfile(text) or is_pretrained_folder(text)  # noqa: PTH113


def find_weights_file(path: str | Path) -> Path:
    """Find the file with the weights, for a path that may be a folder.

    Parameters
    ----------
    path : path
        A file, or a folder with a ``config.json``.

    Returns
    -------
    Path
        The file; of a folder the one that timm would take, safetensors first.

    Raises
    ------
    BackboneError
        If the folder has no file of weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        return folder
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise BackboneError(f"{folder} has no weights beside its {CONFIG_FILE}: no {WEIGHTS_FILES[0]}")


WEIGHTS_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Files of weights in a folder or a repository of the hub, the preferred one first."""


def read_backbone_name(metadata: Mapping[str, str]) -> str:
    """Read the name of a weights file's network from the file's metadata.

    Parameters
    ----------
    metadata : mapping of str to str
        Metadata of the file.

    Returns
    -------
    str
        Name of a backbone; empty if the metadata have none.
    """
    return metadata.get("backbone", "").strip('"')  # metadata of a fine-tuned head are JSON
