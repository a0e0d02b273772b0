"""Groups of parameters for an optimiser: learning rates by depth, and what decays."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from classify.finetuning.tuned_part.adapters import get_adapted_name
from classify.finetuning.tuned_part.stages import find_group_ends, list_blocks
from featurize.backbones.backbone import Backbone
from featurize.layers.partition import find_parameter_depths

UNDECAYED_NAMES = (
    "cls_token",
    "class_token",
    "reg_token",
    "pos_embed",
    "pos_embedding",
    "relative_position_bias_table",
)
"""Tokens and positions are inputs, not weights of a sum: networks of timm leave them out of weight
decay, and so did the training of torchvision's."""


class ParamGroups:
    """The groups of a backbone's parameters.

    Parameters
    ----------
    backbone : Backbone
        The network to tune.

    Attributes
    ----------
    depths : dict of str to int
        Position of each tensor's first use, as `find_parameter_depths` returns it.
    are_blocks : bool
        Whether there is a group for each block; else for each stage.

    Raises
    ------
    UnknownLayerError
        If the backbone is of no known family.
    """

    def __init__(self, backbone: Backbone) -> None:
        module = backbone.network.module
        self.depths = find_parameter_depths(backbone.network)
        self.are_blocks = bool(list_blocks(backbone))
        self._ends = find_group_ends(backbone)
        list_undecayed = getattr(module, "no_weight_decay", None)
        self._undecayed = set(list_undecayed() if callable(list_undecayed) else ())

    def count_later_groups(self, name: str) -> int:
        """Count the groups that are deeper than that of a tensor.

        Parameters
        ----------
        name : str
            Name of a tensor of the backbone.

        Returns
        -------
        int
            0 for the deepest group.
        """
        depth = self.depths.get(name, self._ends[-1])
        return max(sum(end >= depth for end in self._ends) - 1, 0)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Tell whether weight decay applies to a parameter.

        Parameters
        ----------
        name : str
            Name of a parameter of the backbone.
        parameter : Parameter
            Its values.

        Returns
        -------
        bool
            False for biases, normalisations, tokens and positions.
        """
        is_named = name in self._undecayed or name.rpartition(".")[2] in UNDECAYED_NAMES
        return parameter.ndim > 1 and not is_named

    def make_groups(
        self,
        parameters: Mapping[str, nn.Parameter],
        prefix: str,
        learning_rate: float,
        decay: float,
        weight_decay: float,
    ) -> Iterator[dict[str, Any]]:
        """Yield groups of parameters with one learning rate and one weight decay each.

        An optimiser works group by group, and a GPU starts anew for each.

        Parameters
        ----------
        parameters : mapping of str to Parameter
            Those of the backbone, and others, which are deeper than all of it.
        prefix : str
            What stands before the names of the backbone's parameters.
        learning_rate : float
            Of the deepest group.
        decay : float
            Each earlier group has the learning rate of the next one times this factor.
        weight_decay : float
            Of weights.

        Yields
        ------
        dict
            ``params`` with their ``lr`` and ``weight_decay``, see `torch.optim.Optimizer`.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for full_name, parameter in parameters.items():
            name = get_adapted_name(full_name.removeprefix(prefix))
            rate = learning_rate * decay ** self.count_later_groups(name)
            group_decay = weight_decay if self.decays(name, parameter) else 0.0
            groups.setdefault((rate, group_decay), []).append(parameter)
        for (rate, group_decay), members in groups.items():
            yield {"params": members, "lr": rate, "weight_decay": group_decay}
