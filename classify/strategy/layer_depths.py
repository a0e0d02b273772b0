"""Relative depths of the layers of a cache within their network."""

from dataclasses import dataclass
from shlex import quote

from classify.errors import CallError
from featurize.backbones.families import Family, find_family
from featurize.cache.reader import FeatureCache


@dataclass(frozen=True)
class LayerDepths:
    """Relative depths of the layers of a cache.

    Attributes
    ----------
    relative : dict of str to float
        By dataset name, in (0, 1]: the layer's position divided by `n_stages`.
    n_stages : int
    among : str
        What is counted: the stages of a known network, else the layers of the cache.
    missing_last_layer : str
        The network's last layer if the cache lacks it; else empty.
    """

    relative: dict[str, float]
    n_stages: int
    among: str
    missing_last_layer: str

    @classmethod
    def from_cache(cls, cache: FeatureCache) -> "LayerDepths":
        """Look up a cache's layers among the stages of its backbone.

        Parameters
        ----------
        cache : FeatureCache

        Returns
        -------
        LayerDepths

        Raises
        ------
        CallError
            If the cache has fewer than two layers.
        """
        names = {info.layer: None for info in cache.layers.values()}
        if len(names) < 2:
            command = f"featurize run {quote(cache.root or 'IMAGES')} -o {quote(str(cache.path))}"
            raise CallError(
                f"{cache.path} has features of one layer only ({', '.join(names)}), so there is "
                f"nothing to compare it with; add the others with `{command} --layers auto`"
            )
        extractor = cache.extractor
        family = find_family(extractor.backbone) or Family.from_facts(extractor.environment)
        stages = list(names)
        among = "the layers of the cache"
        missing_last = ""
        if family is not None and names.keys() <= set(family.stages):
            stages = list(family.stages)
            among = f"the stages of {extractor.backbone}"
            missing_last = "" if family.last in names else family.last
        depth_of_stage = {name: (i + 1) / len(stages) for i, name in enumerate(stages)}
        relative = {name: depth_of_stage[info.layer] for name, info in cache.layers.items()}
        return cls(relative, len(stages), among, missing_last)
