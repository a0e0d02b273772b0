"""The list of backbones for `featurize backbones`."""

import fnmatch
import importlib.util
from collections.abc import Sequence
from typing import Any

from featurize.backbones.families import EMBEDDING_DIMS
from featurize.backbones.licences import classify_licence
from featurize.backbones.names import LITE, TIMM
from featurize.backbones.pretrained.timm_search import check_licence_kind, search_timm
from featurize.backbones.pretrained.torchvision_models import SEEDLING, list_names, list_weights
from featurize.text import did_you_mean


def find_backbones(pattern: str | None, licence_kind: str | None) -> list[dict[str, Any]]:
    """Find backbones by name and licence.

    Parameters
    ----------
    pattern : str or None
        A glob over names; timm is searched if it begins with ``timm:`` or nothing else has it.
    licence_kind : str or None
        Only weights under such a licence.

    Returns
    -------
    list of dict
        For JSON: ``name``, ``weights``, ``dim``, ``source``, ``licence``; of timm's also ``size``.

    Raises
    ------
    BackboneError
        If timm is to be searched and is not installed.
    CallError
        If there is no such kind of licence.
    """
    check_licence_kind(licence_kind)
    names = [] if pattern and pattern.startswith(TIMM) else [SEEDLING, LITE, *list_names()[1:]]
    entries = [
        _describe(name) for name in names if pattern is None or fnmatch.fnmatch(name, pattern)
    ]
    if licence_kind is not None:
        entries = [e for e in entries if classify_licence(e["licence"] or "") == licence_kind]
    if pattern is None or (entries and not pattern.startswith(TIMM)):
        return entries
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"{pattern}*"
    return entries + [
        {
            "name": weights.name,
            "weights": [weights.name.partition(".")[2]],
            "dim": None,
            "source": "timm",
            "licence": weights.licence,
            "size": weights.size,
        }
        for weights in search_timm(wanted, licence_kind)
    ]


def _describe(name: str) -> dict[str, Any]:
    if name == LITE:
        source, weights, dim = "headgraft[lite]", [LITE], 1280
    else:
        source = "shipped inside" if name == SEEDLING else "torchvision"
        weights, dim = list_weights(name), EMBEDDING_DIMS.get(name)  # type: ignore[assignment]
    # torchvision says nothing of the licences of its weights.
    licence = "apache-2.0" if name in (LITE, SEEDLING) else None
    return {"name": name, "weights": weights, "dim": dim, "source": source, "licence": licence}


def show_backbones(entries: Sequence[dict[str, Any]], pattern: str | None) -> None:
    """Print backbones as a table.

    Parameters
    ----------
    entries : sequence of dict
        As `find_backbones` returns them.
    pattern : str or None
        As it was given.
    """
    width = max((len(entry["name"]) for entry in entries), default=0)
    for entry in entries:
        if entry["source"] == "timm":
            print(f"{entry['name']:{width}}  {entry['size']:>4} px  {entry['licence']}")
        else:
            dim = entry["dim"] or "?"
            weights = " ".join(entry["weights"])
            print(f"{entry['name']:20} {dim:>5}  {entry['source']:15}  {weights}")
    if pattern is None:
        has_timm = importlib.util.find_spec("timm") is not None
        hint = "" if has_timm else "; pip install 'headgraft[timm]'"
        print(f"timm has more: `featurize backbones 'timm:*dinov2*'` searches them{hint}")
    elif not entries:
        names = [SEEDLING, LITE, *list_names()[1:]]
        print(f"nothing has a name like {pattern}{did_you_mean(pattern, names)}")
