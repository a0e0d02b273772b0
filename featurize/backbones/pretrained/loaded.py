"""What loading a network by name gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from featurize.backbones.families import Family
from featurize.images.preprocess import Preprocess


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, its weights and what is known of it.

    Attributes
    ----------
    module : nn.Module
        The network, in evaluation mode.
    name : str
        The backbone's name in a cache.
    preprocess : Preprocess
        Its preprocessing.
    weights : str
        Where the weights came from: a name, or the name of a file.
    tensors : dict of str to Tensor, or None
        The weights by name; None for initial weights.
    family : Family or None
        Its stages, if they are known.
    build : callable or None
        Builds the network for another size of images, without weights.
    classifier : str or None
        Name of the module that classifies; its input becomes the layer ``pre_logits``. Empty if
        the network has none, None if it is not known.
    facts : mapping of str to str
        What a cache records beside: licence, source, versions.
    projection : Tensor of shape (E, D), or None
        Projection of ``pre_logits`` (D) to the space shared with a text tower (E).
    """

    module: nn.Module
    name: str
    preprocess: Preprocess
    weights: str
    tensors: dict[str, Tensor] | None
    family: Family | None = None
    build: Callable[[int], nn.Module] | None = None
    classifier: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    projection: Tensor | None = None
