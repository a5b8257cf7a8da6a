"""Models from timm, torchvision, the user's own file and ONNX graphs."""

import os
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_gpm.core import UserError
from robustbench_gpm.models import ModelOptions, Normalised, build_model, check_output
from robustbench_gpm.models.external import with_head

RGB = ModelOptions(7, 3, 32, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
PLAIN = ModelOptions(4, 3, 8, (0.0,) * 3, (1.0,) * 3)
NORMALISED = ModelOptions(4, 3, 8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


# torchvision and timm


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5"])
def test_torchvision(name):
    model = build_model(name, RGB).eval()
    assert isinstance(model, Normalised)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit3"])
def test_timm_with_the_options_normalisation_and_channels(name):
    pytest.importorskip("timm")
    options = ModelOptions(7, 1, 32, (0.3,), (0.4,))
    model = build_model(f"timm:{name}", options).eval()
    x = torch.rand(2, 1, 32, 32)
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(model(x), model.network((x - 0.3) / 0.4))


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_unknown_names_are_answered_with_a_close_one(source):
    pytest.importorskip(source)
    message = f"{source} has no classification model 'resnet81': did you mean 'resnet18'"
    with pytest.raises(UserError, match=message):
        build_model(f"{source}:resnet81", RGB)


@pytest.mark.parametrize("form", ["timm:resnet18", "onnx:model.onnx"])
def test_an_absent_extra_is_named(form, monkeypatch):
    extra = form.partition(":")[0]
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(UserError, match=rf"pip install 'robustbench_gpm\[{extra}\]'"):
        build_model(form, RGB)


def test_a_failing_download_is_one_sentence(monkeypatch, tmp_path):
    def unreachable(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    wanted = ModelOptions(7, 3, 32, RGB.mean, RGB.std, pretrained=True)
    message = "could not get the published weights of torchvision model 'squeezenet1_1': .*no route"
    with pytest.raises(UserError, match=message):
        build_model("torchvision:squeezenet1_1", wanted)


def test_images_too_small_for_a_network():
    with pytest.raises(UserError, match=r"cannot take images of shape \(1, 3, 8, 8\)"):
        build_model("torchvision:squeezenet1_0", PLAIN)


def test_images_with_too_few_channels():
    with pytest.raises(UserError, match=r"\(1, 1, 32, 32\).*wrong number of channels"):
        build_model("torchvision:squeezenet1_1", ModelOptions(7, 1, 32, (0.5,), (0.5,)))


@pytest.mark.parametrize("head", [nn.Linear(5, 1000), nn.Conv2d(5, 1000, 1, bias=False)])
def test_a_pretrained_network_gets_a_new_head_and_keeps_its_body(head):
    body = nn.Linear(3, 5)
    network = nn.Sequential(body, nn.Sequential(head, nn.ReLU()))
    with_head(network, 7)
    assert network[0] is body
    assert network[1][0].weight.shape == (7, *head.weight.shape[1:])
    assert (network[1][0].bias is None) == (head.bias is None)


def test_a_head_that_fits_is_kept():
    network = nn.Sequential(nn.Linear(5, 7))
    head = network[0]
    assert with_head(network, 7)[0] is head


# the user's own file

USER_FILE = """
import dataclasses
import torch
import neighbour

@dataclasses.dataclass
class Settings:
    classes: int

class Pooled(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)
    def forward(self, x):
        return self.head(x.mean((2, 3)))

def sized(num_classes): return Pooled(num_classes)
def open_ended(**given): return Pooled(given["num_classes"])
def fixed(): return Pooled(neighbour.CLASSES)
def five(): return Pooled(5)
def breaks(): raise ValueError("no luck\\nat all")
def leaves(): raise SystemExit(2)
def text(): return "a model"
def pairs(): return torch.nn.Unflatten(1, (3, 1))
answer = 42
"""


@pytest.fixture
def user_file(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    (tmp_path / "neighbour.py").write_text("CLASSES = 4\n")
    yield path
    sys.modules.pop("neighbour", None)


@pytest.mark.parametrize("factory", ["sized", "open_ended", "fixed", "Pooled"])
def test_user_models_take_plain_images(factory, user_file):
    searched = list(sys.path)
    model = build_model(f"{user_file}:{factory}", PLAIN).eval()
    assert type(model).__name__ == "Pooled"
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert sys.path == searched


def test_user_models_are_normalised_where_the_options_say_so(user_file):
    model = build_model(f"{user_file}:sized", NORMALISED)
    assert isinstance(model, Normalised)
    assert model.mean.flatten().tolist() == pytest.approx(NORMALISED.mean)


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder, classes in (("a", 4), ("b", 5)):
        (tmp_path / folder).mkdir()
        forward = f"def forward(self, x): return x[:, 0, 0, :{classes}]"
        text = f"import torch\nclass M(torch.nn.Module):\n    {forward}\n"
        (tmp_path / folder / "mine.py").write_text(text)
    first = build_model(f"{tmp_path}/a/mine.py:M", PLAIN)
    second = build_model(f"{tmp_path}/b/mine.py:M", ModelOptions(5, 3, 8, (0.0,) * 3, (1.0,) * 3))
    assert type(first).__module__ != type(second).__module__
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nothing", "has no function 'nothing'"),
        ("answer", "has no function 'answer'"),
        ("breaks", "breaks in '.*' raised ValueError: no luck$"),
        ("leaves", "leaves in '.*' raised SystemExit: 2"),
        ("text", "must return a torch.nn.Module, and returned a str"),
        ("five", r"logits of shape \(1, 4\) for one image, and gave \(1, 5\)"),
        ("pairs", r"logits of shape \(1, 4\) for one image, and gave \(1, 3, 1, 8, 8\)"),
    ],
)
def test_what_can_be_wrong_with_a_user_s_function(factory, message, user_file):
    with pytest.raises(UserError, match=message):
        build_model(f"{user_file}:{factory}", PLAIN)


def test_a_missing_file_and_a_forgotten_function(user_file):
    with pytest.raises(UserError, match="no model file at '.*absent.py'"):
        build_model(f"{user_file.parent}/absent.py:make", PLAIN)
    with pytest.raises(UserError, match=r"names no function: ask for '.*mine.py:<function>'"):
        build_model(str(user_file), PLAIN)


def test_a_file_that_does_not_load(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name")
    with pytest.raises(UserError, match="loading '.*broken.py' raised ModuleNotFoundError"):
        build_model(f"{path}:make", PLAIN)


def test_a_check_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 4)).train()
    model[0].eval()
    check_output(model, PLAIN)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model[0].num_batches_tracked == 0


def test_a_model_must_give_a_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(UserError, match="and gave a tuple"):
        check_output(Pair(), PLAIN)


# ONNX graphs, built by hand


def graph_file(path: Path, nodes, constants: dict[str, np.ndarray]) -> Path:
    """A graph from 'image' (1,3,8,8) to 'logits' (1,4), with the batch size of 1 baked in."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx2torch")
    real = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [onnx.helper.make_tensor_value_info("image", real, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", real, [1, 4])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", 13)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def node(kind: str, inputs: str, output: str, **attributes):
    return pytest.importorskip("onnx").helper.make_node(
        kind, inputs.split(), [output], **attributes
    )


@pytest.fixture
def numbers() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "kernel": draw.standard_normal((2, 3, 3, 3)).astype(np.float32),
        "offset": draw.standard_normal(2).astype(np.float32),
        "offset_shape": np.array([1, 2, 1, 1]),
        "weight": draw.standard_normal((72, 4)).astype(np.float32),
        "bias": draw.standard_normal(4).astype(np.float32),
    }


def convolution_and_head(*between):
    """Convolution + offset, ReLU, then `between` from 'active' to 'flat', then a linear layer."""
    return [
        node("Conv", "image kernel", "convolved"),
        node("Reshape", "offset offset_shape", "raised"),  # begins with 1, and is no batch
        node("Add", "convolved raised", "sum"),
        node("Relu", "sum", "active"),
        *between,
        node("Gemm", "flat weight bias", "logits"),
    ]


@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("flat", [[1, 72], [1, -1], [-1, 72]])
@pytest.mark.parametrize("detour", [[1, 2, -1], [1, 36, 2], [-1, 9, 8]])
def test_onnx_graphs_take_batches_though_exported_for_one_image(
    detour, flat, as_node, numbers, tmp_path
):
    numbers["detour"] = np.array(detour)
    between = [
        node("Reshape", "active detour", "turned"),
        node("Reshape", "turned shape", "flat"),
    ]
    if as_node:
        onnx = pytest.importorskip("onnx")
        held = onnx.numpy_helper.from_array(np.array(flat))
        between.insert(0, node("Constant", "", "shape", value=held))
    else:
        numbers["shape"] = np.array(flat)
    path = graph_file(tmp_path / "m.onnx", convolution_and_head(*between), numbers)
    model = build_model(f"onnx:{path}", NORMALISED).eval()
    x = torch.rand(5, 3, 8, 8)
    parts = {name: torch.from_numpy(value.copy()) for name, value in numbers.items()}
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (NORMALISED.mean, NORMALISED.std))
    features = nn.functional.conv2d((x - mean) / std, parts["kernel"], parts["offset"]).relu()
    expected = features.flatten(1) @ parts["weight"] + parts["bias"]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_a_shape_shared_with_a_constant_stays_as_it_is_there(numbers, tmp_path):
    numbers |= {"flat_shape": np.array([1, -1]), "shift": numbers["weight"][:, 0].copy()}
    between = [
        node("Reshape", "active flat_shape", "unshifted"),
        node("Reshape", "shift flat_shape", "row"),
        node("Add", "unshifted row", "flat"),
    ]
    path = graph_file(tmp_path / "m.onnx", convolution_and_head(*between), numbers)
    assert build_model(f"onnx:{path}", PLAIN).eval()(torch.rand(3, 3, 8, 8)).shape == (3, 4)


def test_a_graph_that_takes_one_image_alone_is_refused(numbers, tmp_path):
    numbers |= {"halves": np.array([2, 36]), "back": np.array([1, 72])}
    between = [node("Reshape", "active halves", "half"), node("Reshape", "half back", "flat")]
    path = graph_file(tmp_path / "m.onnx", convolution_and_head(*between), numbers)
    with pytest.raises(UserError, match="m.onnx' takes only the batch size it was exported with"):
        build_model(f"onnx:{path}", PLAIN)


def test_a_graph_that_mixes_its_images_is_refused(numbers, tmp_path):
    numbers["shape"] = np.array([1, 72])
    between = [
        node("Reshape", "active shape", "unmixed"),
        node("ReduceMean", "unmixed", "mixed", axes=[0], keepdims=1),
        node("Sub", "unmixed mixed", "flat"),
    ]
    path = graph_file(tmp_path / "m.onnx", convolution_and_head(*between), numbers)
    with pytest.raises(UserError, match="mixes the images of a batch"):
        build_model(f"onnx:{path}", PLAIN)


def test_an_operator_without_a_counterpart_is_named(numbers, tmp_path):
    between = [node("Multinomial", "unknown", "draws"), node("Flatten", "active", "flat")]
    between.insert(0, node("Flatten", "active", "unknown"))
    path = graph_file(tmp_path / "m.onnx", convolution_and_head(*between), numbers)
    with pytest.raises(UserError, match="onnx2torch cannot convert '.*m.onnx': .*Multinomial"):
        build_model(f"onnx:{path}", PLAIN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no ONNX file at"),
        (b"", "holds no ONNX graph"),
        (b"<html>", "is not a readable ONNX file"),
    ],
)
def test_files_that_are_no_onnx_graph(content, message, tmp_path):
    pytest.importorskip("onnx2torch")
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        build_model(f"onnx:{path}", PLAIN)


def test_a_published_robust_network():
    path = os.environ.get("ROBUSTBENCH_GPM_ONNX")
    if not path:
        pytest.skip("ROBUSTBENCH_GPM_ONNX names no CIFAR-10 network in ONNX")
    pytest.importorskip("onnx2torch")
    model = build_model(
        f"onnx:{path}", ModelOptions(10, 3, 32, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    ).eval()
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    logits = model(x)
    assert logits.shape == (4, 10)
    (gradient,) = torch.autograd.grad(logits[0].sum(), x)
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0
