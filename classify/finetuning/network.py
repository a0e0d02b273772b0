"""The network to tune: a backbone, trainable from some layer on, and a new classifier."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from classify.errors import CallError
from classify.heads.models import LinearModel, MLPModel
from featurize.backbones.backbone import Backbone
from featurize.backbones.families import parse_layers
from featurize.layers.partition import extract_upper_part, find_first_op, find_parameter_depths

HIDDEN_UNITS = 512  # units of the hidden layer of `mlp`
CLASSIFIER_KINDS = ("linear", "mlp")


class Classifier(nn.Module):
    """A linear layer, or one hidden layer and a linear one, on standardised embeddings.

    Parameters
    ----------
    dim : int
        Dimension D of the embeddings.
    n_classes : int
        Number K of classes.
    kind : {"linear", "mlp"}
        ``mlp`` has one hidden layer of `HIDDEN_UNITS` units.

    Attributes
    ----------
    mean, scale : Tensor of shape (D,)
        Mean and standard deviation of the embeddings, 0 and 1 until they are set.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, n_classes: int, kind: str) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.hidden = nn.Linear(dim, HIDDEN_UNITS) if kind == "mlp" else None
        self.out = nn.Linear(dim if self.hidden is None else HIDDEN_UNITS, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute decision values.

        Parameters
        ----------
        x : Tensor of shape (B, D)
            Embeddings.

        Returns
        -------
        Tensor of shape (B, K)
        """
        x = (x - self.mean) / self.scale
        decision_values: Tensor = self.out(x if self.hidden is None else self.hidden(x).relu())
        return decision_values

    def fit_scaling(self, embeddings: np.ndarray) -> None:
        """Set mean and scale, so that each dimension is standardised.

        Parameters
        ----------
        embeddings : float array of shape (n, D)
        """
        scale = embeddings.std(axis=0)
        self.mean.copy_(torch.from_numpy(embeddings.mean(axis=0)))
        self.scale.copy_(torch.from_numpy(np.where(scale > 1e-6, scale, 1)))

    def init_from(self, model: LinearModel) -> None:
        """Copy the weights of a linear head on the same embeddings.

        Parameters
        ----------
        model : LinearModel
            With K classes and D features.
        """
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(model.mean))
            self.scale.copy_(torch.from_numpy(model.scale))
            self.out.weight.copy_(torch.from_numpy(model.coef))
            self.out.bias.copy_(torch.from_numpy(model.intercept))

    def to_model(self) -> LinearModel | MLPModel:
        """Convert to a model of arrays.

        Returns
        -------
        LinearModel or MLPModel
        """
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()}
        mean, scale = arrays["mean"], arrays["scale"]
        coef, intercept = arrays["out.weight"], arrays["out.bias"]
        if self.hidden is None:
            return LinearModel(mean, scale, coef, intercept)
        hidden = (arrays["hidden.weight"], arrays["hidden.bias"])
        return MLPModel(mean, scale, *hidden, coef, intercept)


class FineTuneNetwork(nn.Module):
    """A backbone, trainable from some layer on, and a classifier.

    Parameters
    ----------
    backbone : Backbone
        Its weights are tuned in place.
    tune : str
        ``all``, or a layer: that and everything after it.
    n_classes : int
        Number K of classes.
    classifier : {"linear", "mlp"}
        See `Classifier`.
    from_activations : bool
        Whether the inputs are the activations that enter the tuned part. By default they are
        images.
    batch_norm : {"frozen", "trained"}
        ``frozen`` (the default): images are normalised by the pretrained statistics.

    Attributes
    ----------
    last_layer : LayerSpec
        The backbone's last layer, which gives the embeddings.
    trunk : Module
        The part of the backbone that is run.
    classifier : Classifier
        Takes the embeddings.

    Raises
    ------
    CallError
        If the classifier is unknown, or nothing from `tune` on has weights.
    UnknownLayerError
        If the backbone has no layer `tune`.
    BackboneError
        If the backbone cannot be split there.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        tune: str,
        n_classes: int,
        classifier: str,
        *,
        from_activations: bool = False,
        batch_norm: str = "frozen",
    ) -> None:
        super().__init__()
        if classifier not in CLASSIFIER_KINDS:
            raise CallError(
                f"the classifier is one of {', '.join(CLASSIFIER_KINDS)}, not {classifier!r}"
            )
        self.batch_norm, self.from_activations = batch_norm, from_activations
        (self.last_layer,) = parse_layers("last", None, backbone.name)
        network = self._network = backbone.network
        first_tuned_op = 0 if tune == "all" else find_first_op(network, tune)
        # Loads the weights into the network that all its parts share.
        self.trunk = backbone.cut([self.last_layer])
        if from_activations:
            self.trunk = extract_upper_part(network, tune, self.last_layer)
        self._depths = find_parameter_depths(network)
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(self._depths[name] >= first_tuned_op)
        if not any(parameter.requires_grad for parameter in self.trunk.parameters()):
            raise CallError(f"nothing from {tune!r} on has weights to tune; name a layer before")
        self._frozen_modules = {
            str(node.target)
            for node, depth in network.node_depths.items()
            if node.op == "call_module" and depth < first_tuned_op
        }
        self._stage_ends = [network.layer(name).depth for name in list_stages(backbone)]
        layer = network.layer(self.last_layer.layer)
        mean, std = map(torch.tensor, (backbone.preprocess.mean, backbone.preprocess.std))
        self.register_buffer("mean", 255 * mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * std.view(1, 3, 1, 1), persistent=False)
        dim = layer.dim(self.last_layer.pool)
        self.classifier = Classifier(dim, n_classes, classifier)

    def embed(self, x: Tensor) -> Tensor:
        """Compute embeddings.

        Parameters
        ----------
        x : Tensor
            Pixels, uint8 (B, 3, H, W); with `from_activations`, activations, float32.

        Returns
        -------
        Tensor of shape (B, D)
        """
        # Convolutions are 1.5 to 2 times as fast with channels last. It needs four axes.
        memory_format = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        x = x.to(torch.float32, memory_format=memory_format)
        if not self.from_activations:
            x = (x - self.mean) / self.std
        embeddings: Tensor = self.trunk(x) if self.from_activations else self.trunk(x)[0]
        return embeddings

    def forward(self, x: Tensor) -> Tensor:
        """Compute decision values.

        Parameters
        ----------
        x : Tensor
            As in `embed`.

        Returns
        -------
        Tensor of shape (B, K)
        """
        decision_values: Tensor = self.classifier(self.embed(x))
        return decision_values

    def train(self, mode: bool = True) -> "FineTuneNetwork":
        """Set the training mode, except in the frozen part and in frozen batch norm.

        Parameters
        ----------
        mode : bool
            True (the default) for training, False for evaluation.

        Returns
        -------
        FineTuneNetwork
            Itself.
        """
        super().train(mode)
        for name, module in self.trunk.named_modules():
            # The frozen part has no dropout either, so the tuned part always gets the same inputs.
            is_frozen_norm = isinstance(module, _BatchNorm) and self.batch_norm == "frozen"
            if is_frozen_norm or name in self._frozen_modules:
                module.eval()
        return self

    def param_groups(
        self, learning_rate: float, layer_decay: float, weight_decay: float
    ) -> Iterator[dict[str, object]]:
        """Yield parameter groups for an optimiser, with a learning rate by stage.

        Parameters
        ----------
        learning_rate : float
            Of the classifier and the deepest stage.
        layer_decay : float
            Each earlier stage has the learning rate of the next one times this factor.
        weight_decay : float
            Of weights. Biases and normalisations have none.

        Yields
        ------
        dict
            One parameter with its ``lr`` and ``weight_decay``, see `torch.optim.Optimizer`.
        """
        for name, parameter in self.trainable_parameters().items():
            depth = self._depths.get(name.removeprefix("trunk."), self._stage_ends[-1])
            n_later_stages = sum(end >= depth for end in self._stage_ends) - 1
            yield {
                "params": [parameter],
                "lr": learning_rate * layer_decay ** max(n_later_stages, 0),
                "weight_decay": weight_decay if parameter.ndim > 1 else 0.0,
            }

    def use_images(self) -> None:
        """Take images from now on: run the frozen part and then the tuned one."""
        if self.from_activations:
            self.trunk, self.from_activations = self._network.cut([self.last_layer]), False

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the state dict of trainable parameters and of buffers.

        Returns
        -------
        dict of str to Tensor
        """
        names = self.trainable_parameters().keys() | {name for name, _ in self.named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name, in the order of `param_groups`.

        Returns
        -------
        dict of str to Parameter
        """
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }


def list_stages(backbone: Backbone) -> tuple[str, ...]:
    """Return the last layer of each stage of a backbone, shallowest first.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    tuple of str
    """
    return tuple(spec.layer for spec in parse_layers("auto", None, backbone.name))


def find_last_weighted_stage(backbone: Backbone) -> str:
    """Find the last stage with a weight matrix; normalisations alone do not count.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    str
        The layer that ends the stage.
    """
    network = backbone.network
    (last_layer,) = parse_layers("last", None, backbone.name)
    last_depth, depths = network.layer(last_layer.layer).depth, find_parameter_depths(network)
    matrix_depths = [
        depths[name]
        for name, parameter in network.module.named_parameters()
        if parameter.ndim > 1 and depths.get(name, last_depth + 1) <= last_depth
    ]
    return next(
        name
        for name in reversed(list_stages(backbone))
        if find_first_op(network, name) <= max(matrix_depths)
    )
