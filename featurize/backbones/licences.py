"""Licences of weights: what they allow, and what to tell the user."""

PERMISSIVE, NON_COMMERCIAL, RESTRICTED, UNKNOWN = (
    "permissive",
    "non-commercial",
    "restricted",
    "unknown",
)
LICENCE_KINDS = (PERMISSIVE, NON_COMMERCIAL, RESTRICTED, UNKNOWN)

_PERMISSIVE_NAMES = ("apache-2.0", "mit", "bsd", "cc-by-4.0", "cc0", "unlicense", "isc")
"""Each also with a variant behind it, as ``bsd-3-clause``."""


def classify_licence(licence: str) -> str:
    """Classify a licence by its name.

    Parameters
    ----------
    licence : str
        Its name, as weights carry it: ``apache-2.0``, ``cc-by-nc-4.0``, ``dinov3-license``.

    Returns
    -------
    {"permissive", "non-commercial", "restricted", "unknown"}
        ``restricted`` is a licence of its own, which has to be read.
    """
    name = licence.lower().strip()
    if name in ("", "unknown", "other", "none"):
        return UNKNOWN
    if "-nc" in name or "non-commercial" in name or "noncommercial" in name:
        return NON_COMMERCIAL
    if any(name == known or name.startswith(f"{known}-") for known in _PERMISSIVE_NAMES):
        return PERMISSIVE
    return RESTRICTED


def find_licence_warning(licence: str, weights: str) -> str:
    """Return what to tell a user about the licence of weights.

    Parameters
    ----------
    licence : str
        Its name.
    weights : str
        Name of the weights, for the message.

    Returns
    -------
    str
        A sentence; empty for a permissive licence.
    """
    kind = classify_licence(licence)
    if kind == NON_COMMERCIAL:
        return (
            f"warning: the weights {weights} are under {licence}, which forbids commercial use; "
            "so are features and heads made with them"
        )
    if kind == RESTRICTED:
        return f"warning: the weights {weights} are under {licence}, a licence of its own: read it"
    if kind == UNKNOWN:
        return f"warning: the licence of the weights {weights} is unknown: ask who published them"
    return ""
