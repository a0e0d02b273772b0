"""The specification of features: a layer of a network, and how its maps are pooled."""

from typing import NamedTuple

from featurize.errors import CallError
from featurize.text import did_you_mean

POOLS = ("avg", "max", "avgmax", "none", "token")
DEFAULT_POOL = "avg"
PRE_LOGITS = "pre_logits"
"""The layer that a classifier would take: the output of a network without its classifier."""


class LayerSpec(NamedTuple):
    """A layer and its pool; also a plain tuple ``(layer, pool)``.

    Parameters
    ----------
    layer : str
        The layer's name in its network.
    pool : {"avg", "max", "avgmax", "none", "token"}
        How its maps become one vector (see `featurize.layers.pooling`).

    Examples
    --------
    >>> LayerSpec("layer4", "max").key
    'layer4@max'
    >>> LayerSpec.parse("layer4:max").option
    'layer4:max'
    """

    layer: str
    pool: str = DEFAULT_POOL

    @classmethod
    def parse(cls, text: str, default_pool: str = DEFAULT_POOL) -> "LayerSpec":
        """Parse ``LAYER``, ``LAYER:POOL`` or ``LAYER@POOL``.

        Parameters
        ----------
        text : str
            One layer, with or without a pool.
        default_pool : str
            The pool if the text names none.

        Returns
        -------
        LayerSpec
            The layer and its pool. Whether a network has the layer is not checked.

        Raises
        ------
        CallError
            If the pool is unknown, or there is no layer.
        """
        layer, _, pool = text.strip().replace("@", ":").partition(":")
        spec = cls(layer, pool or default_pool)
        if spec.pool not in POOLS:
            hint = did_you_mean(spec.pool, POOLS)
            raise CallError(f"no pool {spec.pool!r}{hint}; there are {', '.join(POOLS)}")
        if not layer:
            raise CallError(f"{text!r} names no layer")
        return spec

    @property
    def key(self) -> str:
        """The name in a cache: the layer, or ``LAYER@POOL`` if the pool is not ``avg``."""
        return self.layer if self.pool == DEFAULT_POOL else f"{self.layer}@{self.pool}"

    @property
    def option(self) -> str:
        """The text for ``--layers``: ``LAYER:POOL``."""
        return f"{self.layer}:{self.pool}"
