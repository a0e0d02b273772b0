"""Search timm's published weights by name and licence."""

from dataclasses import asdict, dataclass
from typing import Any

from featurize.backbones.licences import LICENCE_KINDS, classify_licence
from featurize.backbones.names import TIMM
from featurize.backbones.pretrained.timm_models import require_timm
from featurize.errors import CallError
from featurize.text import list_choices


@dataclass(frozen=True)
class PublishedWeights:
    """Published weights of one network.

    Attributes
    ----------
    name : str
        What ``--backbone`` takes.
    size : int
        Height and width of its images in pixels.
    licence : str
        As published; ``unknown`` if nothing was.
    licence_kind : str
        See `featurize.backbones.licences.classify_licence`.
    """

    name: str
    size: int
    licence: str
    licence_kind: str

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes for JSON.

        Returns
        -------
        dict of str to object
            The attributes by name.
        """
        return asdict(self)


def search_timm(pattern: str, licence_kind: str | None = None) -> list[PublishedWeights]:
    """Search timm's published weights.

    Parameters
    ----------
    pattern : str
        A glob over names such as ``timm:*dinov2*``.
    licence_kind : str, optional
        Only weights under such a licence.

    Returns
    -------
    list of PublishedWeights
        By name. Those that nothing here can run are left out: images that are not square.

    Raises
    ------
    BackboneError
        If timm is not installed.
    CallError
        If there is no such kind of licence.
    """
    check_licence_kind(licence_kind)
    require_timm(pattern)
    from timm.models import get_pretrained_cfg, list_pretrained

    found = []
    for name in list_pretrained(pattern.removeprefix(TIMM)):
        published = get_pretrained_cfg(name)
        channels, height, width = published.input_size
        licence = published.license or "unknown"
        if channels != 3 or height != width:
            continue
        if licence_kind in (None, classify_licence(licence)):
            found.append(
                PublishedWeights(f"{TIMM}{name}", height, licence, classify_licence(licence))
            )
    return found


def check_licence_kind(licence_kind: str | None) -> None:
    """Refuse an unknown kind of licence.

    Parameters
    ----------
    licence_kind : str or None
        None stands for any.

    Raises
    ------
    CallError
        If it is unknown.
    """
    if licence_kind is not None and licence_kind not in LICENCE_KINDS:
        raise CallError(f"--licence is one of {list_choices(licence_kind, LICENCE_KINDS)}")
