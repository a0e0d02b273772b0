"""The recipe of the shipped backbone: repeatable, resumable, and blind to every real image."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "data" / "seedling" / "train.py"
PROBE = ROOT / "data" / "seedling" / "probe.py"
SHIPPED = ROOT / "featurize" / "backbones" / "seedling" / "seedling.safetensors"
SMALL = {"steps": 3, "keep": 1, "batch": 16, "fresh": 8, "store": 128, "sample": 256, "dim": 32,
         "threads": 1}  # fmt: skip
TINY = [f"--{option}={value}" for option, value in SMALL.items()]

# Runs the recipe as `python train.py` does, and prints what it opened, connected to, imported.
# What is opened only if it is not there yet holds no image.
WATCHED = """
import json, os, runpy, sys
seen = []
def hook(event, args):
    if event == "open" and args[2] & os.O_EXCL:
        return
    if event in ("open", "socket.connect", "subprocess.Popen", "os.system"):
        seen.append([event, str(args[0])])
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
print(json.dumps({"seen": seen, "modules": sorted(sys.modules)}))
"""

# One step of the recipe on a GPU that is not there: tensors without content, which all the same
# refuse to meet those of another device. Left out is what needs content: random states, k-means,
# and the way back.
WITHOUT_GPU = """
import sys
from types import SimpleNamespace
from unittest import mock
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
sys.path.insert(0, sys.argv[1])
import teacher, train
made = []
through = train.Pupil.forward
def forward(pupil, x):
    answers, points = through(pupil, x)
    made.extend([x, points, *answers.values(), *pupil.parameters(), *pupil.buffers()])
    return answers, points
small = dict(zip(sys.argv[2::2], map(int, sys.argv[3::2])))
options = SimpleNamespace(**small, output=train.Path("none"), seed=0, stop=1, device="cuda",
    families=train.FAMILIES, mixing=True, rate=1e-3, warm=0.05, taught=tuple(train.TAUGHT),
    contrast=0.1, bfloat16=False)
no_generator = SimpleNamespace(manual_seed=lambda seed: None)
first_points = staticmethod(lambda points, atoms, g: points[:atoms])
with (
    FakeTensorMode(),
    mock.patch.object(torch, "Generator", lambda device: no_generator),
    mock.patch.object(train.Pupil, "forward", forward),
    mock.patch.object(train, "read_state", lambda *_: (0, {})),
    mock.patch.object(train, "keep_state"),
    mock.patch.object(teacher.Dictionary, "_cluster", first_points),
    mock.patch.object(torch, "cov", lambda rows: rows @ rows.T),
    mock.patch.object(torch.nn.Module, "to", lambda module, **_: module),
    mock.patch.object(torch.Tensor, "item", lambda tensor: 0.0),
    mock.patch.object(torch.Tensor, "backward", lambda tensor: made.append(tensor)),
):
    train.train(options)
print(len(made) > 100, {tensor.device.type for tensor in made})
"""


def train(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(TRAIN), *TINY, *options, "-o", str(output)]
    return subprocess.run(line, capture_output=True, text=True)


def assert_same(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys() == load_file(SHIPPED).keys()
    differ = [name for name in first if not torch.equal(first[name], second[name])]
    assert differ == []


def steps_done(weights: Path) -> int:
    with safe_open(weights, "pt") as content:
        return int(content.metadata()["done"])


def harmless(path: Path) -> bool:
    """Code, what describes installed code, what the machine says of itself, a descriptor."""
    return (
        path.suffix in {".py", ".pyc", ".pyi", ".so"}
        or path.parent.suffix in {".dist-info", ".egg-info"}
        or path.parts[:2] in [("/", "proc"), ("/", "sys"), ("/", "dev")]
        or str(path) in sys.path  # where a standard library in a zip file would be
        or path.name.isdecimal()
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """One unbroken training, and what it touched."""
    output = tmp_path_factory.mktemp("seedling") / "unbroken.safetensors"
    line = [sys.executable, "-c", WATCHED, str(TRAIN), *TINY, "-o", str(output)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output, json.loads(done.stdout)


@pytest.mark.slow
def test_no_image_enters_the_training(watched):
    output, found = watched
    assert {event for event, _ in found["seen"]} <= {"open", "subprocess.Popen"}
    opened = {Path(name) for event, name in found["seen"] if event == "open"}
    strange = [path for path in opened if path.parent != output.parent and not harmless(path)]
    assert strange == []
    readers = {
        "PIL",
        "cv2",
        "imageio",
        "sklearn",
        "torchvision",
        "h5py",
        "featurize.images.decoding",
    }
    assert readers.isdisjoint(found["modules"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(watched, tmp_path):
    again = tmp_path / "again.safetensors"
    train(again).check_returncode()
    assert load_file(again)["stem.0.1.num_batches_tracked"] == 3
    assert_same(watched[0], again)


@pytest.mark.slow
def test_a_broken_training_goes_on_as_if_unbroken_and_with_its_settings_only(watched, tmp_path):
    output = tmp_path / "broken.safetensors"
    train(output, "--stop", "2").check_returncode()
    assert steps_done(output) == 2
    before = output.read_bytes()
    refused = train(output, "--contrast", "0.5")
    assert refused.returncode == 1
    assert "broken.safetensors.state is the state of another training" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert output.read_bytes() == before
    done = train(output)
    assert done.returncode == 0
    assert "step 3/3" in done.stderr
    assert "step 2/3" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]
    assert_same(watched[0], output)


@pytest.mark.long
def test_an_unknown_family_is_refused(tmp_path):
    refused = train(tmp_path / "weights.safetensors", "--families", "leaves,photographs")
    assert refused.returncode == 2
    assert "no 'photographs'; there are leaves, scenes, strokes, marbles" in refused.stderr


@pytest.mark.long
def test_all_tensors_are_made_on_the_gpu_without_one():
    small = [str(word) for pair in SMALL.items() for word in pair]
    line = [sys.executable, "-c", WITHOUT_GPU, str(TRAIN.parent), *small]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True {'cuda'}\n"


@pytest.mark.gpu
def test_a_gpu_repeats_itself_and_goes_on(gpu, tmp_path):
    for name in ("first", "second"):
        train(tmp_path / name, "--device", gpu).check_returncode()
    assert_same(tmp_path / "first", tmp_path / "second")
    train(tmp_path / "broken", "--device", gpu, "--stop", "2").check_returncode()
    train(tmp_path / "broken", "--device", gpu).check_returncode()
    assert_same(tmp_path / "first", tmp_path / "broken")


@pytest.mark.long
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    refused = train(tmp_path / "weights", "--device", "cuda")
    assert refused.returncode == 2
    assert "--device cuda: torch finds no GPU here" in refused.stderr


@pytest.mark.slow
def test_the_probe_scores_images_of_a_folder(tmp_path):
    for part in ("train", "test"):
        for label, grey in (("dark", 20), ("light", 230)):
            (tmp_path / part / label).mkdir(parents=True)
            for k in range(3):
                image = Image.new("L", (40, 40), grey + k)
                image.save(tmp_path / part / label / f"{k}.png")
    line = [
        sys.executable,
        str(PROBE),
        "random",
        "--layers",
        "stem",
        "--cifar",
        str(tmp_path),
        "--final",
    ]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cifar test"] == {"stem": 1.0}


def test_the_shipped_file_is_small_and_says_where_it_comes_from():
    assert SHIPPED.stat().st_size <= 6_000_000
    with safe_open(SHIPPED, "pt") as content:
        notes = content.metadata()
    assert ROOT / notes["recipe"] == TRAIN
    assert notes["done"] == notes["steps"]


@pytest.mark.slow
def test_shipped_weights_read_the_digits():
    line = [sys.executable, str(PROBE), str(SHIPPED), "--layers", "stage4,joined"]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    assert max(json.loads(done.stdout)["digits"].values()) >= 0.985


@pytest.mark.slow
def test_two_minutes_of_the_real_recipe_repeat(tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    line = [sys.executable, str(TRAIN), "--seed", "0", "--keep", "2", "-o"]
    with subprocess.Popen([*line, str(first)], stderr=subprocess.DEVNULL) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(120)
        process.kill()
    steps = steps_done(first)
    print(f"\n{steps} steps in two minutes")
    subprocess.run(
        [*line, str(second), "--stop", str(steps)], check=True, stderr=subprocess.DEVNULL
    )
    assert steps_done(second) == steps
    assert_same(first, second)
