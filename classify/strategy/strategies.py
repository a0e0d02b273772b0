"""The four strategies: which one suits which data, and the commands that run them."""

import shlex
from collections.abc import Sequence

from classify.errors import CallError
from featurize.backbones.families import DEFAULT_WEIGHTS
from featurize.cache.reader import FeatureCache
from featurize.text import did_you_mean

SIZES = ("small", "large")
SIMILARITIES = ("similar", "different")
STRATEGIES = {
    ("small", "similar"): "linear-probe",
    ("small", "different"): "truncated-probe",
    ("large", "similar"): "finetune",
    ("large", "different"): "retrain",
}
DESCRIPTIONS = {
    "linear-probe": "freeze the whole network, and train a linear head on its last layer",
    "truncated-probe": "keep the first layers only, frozen, and train a head where they are cut",
    "finetune": "a new head, and train the whole network on from its weights",
    "retrain": "a new classifier of your choice, and train everything",
}


def describe_similarity(similarity: str) -> str:
    """Describe the similarity in words.

    Parameters
    ----------
    similarity : str
        ``similar`` or ``different``.

    Returns
    -------
    str
        ``similar to the source`` or ``different from the source``.
    """
    return f"{similarity} {'to' if similarity == 'similar' else 'from'} the source"


def check_size_and_similarity(size: str | None, similarity: str | None) -> None:
    """Refuse an unknown size or similarity.

    Parameters
    ----------
    size, similarity : str, optional
        One of `SIZES` and `SIMILARITIES`, or None.

    Raises
    ------
    CallError
        If either is anything else.
    """
    for option, value, known in (("size", size, SIZES), ("similarity", similarity, SIMILARITIES)):
        if value is not None and value not in known:
            hint = did_you_mean(value, known)
            raise CallError(f"the {option} is {' or '.join(known)}, not {value!r}{hint}")


def strategy_commands(
    cache: FeatureCache, last_layer: str, cut_layer: str, options: Sequence[str] = ()
) -> dict[str, str]:
    """Return a shell command for each strategy.

    Parameters
    ----------
    cache : FeatureCache
        Gives the backbone, the weights and where the images are.
    last_layer, cut_layer : str
        Layers for the linear and for the truncated probe.
    options : sequence of str
        Options of every command: ``--labels T.csv``, ``--seed 1``.

    Returns
    -------
    dict of str to str
        By strategy.
    """
    extractor = cache.extractor
    network_options = ["--backbone", extractor.backbone]
    weights = str(extractor.environment.get("weights_file") or extractor.weights)
    if weights not in (DEFAULT_WEIGHTS, "seedling", "none", ""):
        network_options += ["--weights", weights]
    finetune_words = [
        "classify",
        "finetune",
        cache.root or "IMAGES",
        *options,
        *network_options,
        "--tune",
        "all",
    ]
    whole_network_words = [*finetune_words, "--cache", str(cache.path), "-o", "tuned.safetensors"]
    return {
        "linear-probe": probe_command(cache, [last_layer], options),
        "truncated-probe": probe_command(cache, [cut_layer], options, "truncated.head"),
        "finetune": shlex.join(whole_network_words),
        "retrain": shlex.join(
            [*finetune_words, "--classifier", "mlp", "-o", "retrained.safetensors"]
        ),
    }


def probe_command(
    cache: FeatureCache,
    layers: Sequence[str],
    options: Sequence[str] = (),
    output: str = "probe.head",
) -> str:
    """Return the shell command that trains a head on one layer, or on several joined.

    Parameters
    ----------
    cache : FeatureCache
    layers : sequence of str
    options : sequence of str
        Further options of the command.
    output : str
        File for the head.

    Returns
    -------
    str
    """
    words = ["classify", "fit", str(cache.path), *options, "--layer", ",".join(layers)]
    return shlex.join([*words, "-o", output])
