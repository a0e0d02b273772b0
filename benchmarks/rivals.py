"""Embed a folder the way others do: run by `end_to_end.py` in each package's own environment.

    python rivals.py NAME NETWORK WEIGHTS FOLDER SECONDS

Prints JSON: the rate of the steady state, after the first batch, and core-seconds an image. Nothing
here can download weights: what would be downloaded is answered with the weights file, the same for
all.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from spent import core_seconds

BATCH = 32
LAST = {"resnet50": "layer4", "resnet18": "layer4", "squeezenet1_1": "features"}


def naive(network: str, weights: dict[str, torch.Tensor], folder: Path) -> Iterator[int]:
    """ImageFolder, the weights' own transforms, two workers, torch.cat at the end."""
    net = torchvision.models.get_model(network, weights=None).eval()
    net.load_state_dict(weights)
    cut = net.features if hasattr(net, "features") else None
    if cut is None:
        net.fc = torch.nn.Identity()
    official = torchvision.models.get_model_weights(network).IMAGENET1K_V1.transforms()
    data = torchvision.datasets.ImageFolder(str(folder), official)
    kept = []
    with torch.inference_mode():
        for x, _ in torch.utils.data.DataLoader(data, BATCH, num_workers=2):
            kept.append(net(x) if cut is None else cut(x).mean((2, 3)))
            yield len(x)
    torch.cat(kept)


def timm(network: str, weights: dict[str, torch.Tensor], folder: Path) -> Iterator[int]:
    import timm

    net = timm.create_model(network, pretrained=False, num_classes=0).eval()
    net.load_state_dict(weights, strict=False)
    config = timm.data.resolve_model_data_config(net)
    data = timm.data.create_dataset("", root=str(folder))
    loader = timm.data.create_loader(
        data, **{k: config[k] for k in ("input_size", "interpolation", "mean", "std", "crop_pct")},
        batch_size=BATCH, use_prefetcher=False, num_workers=2,
    )  # fmt: skip
    kept = []
    with torch.inference_mode():
        for x, _ in loader:
            kept.append(net(x))
            yield len(x)
    torch.cat(kept)


def img2vec_pytorch(network: str, _weights: object, folder: Path) -> Iterator[int]:
    from img2vec_pytorch import Img2Vec

    embed = Img2Vec(cuda=False, model=network)
    for paths in batches(folder):
        images = []
        for path in paths:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        embed.get_vec(images)
        yield len(paths)


def embetter(network: str, weights: dict[str, torch.Tensor], folder: Path) -> Iterator[int]:
    import timm

    make = timm.create_model

    def local(name, pretrained=False, **more):
        net = make(name, pretrained=False, **more)
        net.load_state_dict(weights, strict=False)
        return net

    timm.create_model = local
    from embetter.vision import ImageLoader, TimmEncoder

    load, encode = ImageLoader(), TimmEncoder(network)
    for paths in batches(folder):
        encode.transform(load.transform([str(path) for path in paths]))
        yield len(paths)


def thingsvision(network: str, _weights: object, folder: Path) -> Iterator[int]:
    import tempfile

    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor = get_extractor(
        model_name=network, source="torchvision", device="cpu", pretrained=True,
        model_parameters={"weights": "IMAGENET1K_V1"},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        data = ImageDataset(
            root=str(folder), out_path=out, backend="pt",
            transforms=extractor.get_transformations(),
        )  # fmt: skip
        for start in range(0, len(data), BATCH):  # it has no way to stop half way
            part = torch.utils.data.Subset(data, range(start, min(start + BATCH, len(data))))
            loader = DataLoader(dataset=part, batch_size=BATCH, backend="pt")
            extractor.extract_features(loader, LAST[network], flatten_acts=False)
            yield len(part)


def batches(folder: Path) -> Iterator[list[Path]]:
    paths = sorted(folder.rglob("*.jpg"))
    for start in range(0, len(paths), BATCH):
        yield paths[start : start + BATCH]


def main() -> None:
    name, network, file, folder, seconds = sys.argv[1:]
    weights = {key: value.float() for key, value in load_file(file).items()}
    for place in ("torchvision._internally_replaced_utils", "torchvision.models._api"):
        module = __import__(place, fromlist=["_"])
        setattr(module, "load_state_dict_from_url", lambda *_, **__: weights)  # noqa: B010
    torch.hub.load_state_dict_from_url = lambda *_, **__: weights
    way = globals()[name]
    count, start = 0, None
    for images in way(network, weights, Path(folder)):
        now = time.perf_counter()
        if start is None:
            start, before = now, core_seconds()
            continue
        count += images
        if now - start > float(seconds):
            break
    spent = core_seconds() - before
    print(json.dumps({"rate": count / (now - start), "each": spent / count}), flush=True)


if __name__ == "__main__":
    main()
