"""Write the specimens: everything that Headgraft saves, made small, and what it means as JSON.

    .venv/bin/python tests/specimens/make.py [NAME ...]

makes all of them anew in a temporary folder and replaces those beside this script, or only those
named. They are there to be opened by later releases: make them anew only when a format is meant to
change, and keep the older ones then. Only the public fronts and the command lines are used.
"""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import shufflenet_v2_x0_5

import classify
import featurize

HERE = Path(__file__).resolve().parent
WHEN = 1_000_000_000  # seconds; a time that any archive and any file system keeps
HEADS = {
    "softmax-root-l2": "--head softmax --prepare root-l2",
    "softmax-standardise": "--head softmax --prepare standardise --layer stage4",
    "softmax-joined": "--layer stage2,stage4 --class-weight balanced --metric macro_f1",
    "ridge": "--head ridge --layer stage4",
    "lda": "--head lda --layer stage4",
    "ncm": "--head ncm --layer stage3@max",
    "linear-svm": "--head linear-svm --layer stage4",
    "knn": "--head knn --layer stage2",
    "rbf-svm": "--head rbf-svm --layer stage2",
    "logistic": "--head sklearn.linear_model:LogisticRegression --layer stage2 --prepare root-l2",
    "bayes": "--head sklearn.naive_bayes:GaussianNB --layer stage2 --prepare standardise",
}
COMPARED = {"heads": "lda,ncm,knn", "layers": "stage2,stage2+stage3@max"}
LARGE = 150_000  # bytes of a kept file that is left out: spectra of many columns
TUNED: dict[str, Any] = {"backbone": "tiny.safetensors", "epochs": 4, "batch_size": 16}
TUNED |= {"augment": "none", "learning_rate": 2e-4, "device": "cpu", "seed": 5}
TINY_EPOCHS = 12
STOPPED_AFTER = 2  # epochs
HIDDEN = 32  # units that are left of the 512 of `mlp`


def command(name: str, *arguments: object) -> str:
    """Run a command line; its standard output."""
    line = [sys.executable, "-m", name, *map(str, arguments)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=alone)
    if done.returncode not in (0, 3):  # 3: one image is broken, and is said to be
        sys.exit(f"{' '.join(line)}\n{done.stderr}")
    return done.stdout


def make_images() -> None:
    """Fifteen each of four digits, and a file that is no image; three label tables."""
    subprocess.run([sys.executable, HERE.parents[1] / "data/digits/make.py", "all"], check=True)
    lines = [line.split(",") for line in Path("all/digit.csv").read_text().split()[1:]]
    chosen = [
        (path, label)
        for digit in "0123"
        for path, label in [line for line in lines if line[1] == digit][:15]
    ]
    Path("images").mkdir()
    for path, _ in chosen:
        shutil.copy(f"all/images/{path}", "images")
    Path("images/broken.png").write_text("no image\n")
    for path in Path("images").iterdir():
        os.utime(path, (WHEN, WHEN))

    def table(name: str, header: str, rows: list[str]) -> None:
        Path(name).write_text("\n".join([header, *rows]) + "\n")

    chosen.sort()
    table("digit.csv", "path,label", [f"{path},d{label}" for path, label in chosen])
    parity = [("even", "odd")[int(label) % 2] for _, label in chosen]
    parts = ["train", "train", "val", "train", "test"]
    table(
        "parity.csv",
        "path,parity,split,group",
        [
            f"{path},{name},{parts[k // 2 % 5]},g{k // 2}"
            for k, ((path, _), name) in enumerate(zip(chosen, parity, strict=True))
        ],
    )
    with tarfile.open("images.tar", "w") as archive:
        archive.add("images", filter=_nobodys)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = WHEN
    return member


def make_cache() -> None:
    layers = "stage2,stage3:max,stage4"
    options = ["--backbone", "seedling", "--layers", layers, "--engine", "eager", "--device", "cpu"]
    command("featurize", "run", "images", "-o", "cache.h5", *options)
    Path("cache.h5.lock").unlink(missing_ok=True)


def make_heads() -> None:
    Path("heads").mkdir()
    shutil.copy("cache.h5", "scratch.h5")  # beside it will lie what the specimen is not to have
    for name, options in HEADS.items():
        given = ["--labels", "digit.csv", *options.split()]
        command("classify", "fit", "scratch.h5", "-o", f"heads/{name}.head", *given)


def make_kept() -> None:
    """What a comparison, advice, a fit and a report keep beside the cache."""
    classify.compare("cache.h5", ["digit.csv"], **COMPARED)
    classify.compare("cache.h5", ["parity.csv"], column="parity", **COMPARED)
    classify.compare("cache.h5", ["digit.csv"], "ncm", "stage2", repeats=2)
    classify.advise("cache.h5", "digit.csv")
    found = classify.compare("cache.h5", ["digit.csv"], **COMPARED)
    classify.write_report("report.html", "cache.h5", found)
    for path in Path("cache.h5.kept").iterdir():
        if path.stat().st_size > LARGE:
            path.unlink()


def make_tiny() -> None:
    """ShuffleNet V2 x0.5 trained on the other digits, few of its channels alive.

    Zeros take no space compressed.
    """
    torch.manual_seed(0)
    network = shufflenet_v2_x0_5(weights=None, num_classes=10).train()
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(_silence))
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            every = 8 if name.startswith("conv5") else 4
            with torch.no_grad():
                module.weight[torch.arange(module.out_channels) % every != 0] = 0
    table = [line.split(",") for line in Path("all/digit.csv").read_text().split()[1:]]
    table = [(path, label) for path, label in table if not Path("images", path).exists()]
    files = [Image.open(f"all/images/{path}") for path, _ in table]
    pictures = [file.convert("RGB").resize((32, 32)) for file in files]
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)
    x, y = (pixels / 255 - 0.5) / 0.25, torch.tensor([int(label) for _, label in table])
    with torch.no_grad():
        network(x[:64])
    for hook in hooks:
        hook.remove()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for epoch in range(TINY_EPOCHS):
        for rows in torch.randperm(len(x)).split(64)[:-1]:
            loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"  epoch {epoch + 1}: {loss.item():.3f}", flush=True)
    recipe = {"resize": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    recipe |= {"interpolation": "bilinear", "decode": "exact"}
    tensors = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    about = {"backbone": "shufflenet_v2_x0_5", "preprocess": json.dumps(recipe)}
    save_file(tensors, "tiny.safetensors", about)


def _silence(module: nn.Module, given: tuple[torch.Tensor]) -> None:
    """Take the weights off channels that carry nothing, so that no training gives them any."""
    dead = given[0].detach().abs().amax((0, 2, 3)) == 0
    with torch.no_grad():
        if isinstance(module, nn.BatchNorm2d):
            module.weight[dead] = 0
            module.bias[dead] = 0
        elif module.groups == 1:
            module.weight[:, dead] = 0
        else:
            module.weight[dead] = 0


class Stop(Exception):
    """Stands for what ends a process."""


def make_tuned() -> None:
    """A tuned network, the checkpoint of the same training broken off, and one with an MLP."""
    given = [word for k, v in TUNED.items() for word in (f"--{k.replace('_', '-')}", v)]
    options = ["--labels", "digit.csv", "-o", "tuned.safetensors", "--json", *given]
    record = command("classify", "finetune", "images", *options)
    Path("tuned.json").write_text(record)

    def stop(step: Any) -> None:
        if len(step.history) >= STOPPED_AFTER:
            raise Stop

    try:
        classify.finetune("images", "stopped.safetensors", "digit.csv", report=stop, **TUNED)
    except Stop:
        Path("stopped.safetensors.part").rename("training.part")
    table = [line.split(",") for line in Path("digit.csv").read_text().split()[1:]]
    paths, labels = zip(*table, strict=True)
    model = classify.FineTuneClassifier(
        **(TUNED | {"epochs": 3, "learning_rate": 1e-3}), root="images", classifier="mlp"
    ).fit(list(paths), list(labels))
    scorer = model.head_.scorer
    most = np.sort(np.argsort(-np.abs(scorer.coef).sum(axis=0))[:HIDDEN])
    fewer = replace(
        scorer, hidden=scorer.hidden[most], bias=scorer.bias[most], coef=scorer.coef[:, most]
    )
    network = {name: tensor.numpy() for name, tensor in model.network_.items()}
    heat = model.head_.temperature * HIDDEN / len(scorer.bias)  # as their sum is less
    head = replace(model.head_, scorer=fewer, temperature=heat)
    classify.save_head(head, "tuned-mlp.safetensors", network)


def make_expected() -> None:
    """What all this means, as the release that made it says."""
    cache = featurize.FeatureCache("cache.h5")
    ready = np.flatnonzero(cache.status == 1)
    shown = ready[[0, 7, -1]]
    features = {name: cache.features(name, shown).tolist() for name in cache.layers}
    told: dict[str, Any] = {
        "arithmetic": arithmetic(),
        "compared": COMPARED,
        "tuning": TUNED,
        "rows": shown.tolist(),
        "paths": cache.paths,
        "failures": cache.failures,
        "info": json.loads(command("featurize", "info", "cache.h5", "--json")),
        "features": features,
    }
    told["heads"] = {}
    for name in HEADS:
        head = classify.load_head(f"heads/{name}.head")
        evaluated, _ = classify.evaluate(head, "cache.h5", "digit.csv")
        told["heads"][name] = {
            "predictions": said_by(head, "cache.h5"),
            "evaluated": evaluated,
            "about": about(head),
        }
    told["csv"] = command("classify", "predict", "heads/lda.head", "cache.h5", "--top", "2")
    told["compare"] = {}
    for task, column in (("digit", "label"), ("parity", "parity")):
        found = classify.compare("cache.h5", [f"{task}.csv"], column=column, **COMPARED)
        told["compare"][task] = found.to_dict()
    told["repeats"] = classify.compare(
        "cache.h5", ["digit.csv"], "ncm", "stage2", repeats=2
    ).to_dict()
    advice = json.dumps(classify.advise("cache.h5", "digit.csv").to_dict())
    told["advice"] = json.loads(advice.replace(f"{os.getcwd()}/", ""))
    told["tuned"] = {"record": json.loads(Path("tuned.json").read_text())}
    for name in ("tuned", "tuned-mlp"):
        file = f"{name}.safetensors"
        head = classify.load_head(file)
        featurize.run("images", f"{name}.h5", backbone=file, engine="eager", device="cpu")
        embedded = featurize.FeatureCache(f"{name}.h5")
        told[name] = told.get(name, {}) | {
            "predictions": said_by(head, f"{name}.h5"),
            "about": about(head),
            "features": embedded.features(None, shown).tolist(),
        }
    lines = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in told.items()]
    Path("expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def arithmetic() -> str:
    """A digest of some sums: where it is another, the processor adds in another order."""
    torch.set_num_threads(1)
    x = np.sin(np.arange(16 * 16 * 81)).astype(np.float32).reshape(16, 16, 9, 9)
    maps = nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(x[:, :, :3, :3].copy()))
    flat = maps.numpy().reshape(16, -1)
    parts = [flat, flat @ flat.T, np.linalg.svd(flat.astype(np.float64))[1], flat.sum(axis=1)]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def said_by(head: Any, images: str) -> dict[str, Any]:
    """Every label of every image with its probability, best first."""
    return classify.predict(head, images, top=len(head.classes)).to_dict()


def about(head: Any) -> dict[str, Any]:
    """What a head says of itself."""
    return {
        "head": head.head,
        "classes": head.classes,
        "prepare": head.prepare,
        "settings": dict(head.settings),
        "temperature": head.temperature,
        "task": head.task,
        "layers": [layer.name for layer in head.source.layers],
        "seen": len(head.seen),
    }


def compress(name: str) -> None:
    with open(f"{name}.gz", "wb") as file, gzip.GzipFile("", "wb", 9, file, 0) as packed:
        packed.write(Path(name).read_bytes())


def main(wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        torch.set_num_threads(1)  # sums are then in one order
        for make in (make_images, make_cache, make_heads, make_tiny, make_tuned, make_kept):
            print(make.__name__, flush=True)
            make()
        make_expected()
        for name in ("tiny.safetensors", "tuned.safetensors", "tuned-mlp.safetensors"):
            compress(name)
        compress("training.part")
        compress("images.tar")
        specimens = ["images.tar.gz", "digit.csv", "parity.csv", "cache.h5", "cache.h5.kept"]
        specimens += ["heads", "tiny.safetensors.gz", "tuned.safetensors.gz"]
        specimens += ["tuned-mlp.safetensors.gz", "training.part.gz", "expected.json"]
        for name in wanted or specimens:
            if Path(name).is_dir():
                shutil.rmtree(HERE / name, ignore_errors=True)
                shutil.copytree(name, HERE / name)
            else:
                shutil.copyfile(name, HERE / name)
        os.chdir(HERE)


if __name__ == "__main__":
    main(sys.argv[1:])
