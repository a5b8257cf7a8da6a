"""The shared pieces: tables, random streams, the book of costs, freezing, atomic files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from robustbench_gpm.core import Samples, Table, UserError, frozen, pick_device
from robustbench_gpm.files import atomically, free_folder, writable_folder, write_text


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    table = Table("attack", {"pgd": 1, "fgsm": 2}, also="torchattacks:<name>")
    assert table["pgd"] == 1
    assert list(table) == ["pgd", "fgsm"]
    with pytest.raises(
        UserError,
        match="unknown attack 'pgdd': did you mean 'pgd'\\? choose from pgd, fgsm or torchattacks",
    ):
        table["pgdd"]


def test_a_samples_stream_is_its_own() -> None:
    like = torch.zeros(3, 2, 4, 4)
    together = Samples([7, 3, 9], seed=1)
    first, second = together.uniform(like), together.normal(like)
    alone = Samples([3], seed=1)
    assert torch.equal(alone.uniform(like[:1]), first[1:2])
    assert torch.equal(alone.normal(like[:1]), second[1:2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(Samples([7, 3, 9], seed=2).uniform(like), first)
    assert first.min() >= -1
    assert first.max() < 1


def test_selected_samples_draw_on_from_the_same_streams() -> None:
    like = torch.zeros(3, 5)
    whole, parted = Samples([0, 1, 2], seed=4), Samples([0, 1, 2], seed=4)
    whole.uniform(like)
    expected = whole.uniform(like)
    parted.uniform(like)
    part = parted.select(torch.tensor([True, False, True]))
    assert part.index.tolist() == [0, 2]
    assert torch.equal(part.uniform(like[:2]), expected[[0, 2]])


def test_the_book_charges_only_who_is_in_the_batch() -> None:
    samples = Samples([5, 6, 7])
    samples.book(forwards=1)
    part = samples.select(torch.tensor([2, 0]))
    part.book(forwards=2, backwards=1)
    part.select(torch.tensor([True, False])).book(backwards=10)
    assert samples.forwards.tolist() == [3, 1, 3]
    assert samples.backwards.tolist() == [1, 0, 11]
    assert part.backwards.tolist() == [11, 1]


def test_frozen_puts_every_flag_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    model[0].bias.requires_grad_(False)
    with pytest.raises(KeyError), frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UserError, match="no GPU is available"):
        pick_device("cuda")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        pick_device("gpu")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomically(path) as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_free_folders_are_numbered(tmp_path: Path) -> None:
    wanted = tmp_path / "digits"
    assert free_folder(wanted) == wanted
    wanted.mkdir()
    assert free_folder(wanted) == wanted  # empty
    (wanted / "card.json").touch()
    assert free_folder(wanted) == tmp_path / "digits-2"
    (tmp_path / "digits-2").mkdir()
    (tmp_path / "digits-2/card.json").touch()
    assert free_folder(wanted) == tmp_path / "digits-3"
    assert free_folder(wanted, latest=True) == tmp_path / "digits-2"


def test_a_folder_that_cannot_be_written_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to the folder .* --out"):
        writable_folder(tmp_path / "file" / "results", "--out")
