"""Pictures of masks, boxes and words under attack: the right panels, pixels, colours and scores."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from test_report import LONG, assert_nothing_is_cut, drawn

from robustbench_gpm.graded.examples import Picture
from robustbench_gpm.graded.pictures import draw_predictions
from robustbench_gpm.graded.records import GradedAttack, GradedRecords, Level, read, write
from robustbench_gpm.masks import VOID
from robustbench_gpm.report.overlays import (
    COVER,
    drawn_boxes,
    show_boxes,
    show_mask,
    shown_bars,
)
from robustbench_gpm.report.palette import NOT_COUNTED, PALETTE, Classes, coloured, readable_on

__all__ = ["drawn"]  # the fixture
SIDE = 8
NAMES = ("background", "cat", "dog")
NONE = np.empty(0, np.float32)


def graded(
    task: str,
    classes: tuple[str, ...] = NAMES,
    attacks: tuple[str, ...] = ("pgd", "flow-pgd"),
    *,
    labels_move: bool = False,
) -> GradedRecords:
    level = Level(np.ones(4, np.float32), [np.zeros(1, np.float32)] * 4)
    nothing = np.zeros(4, np.int64)
    made = tuple(
        GradedAttack(
            *(name, "", "linf", "", (0.1, 0.2), ("small", "large"), (level, level)),
            *(nothing, nothing, np.zeros(4)),
        )
        for name in attacks
    )
    provenance: dict[str, object] = dict.fromkeys(
        ("weights_hash", "data_hash", "configuration_hash"), "x"
    )
    places = np.arange(4)
    return GradedRecords("model", task, "m", classes, labels_move, places, level, made, provenance)


def picture(task: str, *, moves: bool = False, seed: int = 0, **changes: Any) -> Picture:
    """A cat in the upper left that is taken for a dog under attack."""
    stream = np.random.default_rng(seed)
    image = stream.random((1, SIDE, SIDE), np.float32)
    flow = np.ones((2, SIDE, SIDE), np.float32) if moves else NONE
    truth: Any = np.zeros((SIDE, SIDE), np.int64)
    truth[:4, :4], truth[0] = 1, VOID
    clean, attacked = np.where(truth == VOID, 0, truth), np.where(truth == 1, 2, 0)
    if task == "detection":
        truth = np.array([[0, 0, 4, 4, 1], [-1] * 5], np.float32)
        clean = np.array([[0, 0, 4, 4, 0.9, 1], [2, 2, 6, 6, 0.3, 2], [-1] * 6], np.float32)
        attacked = np.array([[0, 0, 4, 4, 0.9, 2], [-1] * 6], np.float32)
    if task == "multilabel":
        truth = np.array([0, 1, 0], np.float32)
        clean, attacked = np.array([[0.1, 0.9, 0.2], [0.1, 0.2, 0.8]], np.float32)
    one = Picture(seed, 0.2, image, np.clip(image + 0.03, 0, 1), flow, truth, clean, attacked)
    return dataclasses.replace(one, **changes)


def pictures(task: str, count: int = 1) -> dict[str, list[Picture]]:
    return {
        "pgd": [picture(task, seed=n) for n in range(count)],
        "flow-pgd": [picture(task, moves=True, seed=n) for n in range(count)],
    }


def draw(records: GradedRecords, shown: dict[str, list[Picture]], folder: Path) -> Path | None:
    return draw_predictions(dataclasses.replace(records, pictures=shown), folder)


def pixels(figure: Figure) -> np.ndarray:
    """What a figure looks like, (H,W,3) in [0,1]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def large_panel(side: int = SIDE, scale: int = 40) -> Axes:
    """A panel that shows each pixel of an image as scale x scale dots, and nothing else."""
    figure = Figure(figsize=(side * scale / 100, side * scale / 100), dpi=100)
    return figure.add_axes((0, 0, 1, 1))


@pytest.mark.parametrize(
    ("task", "titles"),
    [
        ("segmentation", ["mean IoU 100%", "mean IoU"]),
        ("detection", ["F1 100%", "F1 0%"]),
        ("multilabel", []),
    ],
)
def test_a_row_is_before_after_and_the_change(
    tmp_path: Path, drawn: list[Figure], task: str, titles: list[str]
) -> None:
    path = draw(graded(task), pictures(task), tmp_path)
    assert path == tmp_path / "examples.png"
    assert np.ptp(imread(path)[..., :3]) > 0.9
    assert_nothing_is_cut(drawn[0])
    rows = np.reshape(np.array(drawn[0].axes, object), (2, 6 if titles else 4))
    every = [p for own in pictures(task).values() for p in own]
    for row, one in zip(rows, every, strict=True):
        attacked = row[3 if titles else 1]
        np.testing.assert_array_equal(row[0].images[0].get_array(), one.image[0])
        np.testing.assert_array_equal(attacked.images[0].get_array(), one.adversarial[0])
        assert not row[0].patches
        assert not attacked.patches
        assert row[0].get_title() == "image"
        name = "flow-pgd" if one.flow.size else "pgd"
        assert attacked.get_title() == f"attacked by {name}\nlarge"
        change = row[-1 if titles else 2].get_title()
        assert change.startswith("flow" if one.flow.size else "difference")
        if titles:
            assert row[1].get_title() == "labels"
            assert titles[0] in row[2].get_title()
            assert titles[1] in row[4].get_title()
    for row in rows:
        boxes = [panel.title.get_window_extent() for panel in row]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_the_score_is_that_of_the_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    """All cats that count are taken for dogs: of background, cat and dog, one is right."""
    draw(graded("segmentation"), pictures("segmentation", 1), tmp_path)
    assert "mean IoU 33%" in drawn[0].axes[4].get_title()


def test_labels_that_moved_are_what_counts(tmp_path: Path, drawn: list[Figure]) -> None:
    """The flow reads one pixel further right and down, so that what was seen goes left and up."""
    one = picture("segmentation", moves=True)
    mask = np.where(one.truth == VOID, 0, one.truth)
    moved = np.pad(mask[1:, 1:], ((0, 1), (0, 1)))
    shown = {"flow-pgd": [dataclasses.replace(one, truth=mask, clean=mask, attacked=moved)]}
    told = []
    for labels_move in (False, True):
        records = graded("segmentation", attacks=("flow-pgd",), labels_move=labels_move)
        draw(records, shown, tmp_path)
        told.append(drawn[-1].axes[4].get_title())
    assert "mean IoU 100%" not in told[0]
    assert "mean IoU 100%" in told[1]


def test_a_mask_covers_its_pixels_and_leaves_the_background() -> None:
    panel = large_panel()
    image = np.full((1, SIDE, SIDE), 0.2, np.float32)
    mask = np.zeros((SIDE, SIDE), np.int64)
    mask[2, 5], mask[6, 1] = 1, VOID
    classes = coloured(NAMES, Counter())
    show_mask(panel, image, mask, classes, VOID)
    seen = pixels(panel.figure)[20::40, 20::40]  # type: ignore[arg-type]
    blended = (1 - COVER) * 0.2 + COVER * np.array(classes.colour(1))
    np.testing.assert_allclose(seen[2, 5], blended, atol=0.01)
    np.testing.assert_allclose(seen[6, 1], to_rgb(NOT_COUNTED), atol=0.01)
    untouched = (mask == 0)[..., None]
    np.testing.assert_allclose(np.where(untouched, seen, 0.2), 0.2, atol=0.01)


@pytest.mark.parametrize("score", [None, 0.9])
def test_a_box_surrounds_its_pixels(score: float | None) -> None:
    """The box 3, 2, 6, 7 holds columns 3 to 5 and rows 2 to 6, and its line is on their edge."""
    panel = large_panel()
    box = [3, 2, 6, 7, *([] if score is None else [score]), 1]
    classes = coloured(NAMES, Counter())
    show_boxes(panel, np.zeros((1, SIDE, SIDE), np.float32), np.array([box]), classes)
    (word,) = panel.texts
    assert word.get_text() == ("cat" if score is None else "cat 90%")
    word.set_visible(False)
    seen = pixels(panel.figure)  # type: ignore[arg-type]
    lit = np.abs(seen - classes.colour(1)).max(-1) < 0.05
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    np.testing.assert_allclose([rows[0], rows[-1]], [80, 280], atol=2)
    np.testing.assert_allclose([columns[0], columns[-1]], [120, 240], atol=2)
    assert not seen[90:270, 130:230].any()


def test_boxes_that_are_unsure_or_padding_are_not_drawn() -> None:
    boxes = np.array(
        [[0, 0, 1, 1, 0.6, 1], [0, 0, 1, 1, 0.4, 1], [-1] * 6, [0, 0, 2, 2, 0.9, 2]], np.float32
    )
    assert drawn_boxes(boxes)[:, 4] == pytest.approx([0.9, 0.6])
    labels = np.array([[0, 0, 1, 1, 0], [-1] * 5, [0, 0, 1, 1, -3]], np.float32)
    assert drawn_boxes(labels)[:, 4].tolist() == [0, -3]
    panel = large_panel()
    show_boxes(panel, np.zeros((1, 8, 8), np.float32), labels, coloured(NAMES[1:], Counter()))
    styles = [p.get_linestyle() for p in panel.patches if isinstance(p, Rectangle)]
    assert len({str(style) for style in styles}) == 2
    assert [text.get_text() for text in panel.texts] == ["cat"]  # what is ignored has no name


def test_many_boxes_are_not_named() -> None:
    panel = large_panel()
    boxes = np.array([[n, n, n + 2, n + 2, 1] for n in range(9)], np.float32)
    show_boxes(panel, np.zeros((1, 16, 16), np.float32), boxes, coloured(NAMES, Counter()))
    assert len(panel.patches) == 9
    assert not panel.texts


def test_names_of_boxes_stay_in_the_image() -> None:
    panel = large_panel(32, 12)
    corners = [(0, 0), (26, 0), (0, 26), (26, 26)]
    boxes = np.array([[x, y, x + 6, y + 6, 0.5, 0] for x, y in corners], np.float32)
    show_boxes(panel, np.zeros((1, 32, 32), np.float32), boxes, Classes(("a long name",), {}))
    panel.figure.draw_without_rendering()  # type: ignore[union-attr]
    inside = panel.get_window_extent()
    for text in panel.texts:
        extent = text.get_window_extent()
        assert inside.x0 <= extent.x0
        assert extent.x1 <= inside.x1
        assert inside.y0 <= extent.y0
        assert extent.y1 <= inside.y1


def test_words_show_what_holds_and_what_changed() -> None:
    truth = np.zeros(20)
    truth[7] = 1
    before, after = np.full(20, 0.1), np.full(20, 0.1)
    after[[3, 12]] = 0.9, 0.5
    assert shown_bars(truth, before, after)[:3] == [7, 3, 12]
    assert len(shown_bars(truth, before, after)) == 6


def test_the_legend_names_what_is_seen(tmp_path: Path, drawn: list[Figure]) -> None:
    def named(figure: Figure) -> list[str]:
        return [text.get_text() for text in figure.legends[0].get_texts()]

    shown = {"pgd": pictures("segmentation", 1)["pgd"]}
    draw(graded("segmentation", (*NAMES, "cow")), shown, tmp_path)
    assert named(drawn[0]) == ["cat", "dog", "not counted"]
    many = tuple(f"a rather long name of class {n}" for n in range(150))
    one = picture("segmentation")
    busy = dataclasses.replace(one, attacked=np.arange(64).reshape(8, 8) + 60)
    records = dataclasses.replace(graded("segmentation", many), model=LONG * 2)
    draw(records, {"pgd": [busy]}, tmp_path)
    assert_nothing_is_cut(drawn[1])
    assert len(named(drawn[1])) == len(PALETTE) + 2
    assert named(drawn[1])[-2:] == ["other classes", "not counted"]


@pytest.mark.parametrize(("height", "width", "columns"), [(8, 16, 3), (8, 8, 6), (24, 8, 6)])
def test_wide_and_tall_images_have_room(
    tmp_path: Path, drawn: list[Figure], height: int, width: int, columns: int
) -> None:
    mask = np.ones((height, width), np.int64)
    image = np.zeros((3, height, width), np.float32)
    one = Picture(0, 0.2, image, image, NONE, mask, mask, mask)
    draw(graded("segmentation"), {"pgd": [one] * 2}, tmp_path)
    assert_nothing_is_cut(drawn[0])
    assert len(drawn[0].axes) == 12
    grid = drawn[0].axes[0].get_subplotspec().get_gridspec()  # type: ignore[union-attr]
    assert grid.ncols == columns
    drawn[0].draw_without_rendering()
    shown = [panel.get_window_extent() for panel in drawn[0].axes]
    assert min(box.width for box in shown) > 0.5 * drawn[0].bbox.width / columns
    for above, below in itertools.pairwise(range(0, 12, columns)):
        bottom = min(box.y0 for box in shown[above : above + columns])
        titles = [p.title.get_window_extent().y1 for p in drawn[0].axes[below : below + columns]]
        assert max(titles) < bottom


def test_attacks_share_the_rows(
    tmp_path: Path, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, rows in ((5, 4), (1, 2)):
        monkeypatch.setattr(f"{draw_predictions.__module__}.MOST_ROWS", most)
        draw(graded("detection"), pictures("detection", 3), tmp_path)
        assert len(drawn[-1].axes) == 6 * rows
        titles = [panel.get_title() for panel in drawn[-1].axes[3::6]]
        assert ["flow" in title for title in titles] == [False] * (rows // 2) + [True] * (rows // 2)
    assert draw(graded("detection"), {"pgd": []}, tmp_path / "no") is None
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("task", ["segmentation", "detection", "multilabel"])
def test_pictures_come_back_and_give_the_same_figure(tmp_path: Path, task: str) -> None:
    records = dataclasses.replace(graded(task), pictures=pictures(task))
    write(records, tmp_path / "a")
    first = draw_predictions(records, tmp_path / "a")
    second = draw_predictions(read(tmp_path / "a"), tmp_path / "b")
    assert first is not None
    assert second is not None
    assert first.read_bytes() == second.read_bytes()


def test_classes_stay_apart_without_full_colour_vision() -> None:
    """CIELAB distances as seen without one kind of cone, by Machado et al. 2009."""
    hues = np.array([to_rgb(colour) for colour in (*PALETTE, NOT_COUNTED)])
    linear = np.where(hues <= 0.04045, hues / 12.92, ((hues + 0.055) / 1.055) ** 2.4)
    seen = [np.eye(3), *(np.reshape(m, (3, 3)) for m in MACHADO)]
    for matrix in seen:
        lab = _lab(np.clip(linear @ matrix.T, 0, 1))
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(len(lab), 1)]
        assert apart.min() > 12
    assert {readable_on(to_rgb(c)) for c in PALETTE} == {"black", "white"}


MACHADO = (
    *(
        (
            0.152286,
            1.052583,
            -0.204868,
            0.114503,
            0.786281,
            0.099216,
            -0.003882,
            -0.048116,
            1.051998,
        ),
    ),
    *(
        (
            0.367322,
            0.860646,
            -0.227968,
            0.280085,
            0.672501,
            0.047413,
            -0.011820,
            0.042940,
            0.968881,
        ),
    ),
    *(
        (
            1.255528,
            -0.076749,
            -0.178779,
            -0.078411,
            0.930809,
            0.147602,
            0.004733,
            0.691367,
            0.303900,
        ),
    ),
)
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.072175],
        [0.0193339, 0.119192, 0.9503041],
    ]
)


def _lab(linear: np.ndarray) -> np.ndarray:
    share = linear @ XYZ.T / XYZ.sum(1)
    x, y, z = np.where(
        share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29
    ).T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -1)
