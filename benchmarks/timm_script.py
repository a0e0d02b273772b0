"""`featurize run` with a network of timm beside the script that people write, paired.

    python benchmarks/timm_script.py [IMAGES [PAIRS [NETWORK ...]]]

Both are whole processes, from start to a file with the features. The script is timm's own way: its
transform, an ImageFolder, a DataLoader of two workers, batches of 32, `numpy.save`. Both take the
same weights from the same folder: EfficientNet-Lite0 (as a package), and a ViT-S of random weights.
Prints one row a network: the median of the ratios of wall-clock times, and how far the features are
apart.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from photos import BUILD, photos

NETWORKS = ("lite0", "vit_small_patch16_224")
SCRIPT = """
import sys
import numpy, timm, torch, torchvision
source, folder, output = sys.argv[1:]
model = timm.create_model(f"local-dir:{source}", pretrained=True, num_classes=0).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
images = torchvision.datasets.ImageFolder(folder, transform)
rows = []
with torch.inference_mode():
    for x, _ in torch.utils.data.DataLoader(images, 32, num_workers=2):
        rows.append(model(x).numpy())
numpy.save(output, numpy.concatenate(rows))
"""


def make_folder(network: str) -> Path:
    """The network in timm's layout, which both sides read."""
    import timm
    import torch
    from safetensors.torch import save_file

    from featurize import load_backbone

    folder = BUILD / f"timm-{network}"
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if network == "lite0":
        backbone = load_backbone("lite0")
        architecture, tensors = "tf_efficientnet_lite0", backbone.network.module.state_dict()
    else:
        architecture = network
        tensors = timm.create_model(network, num_classes=0).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    published = timm.get_pretrained_cfg(architecture).to_dict(remove_source=True)
    published["num_classes"] = 0
    content = {"architecture": architecture, "num_classes": 0, "pretrained_cfg": published}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def timed(line: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(network: str, images: Path, pairs: int) -> str:
    import h5py

    source = make_folder(network)
    cache, rows = BUILD / f"{network}.h5", BUILD / f"{network}.npy"
    command = Path(sys.executable).with_name("featurize")
    ours = [command, "run", images, "-o", cache, "--backbone", source]
    theirs = [sys.executable, "-c", SCRIPT, source, images, rows]
    ratios, seconds = [], []
    for k in range(pairs):
        cache.unlink(missing_ok=True)
        both = [("ours", ours), ("theirs", theirs)]
        found = {
            side: timed(list(map(str, line))) for side, line in (both if k % 2 else both[::-1])
        }
        ratios.append(found["theirs"] / found["ours"])
        seconds.append(found)
        print(f"  {network}: {found['theirs']:.1f} s and {found['ours']:.1f} s", file=sys.stderr)
    with h5py.File(cache) as file:
        mine, other = file["features/pre_logits"][:], np.load(rows)
    apart = np.linalg.norm(mine - other, axis=1) / np.linalg.norm(other, axis=1)
    return (
        f"| {network} | {statistics.median(s['theirs'] for s in seconds):.0f} s | "
        f"{statistics.median(s['ours'] for s in seconds):.0f} s | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f}) | {apart.max():.0e} |"
    )


def main() -> None:
    numbers, networks = sys.argv[1:3], sys.argv[3:] or NETWORKS
    count, pairs = map(int, numbers + ["2000", "3"][len(numbers) :])
    images = photos(count)
    print(f"{count:,} JPEGs of 640 x 480, {pairs} pairs of whole processes\n")
    print("| network | script | `featurize run` | ratio | features apart |\n|---|---|---|---|---|")
    for network in networks:
        print(measure(network, images, pairs), flush=True)


if __name__ == "__main__":
    main()
