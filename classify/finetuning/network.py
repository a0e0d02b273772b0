"""A network to be tuned: a backbone from some layer on, and a new classifier of the right size."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from classify.errors import CallError
from classify.heads.models import LinearModel, MLPModel
from featurize.backbones.backbone import Backbone
from featurize.backbones.families import parse_layers
from featurize.backbones.partition import extract_upper_part, find_first_op, find_parameter_depths
from featurize.backbones.pooling import pooled_dim

HIDDEN_UNITS = 512  # units of the hidden layer of `mlp`
CLASSIFIER_KINDS = ("linear", "mlp")


class Classifier(nn.Module):
    """A linear layer, or one hidden layer and a linear one, on standardised embeddings.

    Parameters
    ----------
    dim, n_classes : int
    kind : {"linear", "mlp"}
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
        """Scores (B, K) of embeddings (B, D)."""
        x = (x - self.mean) / self.scale
        scores: Tensor = self.out(x if self.hidden is None else self.hidden(x).relu())
        return scores

    def fit_scaling(self, embeddings: np.ndarray) -> None:
        """Take mean and scale from embeddings (n, D), so that every dimension counts alike."""
        scale = embeddings.std(axis=0)
        self.mean.copy_(torch.from_numpy(embeddings.mean(axis=0)))
        self.scale.copy_(torch.from_numpy(np.where(scale > 1e-6, scale, 1)))

    def init_from(self, model: LinearModel) -> None:
        """Begin as a linear head on the same embeddings."""
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(model.mean))
            self.scale.copy_(torch.from_numpy(model.scale))
            self.out.weight.copy_(torch.from_numpy(model.coef))
            self.out.bias.copy_(torch.from_numpy(model.intercept))

    def to_model(self) -> LinearModel | MLPModel:
        """The same as arrays."""
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()}
        mean, scale = arrays["mean"], arrays["scale"]
        coef, intercept = arrays["out.weight"], arrays["out.bias"]
        if self.hidden is None:
            return LinearModel(mean, scale, coef, intercept)
        hidden = (arrays["hidden.weight"], arrays["hidden.bias"])
        return MLPModel(mean, scale, *hidden, coef, intercept)


class FineTuneNetwork(nn.Module):
    """A backbone, part of it to be tuned, and a classifier.

    Parameters
    ----------
    backbone : Backbone
        Its weights are tuned in place.
    tune : str
        ``all``, or a layer: that and everything after it.
    n_classes : int
    classifier : {"linear", "mlp"}
    from_activations : bool
        Whether it takes the activations that enter the tuned part, instead of images.
    batch_norm : {"frozen", "trained"}
        Frozen: normalised by the statistics that came with the weights.

    Raises
    ------
    CallError, UnknownLayerError, BackboneError
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
        begin = 0 if tune == "all" else find_first_op(network, tune)
        # Loads the weights into the network that all its parts share.
        self.trunk = backbone.cut([self.last_layer])
        if from_activations:
            self.trunk = extract_upper_part(network, tune, self.last_layer)
        self._depths = find_parameter_depths(network)
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(self._depths[name] >= begin)
        if not any(parameter.requires_grad for parameter in self.trunk.parameters()):
            raise CallError(f"nothing from {tune!r} on has weights to tune; name a layer before")
        self._frozen_modules = {
            str(node.target)
            for node, depth in network.node_depths.items()
            if node.op == "call_module" and depth < begin
        }
        self._stage_ends = [network.layer(name).depth for name in list_stages(backbone)]
        layer = network.layer(self.last_layer.layer)
        mean, std = map(torch.tensor, (backbone.preprocess.mean, backbone.preprocess.std))
        self.register_buffer("mean", 255 * mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * std.view(1, 3, 1, 1), persistent=False)
        dim = pooled_dim(layer.axis_order, self.last_layer.pool, layer.map_shape)
        self.classifier = Classifier(dim, n_classes, classifier)

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B, D) of pixels, uint8 (B, 3, H, W), or of entering maps, float32."""
        # Channels last: convolutions then run half as long again, or twice as fast. Vectors that
        # enter have none.
        form = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        x = x.to(torch.float32, memory_format=form)
        if not self.from_activations:
            x = (x - self.mean) / self.std
        found: Tensor = self.trunk(x) if self.from_activations else self.trunk(x)[0]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, K)."""
        scores: Tensor = self.classifier(self.embed(x))
        return scores

    def train(self, mode: bool = True) -> "FineTuneNetwork":
        """Training mode; the frozen part, and frozen batch norm, stay as they are."""
        super().train(mode)
        for name, module in self.trunk.named_modules():
            # Dropout too: what enters the tuned part is always the same.
            frozen = isinstance(module, _BatchNorm) and self.batch_norm == "frozen"
            if frozen or name in self._frozen_modules:
                module.eval()
        return self

    def param_groups(
        self, learning_rate: float, layer_decay: float, weight_decay: float
    ) -> Iterator[dict[str, object]]:
        """Parameters for an optimiser, with a learning rate by stage.

        Parameters
        ----------
        learning_rate : float
            Of the classifier and the deepest stage.
        layer_decay : float
            Each stage before has the next one's rate times this.
        weight_decay : float
            Of weights; biases and normalisations have none.
        """
        for name, parameter in self.trainable_parameters().items():
            depth = self._depths.get(name.removeprefix("trunk."), self._stage_ends[-1])
            later = sum(end >= depth for end in self._stage_ends) - 1
            yield {
                "params": [parameter],
                "lr": learning_rate * layer_decay ** max(later, 0),
                "weight_decay": weight_decay if parameter.ndim > 1 else 0.0,
            }

    def use_images(self) -> None:
        """From now on take images: the frozen part and the tuned one, one after the other."""
        if self.from_activations:
            self.trunk, self.from_activations = self._network.cut([self.last_layer]), False

    def trainable_state(self) -> dict[str, Tensor]:
        """All that training changes, by name: tuned parameters, and statistics if they are."""
        changing = self.trainable_parameters().keys() | {name for name, _ in self.named_buffers()}
        return {k: v for k, v in self.state_dict().items() if k in changing}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are tuned, by name, in the order an optimiser has them."""
        return {k: parameter for k, parameter in self.named_parameters() if parameter.requires_grad}


def list_stages(backbone: Backbone) -> tuple[str, ...]:
    """The ends of a backbone's stages, shallowest first."""
    return tuple(spec.layer for spec in parse_layers("auto", None, backbone.name))


def find_last_weighted_stage(backbone: Backbone) -> str:
    """The last stage to have a matrix of weights: a normalisation alone is none."""
    network = backbone.network
    (last,) = parse_layers("last", None, backbone.name)
    end, depth = network.layer(last.layer).depth, find_parameter_depths(network)
    matrices = [
        depth[name]
        for name, parameter in network.module.named_parameters()
        if parameter.ndim > 1 and depth.get(name, end + 1) <= end
    ]
    return next(
        name
        for name in reversed(list_stages(backbone))
        if find_first_op(network, name) <= max(matrices)
    )
