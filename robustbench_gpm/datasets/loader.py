"""Batches for training, which a resumed run finds again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..core import UserError
from .augment import Augmentation, Transform
from .base import Split, as_float, counted
from .mixing import Mixing
from .shuffle import AUGMENT, EPOCH, MIX, fixed_order, scramble
from .together import augmented

Batch = tuple[Tensor, Tensor]
Wanted = tuple[int, Tensor]  # an epoch and rows of the split


class TrainLoader:
    """Shuffled, augmented batches of a split.

    What epoch n holds depends on the seed and n alone, and what a sample looks like in it on the
    seed, n and the sample's index, and where batches are mixed on the others in its batch: the same
    after a resume and with any number of workers. The global random state is neither read nor
    changed.

    The last, shorter batch is kept, unless it would hold a single sample, of which BatchNorm can
    take no variance: then that sample, another in each epoch, sits the epoch out.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        workers: int = 0,
        mixing: Mixing | None = None,
    ) -> None:
        """`workers` processes make the batches; 0 makes them in this one. Raises UserError."""
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        if workers < 0:
            raise UserError(f"the number of workers must be at least 0, not {workers}")
        needed = min(2, batch_size)
        if len(split) < needed:
            raise UserError(
                f"the training split holds too few samples ({len(split)}): "
                f"train on {needed} or more"
            )
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._source = _Augmented(split, augmentation.train, mixing or Mixing(), seed)
        self._plan: list[Wanted] = []
        self._workers: DataLoader[Batch] | None = None
        if workers:
            self._workers = DataLoader(
                self._source,
                batch_size=None,
                sampler=self._plan,
                num_workers=workers,
                persistent_workers=True,
                generator=torch.Generator(),  # or the global one would be drawn from
            )

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self._split), self._batch_size)
        return full + (rest > 1)

    def epoch(self, n: int) -> Iterator[Batch]:
        """Images, float32 (B,C,H,W) in [0,1], and labels (B,): the batches of epoch n.

        Where the mixing makes labels soft, they are shares of the classes (B,K).

        With workers, to begin an epoch ends the one before.
        """
        order = fixed_order(self._split.index, EPOCH, self._seed, n)
        wanted = [(n, rows) for rows in torch.split(order, self._batch_size)[: len(self)]]
        if self._workers is None:
            return map(self._source.__getitem__, wanted)
        self._plan[:] = wanted
        return iter(self._workers)


@dataclass(frozen=True, eq=False)
class _Augmented(Dataset[Batch]):
    """Whole batches as the items of a data set, so that workers do the work of a batch at once."""

    split: Split
    transform: Transform | None
    mixing: Mixing
    seed: int

    def __getitem__(self, wanted: Wanted) -> Batch:
        epoch, rows = wanted
        images, labels = self._augmented(epoch, rows)
        if not self.mixing.soft:
            return images, labels
        (seed,) = scramble(self.split.index[rows[:1]], MIX, self.seed, epoch).tolist()
        with _borrowed():
            torch.default_generator.manual_seed(seed)
            return self.mixing(images, labels, len(self.split.classes))

    def _augmented(self, epoch: int, rows: Tensor) -> Batch:
        if self.transform is None:
            return self.split.batch(rows)
        seeds = scramble(self.split.index[rows], AUGMENT, self.seed, epoch).tolist()
        made = []
        with _borrowed():
            for row, seed in zip(rows.tolist(), seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                image, label = self.split.images[row], self.split.labels[row]
                made.append(augmented(self.transform, image, label))
        images, labels = (torch.stack(part) for part in zip(*made, strict=True))
        return as_float(images), counted(labels)


@contextmanager
def _borrowed() -> Iterator[None]:
    """The global random stream, which torchvision draws from, put back afterwards.

    Seed the CPU's own generator there, as torch.manual_seed would reseed every GPU as well.
    """
    with torch.random.fork_rng(devices=[]):
        yield
