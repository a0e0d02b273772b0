"""Which features: a layer of a network, and how its maps are pooled."""

from typing import NamedTuple

from featurize.errors import CallError

POOLS = ("avg", "max", "avgmax", "none", "token")
DEFAULT_POOL = "avg"


class LayerSpec(NamedTuple):
    """A layer and its pool. It is a tuple too, so it goes wherever ``(layer, pool)`` does.

    Parameters
    ----------
    layer : str
        The layer's name in its network.
    pool : {"avg", "max", "avgmax", "none", "token"}

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
        """Read ``LAYER``, ``LAYER:POOL`` or ``LAYER@POOL``.

        Parameters
        ----------
        text : str
        default_pool : str
            The pool where the text names none.

        Raises
        ------
        CallError
            If the pool is unknown, or there is no layer.
        """
        layer, _, pool = text.strip().replace("@", ":").partition(":")
        spec = cls(layer, pool or default_pool)
        if spec.pool not in POOLS:
            raise CallError(f"no pool {spec.pool!r}; there are {', '.join(POOLS)}")
        if not layer:
            raise CallError(f"{text!r} names no layer")
        return spec

    @property
    def key(self) -> str:
        """The name in a cache: the layer, or ``LAYER@POOL`` where the pool is not ``avg``."""
        return self.layer if self.pool == DEFAULT_POOL else f"{self.layer}@{self.pool}"

    @property
    def option(self) -> str:
        """The text for ``--layers``: ``LAYER:POOL``."""
        return f"{self.layer}:{self.pool}"
