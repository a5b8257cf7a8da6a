"""What a model has to fit: the data set's classes and images."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import UserError


@dataclass(frozen=True)
class ModelOptions:
    """The number of classes, and images of `channels` x `image_height` x `image_size` in [0,1].

    Without `image_height` images are square. Clips have `frames`, one after another as channels.
    `mean` and `std`, one number a channel, are what the network's input is normalised with; means
    of 0 and deviations of 1 leave it as it is. `pretrained` asks for published weights where the
    model's source (timm, torchvision) has them; `activation` takes the place of the network's own;
    `drop_path`, of timm's networks, is the share of residual branches dropped in training. `task`
    says what the model is to answer. Raises UserError for numbers that cannot be.
    """

    classes: int
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pretrained: bool = False
    activation: str | None = None
    drop_path: float | None = None
    task: str = "classification"
    image_height: int | None = None
    frames: int = 1

    def __post_init__(self) -> None:
        """Refuse what no network could be built for."""
        if min(self.classes, self.channels, self.image_size) < 1:
            raise UserError(
                "a model needs at least one class, one channel and one pixel, not "
                f"{self.classes}, {self.channels} and {self.image_size}"
            )
        if not len(self.mean) == len(self.std) == self.channels:
            raise UserError(
                f"normalisation needs one mean and one std for each of {self.channels} channels, "
                f"not {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise UserError(f"the std of every channel must be above 0, not {min(self.std)}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.image_height or self.image_size, self.image_size

    @property
    def normalises(self) -> bool:
        """Whether mean and std would change anything."""
        return any(self.mean) or any(std != 1 for std in self.std)

    def require_size(self, smallest: int, network: str) -> None:
        """Raise UserError where images are smaller than `smallest` pixels."""
        if min(self.size) < smallest:
            raise UserError(
                f"{network} needs images of at least {smallest} pixels, and these have "
                f"{min(self.size)}: choose a model for small images, such as digits_cnn"
            )
