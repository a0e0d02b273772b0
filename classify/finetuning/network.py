"""The network to tune: a backbone, trainable from some layer on, and a new classifier."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from classify.errors import CallError
from classify.finetuning.tuned_part.adapters import add_adapters, merge_adapters
from classify.finetuning.tuned_part.param_groups import ParamGroups
from classify.finetuning.tuned_part.stages import find_last_layer
from classify.heads.models import LinearModel, MLPModel
from featurize.backbones.backbone import Backbone
from featurize.layers.partition import extract_upper_part, find_first_op
from featurize.text import list_choices

MIN_GAP = 1e-5  # between cutpoints at the start
HIDDEN_UNITS = 512  # units of the hidden layer of `mlp`
CLASSIFIER_KINDS = ("linear", "mlp")


class Classifier(nn.Module):
    """A linear layer, or one hidden layer and a linear one, on standardised embeddings.

    Parameters
    ----------
    dim : int
        Dimension D of the embeddings.
    n_outputs : int
        Number of outputs of the last layer: K classes.
    kind : {"linear", "mlp"}
        ``mlp`` has one hidden layer of `HIDDEN_UNITS` units.
    n_cutpoints : int
        Number of cutpoints of one output. None by default. With them, decision values are the
        output less each of the K cutpoints.

    Attributes
    ----------
    mean, scale : Tensor of shape (D,)
        Mean and standard deviation of the embeddings, 0 and 1 until they are set.
    gaps : Parameter of shape (K,), or None
        The first cutpoint, and the logarithms of the gaps between them, so that they stay in order.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, n_outputs: int, kind: str, n_cutpoints: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.hidden = nn.Linear(dim, HIDDEN_UNITS) if kind == "mlp" else None
        self.out = nn.Linear(dim if self.hidden is None else HIDDEN_UNITS, n_outputs)
        self.gaps = nn.Parameter(torch.zeros(n_cutpoints)) if n_cutpoints else None

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
        return decision_values if self.gaps is None else decision_values - self.compute_cutpoints()

    def compute_cutpoints(self) -> Tensor:
        """Compute the cutpoints of the output.

        Returns
        -------
        Tensor of shape (K,)
            Ascending.
        """
        if self.gaps is None:
            raise CallError("this classifier has no cutpoints")
        return torch.cat([self.gaps[:1], self.gaps[:1] + self.gaps[1:].exp().cumsum(0)])

    def init_cutpoints(self, cutpoints: np.ndarray) -> None:
        """Set the cutpoints of the output.

        Parameters
        ----------
        cutpoints : float array of shape (K,)
            Ascending.
        """
        gaps = np.log(np.maximum(np.diff(cutpoints), MIN_GAP))
        with torch.no_grad():
            self.gaps.copy_(torch.from_numpy(np.concatenate([cutpoints[:1], gaps])))  # type: ignore[union-attr]

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
        # Not the cutpoints, which say what outputs mean.
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
        Its weights are copied.
    tune : str
        ``all``, or a layer: that and everything after it.
    n_outputs : int
        Number of outputs: K classes.
    classifier : {"linear", "mlp"}
        See `Classifier`.
    n_cutpoints : int
        See `Classifier`.
    from_activations : bool
        Whether the inputs are the activations that enter the tuned part. By default they are
        images.
    batch_norm : {"frozen", "trained"}
        ``frozen`` (the default): images are normalised by the pretrained statistics.
    lora : int, optional
        Rank of adapters, which are trained in place of the weights from `tune` on. By default the
        weights are trained.

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
        If the classifier is unknown, or nothing from `tune` on has weights; with `lora`, if nothing
        there is a linear layer, or PEFT is not installed.
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
        n_outputs: int,
        classifier: str,
        *,
        n_cutpoints: int = 0,
        from_activations: bool = False,
        batch_norm: str = "frozen",
        lora: int | None = None,
    ) -> None:
        super().__init__()
        if classifier not in CLASSIFIER_KINDS:
            raise CallError(
                f"the classifier is one of {list_choices(classifier, CLASSIFIER_KINDS)}"
            )
        self.batch_norm, self.from_activations = batch_norm, from_activations
        self.last_layer = find_last_layer(backbone)
        network = self._network = backbone.network
        first_tuned_op = 0 if tune == "all" else find_first_op(network, tune)
        # Loads the weights into the network that all its parts share.
        trunk = backbone.cut([self.last_layer])
        if from_activations:
            trunk = extract_upper_part(network, tune, self.last_layer)
        self.trunk = copy.deepcopy(trunk)  # the backbone may be used again, and is frozen
        self._groups = ParamGroups(backbone)
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(self._groups.depths[name] >= first_tuned_op)
        if not any(parameter.requires_grad for parameter in self.trunk.parameters()):
            raise CallError(f"nothing from {tune!r} on has weights to tune; name a layer before")
        self.lora = lora
        if lora is not None:
            add_adapters(self.trunk, lora)
        self._frozen_modules = {
            str(node.target)
            for node, depth in network.node_depths.items()
            if node.op == "call_module" and depth < first_tuned_op
        }
        layer = network.layer(self.last_layer.layer)
        mean, std = map(torch.tensor, (backbone.preprocess.mean, backbone.preprocess.std))
        self.register_buffer("mean", 255 * mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * std.view(1, 3, 1, 1), persistent=False)
        dim = layer.dim(self.last_layer.pool)
        self.classifier = Classifier(dim, n_outputs, classifier, n_cutpoints)

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
        self, learning_rate: float, layer_decay: float, block_decay: float, weight_decay: float
    ) -> Iterator[dict[str, Any]]:
        """Make parameter groups for an optimiser, with a learning rate by stage or by block.

        Parameters
        ----------
        learning_rate : float
            Of the classifier and of what is deepest in the backbone.
        layer_decay : float
            Each earlier stage has the learning rate of the next one times this factor.
        block_decay : float
            The same for each block of a transformer that is a row of equal blocks.
        weight_decay : float
            Of weights. Biases, normalisations, tokens and positions have none.

        Returns
        -------
        iterator of dict
            ``params`` with their ``lr`` and ``weight_decay``, see `torch.optim.Optimizer`.
        """
        decay = block_decay if self._groups.are_blocks else layer_decay
        parameters = self.trainable_parameters()
        return self._groups.make_groups(parameters, "trunk.", learning_rate, decay, weight_decay)

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trainable_state` returned.

        Parameters
        ----------
        state : mapping of str to Tensor
            Other tensors keep their values.
        """
        is_training = self.training
        self.load_state_dict(state, strict=False)
        # Some networks of timm keep what they made of their weights until the mode changes.
        self.train().train(is_training)

    def merge_adapters(self) -> None:
        """Add adapters to the weights, so that the trunk is an ordinary network again."""
        if self.lora is not None:
            merge_adapters(self.trunk)
            self.lora = None

    def use_images(self) -> None:
        """Take images from now on: run the frozen part and then the tuned one. Merges adapters."""
        self.merge_adapters()
        if self.from_activations:
            whole = copy.deepcopy(self._network.cut([self.last_layer]))
            whole.load_state_dict(self.trunk.state_dict(), strict=False)
            self.trunk, self.from_activations = whole, False

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the state dict of trainable parameters and of buffers.

        Returns
        -------
        dict of str to Tensor
        """
        names = self.trainable_parameters().keys() | {name for name, _ in self.named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name, in the network's order.

        Returns
        -------
        dict of str to Parameter
        """
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }
