"""Pictures show the records' own numbers, whole, legibly, and the same each time."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.quiver import Quiver
from matplotlib.text import Text
from test_records import FLOW, LINF, columns, example, five, synthetic

from robustbench_gpm import report
from robustbench_gpm.core import UserError
from robustbench_gpm.records import Records
from robustbench_gpm.report import draw_curves, draw_examples
from robustbench_gpm.summary import summarise

ATTACKS = ("pgd", "stadv", "fgr")
LONG = "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k fine-tuned with penalty 300, seed 0"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved during the test."""
    figures: list[Figure] = []
    honest = Figure.savefig

    def savefig(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        honest(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def texts(figure: Figure) -> list[Text]:
    """Every text that is to be seen, placed as in the saved figure."""
    figure.draw_without_rendering()
    # Ticks beyond an axis' limits have labels too, but they are not drawn.
    beyond = {
        tick.label1
        for panel in figure.axes
        for axis in (panel.xaxis, panel.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    every = figure.findobj(Text)
    return [t for t in every if t.get_visible() and t.get_text().strip() and t not in beyond]


def assert_nothing_is_cut(figure: Figure) -> None:
    boxes = [text.get_window_extent() for text in texts(figure)]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    assert boxes
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height


def many(count: int, attacks: tuple[str, ...] = ATTACKS) -> list[Records]:
    return [synthetic(f"model {i}", attacks, seed=i) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_curves_are_whole_and_name_every_line(
    tmp_path: Path, drawn: list[Figure], count: int
) -> None:
    png, pdf = draw_curves(many(count), tmp_path)
    assert (png, pdf) == (tmp_path / "curve.png", tmp_path / "curve.pdf")
    assert pdf.read_bytes().startswith(b"%PDF")
    height, width = imread(png).shape[:2]
    assert 1000 <= width <= 2400
    assert 0.3 < height / width < 1.1
    assert_nothing_is_cut(drawn[0])
    named = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert named == [f"model {i}, {attack}" for attack in ATTACKS for i in range(count)]


@pytest.mark.parametrize("models", [[LONG, LONG + " b"], ["/a/very/long/path" * 9, "short"]])
def test_long_names_are_not_cut(tmp_path: Path, drawn: list[Figure], models: list[str]) -> None:
    for attacks in (("pgd",), ATTACKS):
        draw_curves([synthetic(name, attacks) for name in models], tmp_path)
        assert_nothing_is_cut(drawn[-1])


def test_the_lines_are_the_summary(tmp_path: Path, drawn: list[Figure]) -> None:
    records = many(2)
    draw_curves(records, tmp_path)
    intensity, location = drawn[0].axes
    assert intensity.get_xlabel() == "budget, linf (/255)"
    assert location.get_xlabel() == "budget, flow (pixels)"
    assert intensity.get_ylabel() == "accuracy (%)"
    assert intensity.get_ylim() == location.get_ylim() == (0, 100)
    expected = []
    for attack in ATTACKS:
        for each in records:
            summary: dict[str, Any] = summarise(each)
            curve = [summary["clean_accuracy"], *summary["curves"][attack]["robust_accuracy"]]
            expected.append([100 * value for value in curve])
    lines = [*intensity.lines, *location.lines]
    np.testing.assert_allclose([line.get_ydata() for line in lines], expected)
    np.testing.assert_allclose(lines[0].get_xdata(), [0, 1, 2, 4, 8, 16, 32])
    np.testing.assert_allclose(lines[-1].get_xdata(), [0, *FLOW])


def test_bands_are_the_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    records = five()
    draw_curves([records], tmp_path)
    summary: dict[str, Any] = summarise(records)
    pairs = [summary["clean_ci95"], *summary["curves"]["pgd"]["ci95"]]
    corners = drawn[0].axes[0].collections[0].get_paths()[0].vertices
    for x, (low, high) in zip((0, 1, 2, 4, 8, 16, 32), pairs, strict=True):
        at = np.asarray(corners)[np.isclose(np.asarray(corners)[:, 0], x), 1]
        assert (at.min(), at.max()) == pytest.approx((100 * low, 100 * high))


def test_colour_tells_the_model_and_line_and_marker_the_attack(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_curves(many(4), tmp_path)
    lines = drawn[0].legends[0].get_lines()
    looks = [(to_hex(line.get_color()), line.get_marker()) for line in lines]
    for look, (attack, model) in zip(looks, itertools.product(range(3), range(4)), strict=True):
        assert look == (looks[model][0], looks[4 * attack][1])
    assert len(set(looks)) == 12
    drawn_looks = [
        (to_hex(line.get_color()), line.get_marker())
        for panel in drawn[0].axes
        for line in panel.lines
    ]
    assert drawn_looks == looks


def test_the_attacks_of_one_model_have_colours_of_their_own(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_curves([synthetic("only")], tmp_path)
    lines = [line for panel in drawn[0].axes for line in panel.lines]
    assert len(lines) > 1
    assert len({line.get_color() for line in lines}) == len(lines)


def test_ten_models_have_ten_colours_and_twins_two_names(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_curves([*many(8, ("pgd",)), *many(2, ("pgd",))], tmp_path)
    lines, names = drawn[0].axes[0].lines, drawn[0].legends[0].get_texts()
    assert len({to_hex(line.get_color()) for line in lines}) == 10
    assert [t.get_text() for t in names][::8] == ["model 0 (1), pgd", "model 0 (2), pgd"]


@pytest.mark.parametrize("budgets", [LINF, tuple(n / 255 for n in range(1, 33)), (8 / 255,)])
def test_budgets_are_evenly_spread_and_their_names_apart(
    tmp_path: Path, drawn: list[Figure], budgets: tuple[float, ...]
) -> None:
    """Doublings and even steps alike: no end of the axis is squashed."""
    smallest = [budgets[0], 0.0, math.nan, budgets[-1], math.nan]
    records = dataclasses.replace(five(), attacks=(columns("pgd", smallest, budgets),))
    draw_curves([records], tmp_path)
    panel = drawn[0].axes[0]
    points = [panel.transData.transform((255 * b, 0))[0] for b in (0.0, *budgets)]
    assert np.ptp(np.diff(points)) < 1e-6 * np.diff(points).mean()
    drawn[0].draw_without_rendering()
    boxes = [t.get_window_extent() for t in panel.get_xticklabels() if t.get_text()]
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("attacks", [("pgd",), ("stadv",), ("pgd", "stadv")])
def test_a_panel_a_threat(tmp_path: Path, drawn: list[Figure], attacks: tuple[str, ...]) -> None:
    draw_curves([synthetic(attacks=attacks)], tmp_path, "other")
    titles = {"pgd": "intensity (linf)", "stadv": "location (flow)"}
    assert [panel.get_title() for panel in drawn[0].axes] == [titles[a] for a in attacks]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.pdf", "other.png"]


THREATS = {  # threat: unit, budgets
    "linf": ("image units", LINF),
    "l2": ("image units", (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)),
    "l1": ("image units", (1.5, 3.0, 6.0, 12.0)),
    "l0": ("values", (1.0, 2.0, 5.0, 10.0)),
    "flow": ("pixels", FLOW),
    "flow-l2": ("pixels", FLOW),
    "twist": ("degrees", (5.0, 10.0, 30.0)),
    "union": ("share", (0.125, 0.25, 0.5, 0.75, 1.0)),
}


def against(*threats: str, model: str = "baseline") -> Records:
    """Records of one attack a threat, which is also the attack's name."""
    made = []
    for threat in threats:
        unit, budgets = THREATS[threat]
        smallest = [budgets[0], 0.0, budgets[1], budgets[2], math.nan]
        labels = tuple(f"{budget:g}" for budget in budgets)
        one = columns(threat, smallest, budgets)
        made.append(dataclasses.replace(one, threat=threat, unit=unit, labels=labels))
    return dataclasses.replace(five(), model=model, attacks=tuple(made))


@pytest.mark.parametrize(
    ("threats", "rows"),
    [
        ("flow linf", ["intensity (linf)|location (flow)"]),
        ("union flow linf", ["intensity (linf)|location (flow)|union"]),
        ("l2 l0 linf l1", ["intensity (linf)|intensity (l2)", "intensity (l1)|intensity (l0)"]),
        (
            "linf l2 flow flow-l2",
            ["intensity (linf)|location (flow)", "intensity (l2)|location (flow-l2)"],
        ),
        ("linf l2 l1 flow", ["intensity (linf)|intensity (l2)|location (flow)", "intensity (l1)"]),
        ("union linf twist flow", ["intensity (linf)|location (flow)", "union|twist"]),
    ],
)
def test_intensity_stands_beside_location(
    tmp_path: Path, drawn: list[Figure], threats: str, rows: list[str]
) -> None:
    models = [against(*threats.split(), model=name) for name in ("one", "two")]
    draw_curves(models, tmp_path)
    assert_nothing_is_cut(drawn[0])
    by_height: dict[int, list[Any]] = {}
    for panel in drawn[0].axes:
        by_height.setdefault(-round(panel.get_position().y0, 2) * 100, []).append(panel)
    ordered = [sorted(by_height[y], key=lambda p: p.get_position().x0) for y in sorted(by_height)]
    assert ["|".join(panel.get_title() for panel in row) for row in ordered] == rows
    for row in ordered:
        assert [panel.get_ylabel() for panel in row] == ["accuracy (%)", *[""] * (len(row) - 1)]
        for panel in row:  # the numbers stand at the left of each row
            shown = panel.yaxis.get_major_ticks()[0].label1.get_visible()
            assert shown == (panel is row[0])
    for panel in drawn[0].axes:
        assert panel.get_ylim() == (0, 100)
        assert [to_hex(line.get_color()) for line in panel.lines] == ["#0072b2", "#d55e00"]
        threat = panel.get_title().split("(")[-1].rstrip(")")
        unit = "/255" if threat == "linf" else THREATS[threat][0]
        assert panel.get_xlabel() == f"budget, {threat} ({unit})"
        boxes = [t.get_window_extent() for t in panel.get_xticklabels() if t.get_text()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate at least one"):
        draw_curves([dataclasses.replace(synthetic(n=0), examples=())], tmp_path)
    with pytest.raises(ValueError, match="no attack"):
        draw_curves([dataclasses.replace(five(), attacks=())], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    def draw(folder: Path) -> list[bytes]:
        draw_curves(many(2), folder)
        draw_examples(synthetic(), folder)
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    first = draw(tmp_path / "first")
    assert len(first) == 3
    assert draw(tmp_path / "again") == first
    assert not any(word in content for content in first for word in (b"Date", b"Software"))


def test_a_failing_save_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw_curves(many(1), tmp_path)[0]
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(self: Figure, target: Path, **kwargs: Any) -> None:
        target.write_bytes(b"half a picture")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="no space"):
        draw_curves(many(2), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert path.name in before


@pytest.mark.parametrize(("channels", "attacks"), [(1, ("pgd", "stadv")), (3, ATTACKS)])
def test_examples_are_whole(
    tmp_path: Path, drawn: list[Figure], channels: int, attacks: tuple[str, ...]
) -> None:
    records = synthetic(attacks=attacks, channels=channels)
    path = draw_examples(records, tmp_path)
    assert path == tmp_path / "examples.png"
    assert imread(path).shape[1] >= 1000
    assert len(drawn[0].axes) == 3 * len(records.examples)
    assert_nothing_is_cut(drawn[0])


def test_without_examples_there_is_no_picture(tmp_path: Path) -> None:
    assert draw_examples(dataclasses.replace(synthetic(), examples=()), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_examples_say_what_was_seen(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_examples(synthetic(), tmp_path)
    clean, pgd, difference = (panel.get_title() for panel in drawn[0].axes[:3])
    assert clean == "clean: three\npredicted three, 98%"
    assert pgd == "pgd, 8/255\npredicted five, 61%"
    assert difference == "difference, 31.9x enlarged\nfull colour: ±8/255"
    assert drawn[0].axes[7].get_title().startswith("stadv, 0.4 px\n")
    colours = [panel.title.get_color() for panel in drawn[0].axes[:2]]
    assert colours == ["black", "#D55E00"]  # right, and fooled


def test_a_difference_keeps_its_sign_and_is_centred(tmp_path: Path, drawn: list[Figure]) -> None:
    clean = np.full((3, 2, 2), 0.5, np.float32)
    changed = clean.copy()
    changed[:, 0, 0] += np.float32([0.01, -0.04, 0.02])  # the second channel changes most
    changed[0, 1, 1] += np.float32(0.02)
    one = dataclasses.replace(example("pgd", LINF[3]), clean=clean, adversarial=changed)
    draw_examples(dataclasses.replace(synthetic(), examples=(one,)), tmp_path)
    image = drawn[0].axes[2].images[0]
    np.testing.assert_allclose(image.get_array(), [[-0.04, 0], [0, 0.02]], atol=1e-6)
    assert image.get_clim() == pytest.approx((-0.04, 0.04))
    assert "25x enlarged" in drawn[0].axes[2].get_title()


@pytest.mark.parametrize("size", [8, 40])
def test_arrows_are_the_flow(tmp_path: Path, drawn: list[Figure], size: int) -> None:
    one = example("stadv", FLOW[3], size=size)
    assert one.flow is not None
    draw_examples(dataclasses.replace(synthetic(), examples=(one,)), tmp_path)
    panel = drawn[0].axes[2]
    (arrows,) = (artist for artist in panel.collections if isinstance(artist, Quiver))
    across, down = arrows.X.astype(int), arrows.Y.astype(int)
    np.testing.assert_array_equal(arrows.U, one.flow[0, down, across])
    np.testing.assert_array_equal(arrows.V, one.flow[1, down, across])
    assert panel.yaxis_inverted()  # so that an arrow downwards is a flow downwards
    assert len(across) == (64 if size == 8 else 100)
    times = 1 / arrows.scale
    assert f"arrows {times:g}x enlarged" in panel.get_title()
    longest, apart = np.hypot(arrows.U, arrows.V).max() * times, np.diff(np.unique(across)).min()
    assert 0.5 * apart < longest <= 1.5 * apart


def test_nothing_changed_is_drawn_too(tmp_path: Path, drawn: list[Figure]) -> None:
    still = example("pgd", LINF[3])
    still = dataclasses.replace(still, adversarial=still.clean)
    calm = dataclasses.replace(example("stadv", FLOW[3]), flow=np.zeros((2, 8, 8), np.float32))
    draw_examples(dataclasses.replace(synthetic(), examples=(still, calm)), tmp_path)
    said = [panel.get_title() for panel in drawn[0].axes[2::3]]
    assert "nothing changed" in said[0]
    assert "nothing moved" in said[1]


def test_the_attacks_share_eight_rows(tmp_path: Path, drawn: list[Figure]) -> None:
    examples = [example("pgd", LINF[3], seed=i) for i in range(20)]
    examples += [example("stadv", FLOW[3], seed=i) for i in range(3)]
    draw_examples(dataclasses.replace(synthetic(), examples=tuple(examples)), tmp_path)
    named = [panel.get_title().split(",")[0] for panel in drawn[0].axes[1::3]]
    assert named == ["pgd"] * 5 + ["stadv"] * 3


@pytest.mark.parametrize("name", ["black-footed ferret, polecat, Mustela nigripes", "W" * 40])
def test_long_class_names_stay_over_their_image(
    tmp_path: Path, drawn: list[Figure], name: str
) -> None:
    draw_examples(dataclasses.replace(synthetic(LONG * 2), classes=(name,) * 10), tmp_path)
    assert_nothing_is_cut(drawn[0])
    boxes = [panel.title.get_window_extent() for panel in drawn[0].axes]
    for left, middle, right in zip(boxes[::3], boxes[1::3], boxes[2::3], strict=True):
        assert left.x1 < middle.x0
        assert middle.x1 < right.x0


def test_a_class_without_a_name_is_its_number(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_examples(dataclasses.replace(synthetic(), classes=("zero",)), tmp_path)
    assert drawn[0].axes[1].get_title().endswith("predicted 5, 61%")


def test_the_report_needs_records_alone_and_what_draws() -> None:
    """No evaluator, no network, and no pyplot with its global state."""
    standard = {"__future__", "collections", "dataclasses", "itertools", "math", "pathlib"}
    allowed = standard | {"textwrap", "typing", "matplotlib", "numpy", "PIL", "torch"}
    allowed |= {"records", "summary", "files", "deformation"}
    files = list(Path(inspect.getfile(report)).parent.glob("*.py"))
    allowed |= {path.stem for path in files}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in names} <= allowed
            assert not any("pyplot" in name or "torch.nn" in name for name in names)
