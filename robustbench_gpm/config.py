"""What `main.py` and `evaluate.py` can be asked for: every flag, with its help, type and range."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .attacks import ATTACKS
from .core import UserError
from .datasets import AUGMENTATIONS, DATASETS
from .fields import check_ranges, flag
from .models import ACTIVATIONS, MODELS, TABLES
from .tasks import TASKS

CACHE = Path("~/.cache/robustbench_gpm")


@dataclass(frozen=True)
class TrainConfig:
    """Flags of `main.py`. Defaults that depend on the data set come from its recipe."""

    task: str | None = flag(
        None, f"what to train for, on digits if no data set is named: {', '.join(TASKS)}"
    )
    data_name: str = flag("digits", f"data set: {', '.join(DATASETS)}")
    data_path: Path | None = flag(
        None, "folder the data set lies in (those made of digits need none)"
    )
    model_name: str = flag(
        "digits_cnn",
        f"network: {', '.join(MODELS)}, timm:<name>, torchvision:<name> or "
        "path/to/file.py:factory; "
        + "; ".join(f"{task}: {', '.join(t)}" for task, t in TABLES.items() if t is not MODELS),
    )
    pretrained: bool = flag(
        False, "start from the published weights of a timm or torchvision model"
    )
    activation: str | None = flag(
        None, f"in the place of the network's own: {', '.join(ACTIVATIONS)}"
    )
    drop_path: float | None = flag(
        None,
        "timm: share of residual branches that are dropped in training, if not the network's own",
        at_least=0,
        at_most=0.99,
    )
    image_size: int | None = flag(
        None,
        "pixels on a side that imagefolder's images are brought to, 224 if not given; height of "
        "those with masks or boxes",
        above=0,
    )
    frames: int | None = flag(None, "frames that are taken of a clip; 8 if not given", above=0)
    limit: int | None = flag(None, "train on this many images only", above=0)
    augment: str = flag("none", f"augmentation: {', '.join(AUGMENTATIONS)}")

    batch_size: int = flag(128, "images a step", at_least=1)

    seed: int = flag(0, "seed of weights, shuffling and augmentation", at_least=0)
    device: str = flag("auto", "auto, cpu or cuda")
    precision: Literal["fp32", "bf16"] = flag("fp32", "arithmetic of the forward and backward pass")
    compile: bool = flag(
        False, "compile the model; for objectives that take no second derivative of it"
    )
    workers: int = flag(0, "processes that prepare batches; the result is the same", at_least=0)
    cache_dir: Path = flag(CACHE, "folder for decoded images")
    checkpoints_dir: Path = flag(Path("checkpoints"), "folder that new checkpoints are put in")
    out: Path | None = flag(
        None, "folder of this checkpoint; by default named by data, model and objective"
    )
    resume: bool = flag(False, "go on with the training that was interrupted")
    overwrite: bool = flag(False, "replace the checkpoint that is there")

    def __post_init__(self) -> None:
        """Raise UserError for the first number out of its range."""
        check_ranges(self)
        if self.resume and self.overwrite:
            raise UserError("--resume goes on and --overwrite starts again: give one of them")


@dataclass(frozen=True)
class EvaluateConfig:
    """Flags of `evaluate.py`."""

    attack: tuple[str, ...] = flag(("pgd", "stadv"), f"attacks: {', '.join(ATTACKS)}")
    budgets: tuple[str | float, ...] = flag(
        (),
        "budgets, such as 2/255 8/255 (flows in pixels), for every attack, or for one as "
        "pgd=2/255,8/255; by default each attack's own range",
    )
    set: tuple[str, ...] = flag(
        (),
        "hyper-parameters of the attacks, such as padding=zeros for every attack that has it, or "
        "flow-pgd.restarts=5 for one",
    )
    checkpoint: tuple[str, ...] = flag(
        (), "checkpoint folders or their weights files; by default the newest one that fits"
    )
    checkpoints_dir: Path = flag(Path("checkpoints"), "folder that checkpoints are looked for in")

    model: str | None = flag(
        None, "evaluate this model instead of a checkpoint: any model name, or onnx:<file>"
    )
    weights: Path | None = flag(None, "weights for --model: .safetensors, .pt or .pth")
    mean: tuple[float, ...] = flag(
        (), "what --model's inputs are normalised with, a number a channel"
    )
    std: tuple[float, ...] = flag((), "the same: standard deviations", above=0)
    activation: str | None = flag(None, "activation that --model was trained with, if not its own")

    task: str | None = flag(None, "choose the newest checkpoint for this task")
    data_name: str | None = flag(None, "data set; by default the one the checkpoint was trained on")
    data_path: Path | None = flag(None, "folder the data set lies in")
    image_size: int | None = flag(None, "the same as in training", above=0)
    frames: int | None = flag(None, "the same as in training", above=0)
    split: Literal["train", "validation", "test"] = flag("test", "split to evaluate on")
    limit: int | None = flag(None, "evaluate this many images only", above=0)
    cache_dir: Path = flag(CACHE, "folder for decoded images")

    model_name: str | None = flag(None, "choose the newest checkpoint of this model")

    out: Path | None = flag(None, "folder for the results; by default results/<name>")
    batch_size: int | None = flag(
        None,
        "images attacked at once, 250 or, with masks or boxes, 16; the verdicts are the same, up "
        "to rounding",
        at_least=1,
    )
    no_shared_work: bool = flag(
        False, "attack every budget afresh and on the model itself, to compare; much slower"
    )
    no_checks: bool = flag(
        False, "leave out the checks of the model's set-up and for masked gradients"
    )
    escalate: bool = flag(
        False, "add to an attack in linf or l2 those that the raised flags call for; slower"
    )
    labels: Literal["stay", "move"] = flag(
        "stay",
        "masks and boxes under a deformation: stay where they are, or move along with the pixels",
    )
    shard: str | None = flag(None, "do a part only: 2/4 is the second of four; see `merge`")
    examples: int = flag(4, "fooled images an attack shows in the picture", at_least=0)
    seed: int = flag(0, "seed of the attacks' random starts", at_least=0)
    device: str = flag("auto", "auto, cpu or cuda")

    def __post_init__(self) -> None:
        """Raise UserError for the first number out of its range, and for flags that don't fit."""
        check_ranges(self)
        if self.model is None and (self.weights or self.mean or self.std or self.activation):
            raise UserError(
                "--weights, --mean, --std and --activation go with --model: name the model too"
            )
        if self.model is not None and self.checkpoint:
            raise UserError("give --model or --checkpoint, not both")
        if self.model is not None and self.data_name is None:
            raise UserError("--model needs to know the data: give --data_name too")
        if self.escalate and self.no_checks:
            raise UserError("--escalate acts on what the checks find: leave out --no_checks")
