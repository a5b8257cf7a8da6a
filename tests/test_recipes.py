"""Every recipe says what main.py understands; a few are trained, on small networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from spoilt_data import KINDS

from robustbench_gpm import cli
from robustbench_gpm.checkpoint import load, read_card
from robustbench_gpm.datasets import DATASETS, DataSpec
from robustbench_gpm.flags import parse, peek
from robustbench_gpm.models import check_name
from robustbench_gpm.objectives.gpm import GPM
from robustbench_gpm.train_command import train_parser
from robustbench_gpm.training_options import TrainingOptions

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.yaml"))
LABELS = {  # what tells a recipe's objective, in its name and in the folder's
    "gnp": "gnp0.8",
    "sam": "sam0.1",
    "sagm": "sagm0.05",
    "gpm": "gpm",
    "edges": "edge1",
    "gradnorm": "igr1.5",
    "pgd3": "at-pgd",
    "fgr300": "fgr300",
    "fgr200": "fgr200",
    "fgr100": "fgr100",
    "flow_adversarial": "at-flow",
    "input_gradient": "igr10",
    "baseline": "baseline",
}


GPM_AS_PUBLISHED = {  # weight, batch and share of pixels of the authors' configurations
    "caltech256_vit_s16_gpm": (0.4, 256, 0.9),
    "caltech256_vit_s16_gpm_pretrained": (0.4, 256, 0.9),
    "ade20k_segnext_t_gpm": (0.0015, 16, 0.6),
    "voc_faster_rcnn_r18_gpm": (0.0005, 128, 0.4),
    "voc_retinanet_r18_gpm": (0.0005, 128, 0.4),
}


def spec_of(path: Path) -> DataSpec:
    return DATASETS[peek(["--config", str(path)], "data_name", "digits")]


def options_of(path: Path) -> TrainingOptions:
    arguments = ["--config", str(path)]
    return TrainingOptions.of(parse(train_parser(spec_of(path), "main.py"), arguments))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_is_understood_and_trains_what_it_is_called(path: Path) -> None:
    options, task = options_of(path), spec_of(path).task
    options.check_task(task)
    check_name(options.config.model_name, task)
    options.objective(10)
    words = path.read_text().split("\n", 1)[0]
    assert words.startswith("# ")
    named = [label for name, label in LABELS.items() if f"_{name}" in path.stem]
    for label in named:
        assert f"_{options.label}".find(f"_{label}") >= 0, options.label
    if not path.stem.endswith("_short"):  # these leave the objective to whoever compares them
        assert named or "adversarial" in path.stem


@pytest.mark.parametrize("name", GPM_AS_PUBLISHED)
def test_gpm_weighs_as_in_the_authors_batch(name: str) -> None:
    """Theirs is on the gradient of the batch's mean loss in inputs divided by 0.226."""
    weight, batch, share = GPM_AS_PUBLISHED[name]
    options = options_of(RECIPES[0].with_name(f"{name}.yaml"))
    (gpm,) = options.penalties
    assert isinstance(gpm, GPM)
    assert gpm.weight == pytest.approx(weight * 0.226 / batch)
    assert gpm.gpm_use_ratio == share
    assert options.config.batch_size == batch


def test_recipes_of_one_comparison_differ_in_the_objective_alone() -> None:
    def rest(name: str) -> object:
        options = options_of(RECIPES[0].with_name(f"{name}.yaml"))
        return options.config, options.distortions, options.mixing, options.steps

    assert rest("cifar10_vgg11_baseline") == rest("cifar10_vgg11_fgr300")
    assert rest("cifar10_vgg11_baseline") == rest("cifar10_vgg11_fgr300_flow_adversarial")
    assert rest("caltech256_vit_s16_baseline") == rest("caltech256_vit_s16_sagm")
    for path in RECIPES:
        if path.stem.endswith("_gpm"):
            assert rest(path.stem.replace("_gpm", "_baseline")) == rest(path.stem)
    assert rest("cifar10_wrn28_10_gnp") == rest("cifar10_wrn28_10_sam")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, four images of 32 pixels each in train and two in test."""
    root = tmp_path_factory.mktemp("images")
    stream = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = stream.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


# The recipe -> a small network of the same kind.
TRAINED = {
    "caltech256_vit_s16_gpm": "timm:vit_tiny_patch16_224",
    "caltech256_vit_s16_sagm": "timm:vit_tiny_patch16_224",
    "imagenet_swin_b_gradnorm": "timm:swin_tiny_patch4_window7_224",
    "imagenet_swin_b_edges": "timm:vit_tiny_patch16_224",
    "imagenet_resnet50_gradnorm": "torchvision:resnet18",
    "cifar10_preactresnet18_gradnorm": "resnet8",
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_with_everything_it_asks_for(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    smaller = ["--model_name", TRAINED[name], "--data_name", "imagefolder", "--image_size", "32"]
    quick = ["--epochs", "2", "--warmup_epochs", "1", "--batch_size", "4", "--accumulate", "2"]
    where = ["--data_path", str(images), "--cache_dir", str(tmp_path / "cache")]
    recipe = str(RECIPES[0].with_name(f"{name}.yaml"))
    done = cli.train(
        ["--config", recipe, *smaller, *quick, *where, "--out", "out", "--device", "cpu"]
    )
    assert done == 0
    card = read_card(tmp_path / "out")
    assert card.finished
    assert len(card.history) == 2
    assert load(tmp_path / "out").card.configuration["model_name"] == TRAINED[name]
    penalties = {"gpm", "igr", "edge", "gradient_norm"} & set(card.history[-1])
    assert penalties
    assert all(card.history[-1][key] > 0 for key in penalties)


# The recipe -> small data of the same task.
TASKS_TRAINED = {
    "ade20k_segnext_t_gpm": "camvid",
    "cadis_segnext_t_gpm": "camvid",
    "voc_faster_rcnn_r18_gpm": "voc_boxes",
    "voc_retinanet_r18_gpm": "coco",
    "cholect45_r3d_18_gpm": "cholect45",
}


@pytest.mark.parametrize("name", TASKS_TRAINED)
def test_a_task_s_recipe_trains_with_everything_it_asks_for(name: str, tmp_path: Path) -> None:
    kind = KINDS[TASKS_TRAINED[name]]
    root = tmp_path / "data"
    root.mkdir()
    kind.make(root)
    recipe = RECIPES[0].with_name(f"{name}.yaml")
    smaller = [
        "--image_size",
        "16",
        "--epochs",
        "2",
        "--batch_size",
        "2",
        "--accumulate",
        "1",
        "--device",
        "cpu",
    ]
    where = ["--data_path", str(root), "--cache_dir", str(tmp_path / "kept")]
    out = ["--out", str(tmp_path / "out")]
    assert cli.train(["--config", str(recipe), *kind.flags.split(), *smaller, *where, *out]) == 0
    card = read_card(tmp_path / "out")
    assert card.finished
    assert card.task == spec_of(recipe).task
    assert card.history[-1]["gpm"] > 0
