"""Weights from files: what fits, and what is refused in one sentence."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustbench_gpm.core import UserError
from robustbench_gpm.models import ModelOptions, build_model, load_weights

GREY = ModelOptions(10, 1, 8, (0.3,), (0.4,))
FILES = ["w.safetensors", "w.pt", "w.pth", "w.bin", "w.pth.tar"]


def digits(classes: int = 10, mean: float = 0.3) -> nn.Module:
    return build_model("digits_cnn", ModelOptions(classes, 1, 8, (mean,), (0.4,))).eval()


def save(state, path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def refused(model: nn.Module, path: Path, message: str, classes: int = 10) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_weights(model, path, classes=classes)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("file", FILES)
def test_round_trip(file, tmp_path):
    trained, fresh = digits(mean=0.1), digits()
    path = save(trained.state_dict(), tmp_path / file)
    load_weights(fresh, path, classes=10)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(fresh(x), trained(x))


@pytest.mark.parametrize("container", ["state_dict", "model", "net"])
def test_containers_and_wrappers_prefixes(container, tmp_path):
    trained, fresh = digits(), digits()
    state = {f"module.{key}": tensor for key, tensor in trained.state_dict().items()}
    path = save({container: state, "epoch": 3}, tmp_path / "w.pt")
    load_weights(fresh, path, classes=10)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(fresh(x), trained(x))


def test_a_bare_network_s_weights_fit_a_normalised_model_which_keeps_its_statistics(tmp_path):
    trained, fresh = digits(mean=0.1), digits(mean=0.3)
    path = save(trained.network.state_dict(), tmp_path / "w.safetensors")
    load_weights(fresh, path, classes=10)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(fresh.network(x), trained.network(x))
    assert fresh.mean.item() == pytest.approx(0.3)


def test_a_normalisation_is_never_lost_in_silence(tmp_path):
    trained, bare = digits(), digits().network
    path = save(trained.state_dict(), tmp_path / "w.pt")
    refused(bare, path, "trained with a normalisation that this model lacks")


def test_a_normalisation_that_changes_nothing_may_be_left_out(tmp_path):
    plain = build_model("digits_cnn", ModelOptions(10, 1, 8, (0.0,), (1.0,))).eval()
    bare = digits().network
    load_weights(bare, save(plain.state_dict(), tmp_path / "w.pt"), classes=10)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(bare(x), plain(x))


def test_files_without_counters_of_batches_load(tmp_path):
    state = {k: v for k, v in digits().state_dict().items() if "num_batches" not in k}
    load_weights(digits(), save(state, tmp_path / "w.safetensors"), classes=10)


def test_half_precision_weights_load(tmp_path):
    trained, fresh = digits(), digits()
    state = {k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    load_weights(fresh, save(state, tmp_path / "w.safetensors"), classes=10)
    assert fresh.mean.dtype == torch.float32
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(fresh(x), trained(x), rtol=0.02, atol=0.02)


def test_a_missing_file(tmp_path):
    refused(digits(), tmp_path / "none.pt", "no weights file at")


def test_an_unknown_kind_of_file(tmp_path):
    path = tmp_path / "w.npz"
    path.touch()
    refused(digits(), path, r"must end in \.safetensors")


class Intruder:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_pickled_code_is_refused_and_never_run(protocol, tmp_path):
    path, marker = tmp_path / "w.pt", tmp_path / "ran"
    if protocol:
        path.write_bytes(pickle.dumps(Intruder(marker), protocol=protocol))
    else:
        torch.save({"weight": torch.ones(2), "more": Intruder(marker)}, path)
    refused(digits(), path, "pickled code, which is never run")
    assert not marker.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(digits(), path)
    refused(digits(), path, "pickled code, which is never run")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kept", [0, 100, 20_000])
def test_truncated_files(file, kept, tmp_path):
    path = save(digits().state_dict(), tmp_path / file)
    path.write_bytes(path.read_bytes()[:kept])
    refused(digits(), path, "is truncated, or is not the weights file")


@pytest.mark.parametrize(("file", "said"), [("w.safetensors", "is truncated"), ("w.pt", "damaged")])
def test_files_of_something_else(file, said, tmp_path):
    path = tmp_path / file
    path.write_text("<html>not found</html>")
    refused(digits(), path, said)


@pytest.mark.parametrize("held", [torch.zeros(3), {"epoch": 3}, {}, [1, 2]])
def test_files_without_weights_by_name(held, tmp_path):
    refused(digits(), save(held, tmp_path / "w.pt"), "holds no weights by name")


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_wrong_number_of_classes_names_both(wrapped, tmp_path):
    other = digits(classes=100)
    state = (other if wrapped else other.network).state_dict()
    path = save(state, tmp_path / "w.pt")
    refused(digits(), path, "a model for 100 classes, and 10 are asked for")


def test_other_shapes_are_named(tmp_path):
    state = digits().state_dict()
    state["network.3.weight"] = torch.zeros(32, 16, 3, 3)
    path = save(state, tmp_path / "w.pt")
    refused(digits(), path, r"'network.3.weight' \(32, 16, 3, 3\) for \(32, 32, 3, 3\)")


def test_a_wider_head_on_another_body_is_no_matter_of_classes(tmp_path):
    state = digits(classes=100).state_dict()
    state["network.3.weight"] = torch.zeros(32, 16, 3, 3)
    refused(digits(), save(state, tmp_path / "w.pt"), "weights of other shapes")


def test_missing_and_unknown_names_are_told(tmp_path):
    state = digits().state_dict()
    state["network.head.weight"] = state.pop("network.0.weight")
    path = save(state, tmp_path / "w.pt")
    refused(digits(), path, "lacks 'network.0.weight' and has 'network.head.weight'")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, tmp_path):
    state = digits().state_dict()
    state["network.3.weight"][0, 0, 0, 0] = value
    path = save(state, tmp_path / "w.pt")
    refused(digits(), path, "NaN or infinite weights in 'network.3.weight'")
