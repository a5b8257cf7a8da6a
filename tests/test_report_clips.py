"""Pictures of clips show the frames that were recorded, before and after, and what changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from matplotlib.text import Annotation
from PIL import Image, ImageDraw
from test_records import FLOW, LINF, PROVENANCE, example, synthetic
from test_report import assert_nothing_is_cut, drawn
from test_report_deformations import frames

from robustbench_gpm.records import Example, Records
from robustbench_gpm.report import (
    draw_animation,
    draw_clip_animation,
    draw_clips,
    draw_deformations,
    draw_examples,
)
from robustbench_gpm.report.clips import frames_shown

__all__ = ["drawn"]  # the fixture
T, SIDE = 5, 8


def clip(attack: str = "stadv", channels: int = 1, *, own: bool = True, seed: int = 0) -> Example:
    """An example of T frames; of a deformation each frame's flow, or one of them all."""
    budget = LINF[3] if attack == "pgd" else FLOW[4]
    one = example(attack, budget, T * channels, SIDE, seed)
    if one.flow is None:
        return one
    shape = (2 * T if own else 2, SIDE, SIDE)
    flow = np.random.default_rng(seed).uniform(-0.8, 0.8, shape).astype(np.float32)
    return dataclasses.replace(one, flow=flow)


def records(*examples: Example) -> Records:
    provenance = {**PROVENANCE, "frames": T}
    return dataclasses.replace(synthetic(), examples=examples, provenance=provenance)


@pytest.mark.parametrize("draw", [draw_clips, draw_clip_animation])
def test_images_are_no_clips(tmp_path: Path, draw: Any) -> None:
    assert draw(synthetic(), tmp_path) is None
    assert draw(records(), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "places"),
    [(2, [0, 1]), (6, [0, 1, 2, 3, 4, 5]), (8, [0, 1, 3, 4, 6, 7]), (16, [0, 3, 6, 9, 12, 15])],
)
def test_frames_are_evenly_apart(count: int, places: list[int]) -> None:
    assert frames_shown(count) == places


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strip_has_every_frame_before_and_after(
    tmp_path: Path, drawn: list[Figure], channels: int
) -> None:
    one = clip("pgd", channels)
    assert draw_clips(records(one), tmp_path) == tmp_path / "clips.png"
    assert_nothing_is_cut(drawn[0])
    rows = np.reshape(np.array(drawn[0].axes, object), (3, T))
    change = one.adversarial - one.clean
    for row, clip_shown in zip(rows, (one.clean, one.adversarial, None), strict=True):
        for time, panel in enumerate(row):
            seen = np.asarray(panel.images[0].get_array())
            if clip_shown is not None:
                frame = clip_shown[time * channels : (time + 1) * channels]
                np.testing.assert_array_equal(seen, frame[0] if channels == 1 else _last(frame))
            elif channels == 1:
                np.testing.assert_array_equal(seen, change[time])
                assert panel.images[0].get_clim()[1] == pytest.approx(np.abs(change).max())
    assert [panel.get_xlabel() for panel in rows[2]] == [f"frame {n}" for n in range(1, T + 1)]
    widths = [panel.get_window_extent().width for panel in rows.ravel()]
    assert np.ptp(widths) < 0.02 * widths[0]


def _last(frame: np.ndarray) -> np.ndarray:
    return frame.transpose(1, 2, 0)


def test_each_row_says_what_it_is(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_clips(records(clip()), tmp_path)
    heads = drawn[0].findobj(Annotation)
    told = [(head.get_text(), head.get_color()) for head in heads]
    assert told[0] == ("clean: three; predicted three, 98%", "black")
    assert told[1] == ("stadv, 0.8 px; predicted five, 61%", "#D55E00")
    assert told[2][0].startswith("flow, arrows ")
    assert "the same" not in told[2][0]


@pytest.mark.parametrize("own", [True, False])
def test_a_frame_has_its_own_flow(tmp_path: Path, drawn: list[Figure], own: bool) -> None:
    one = clip(own=own)
    assert one.flow is not None
    draw_clips(records(one), tmp_path)
    rows = np.reshape(np.array(drawn[0].axes, object), (3, T))
    for time, panel in enumerate(rows[2]):
        (arrows,) = (a for a in panel.collections if isinstance(a, Quiver))
        flow = one.flow[2 * time :][:2] if own else one.flow
        np.testing.assert_array_equal(arrows.U, flow[0].ravel())
        np.testing.assert_array_equal(arrows.V, flow[1].ravel())
    assert len({arrows.scale for p in rows[2] for arrows in p.collections}) == 1
    said = [head.get_text() for head in drawn[0].findobj(Annotation)][2]
    assert ("the same in every frame" in said) != own


def test_other_pictures_show_the_frame_in_the_middle(tmp_path: Path, drawn: list[Figure]) -> None:
    one = clip()
    assert one.flow is not None
    draw_examples(records(one), tmp_path)
    draw_deformations(records(one), tmp_path)
    assert draw_animation(records(one), tmp_path) is not None
    for figure, place in zip(drawn, (1, 3), strict=True):
        clean, after = figure.axes[0], figure.axes[place]
        np.testing.assert_array_equal(clean.images[0].get_array(), one.clean[T // 2])
        np.testing.assert_array_equal(after.images[0].get_array(), one.adversarial[T // 2])
    lengths = drawn[1].axes[2].images[0].get_array()
    np.testing.assert_allclose(lengths, np.hypot(one.flow[4], one.flow[5]), rtol=1e-6)


@pytest.mark.parametrize(("count", "columns", "lines"), [(1, 1, 1), (3, 2, 2), (6, 2, 2)])
def test_the_animation_plays_clean_beside_attacked(
    tmp_path: Path, count: int, columns: int, lines: int
) -> None:
    examples = [clip(seed=n) for n in range(count)]
    path = draw_clip_animation(records(*examples), tmp_path, 4)
    assert path == tmp_path / "clips.gif"
    with Image.open(path) as film:
        assert film.n_frames == T
        assert film.info["loop"] == 0
    seen = frames(path)
    pair = 2 * 192 + 3 * 8
    assert seen[0].shape[1] == columns * pair + (columns + 1) * 8
    top = 8 + 8 + 2 * 18 + 4  # the margins and two lines of text
    assert seen[0].shape[0] == lines * (top + 192 + 20 + 8 + 8)
    for time, picture in enumerate(seen):
        for n, own in enumerate(examples[: columns * (lines == 1) or 2]):
            for place, whole in enumerate((own.clean, own.adversarial)):
                left = 16 + n * (pair + 8) + place * 200
                there = picture[top + 12 : top + 192 : 24, left + 12 : left + 192 : 24, 0]
                np.testing.assert_allclose(there, 255 * whole[time], atol=0.51)


def test_the_animation_says_both_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    honest = ImageDraw.ImageDraw.text

    def text(self: Any, place: Any, words: str, *args: Any, **kwargs: Any) -> None:
        written.append(words)
        honest(self, place, words, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw_clip_animation(records(clip()), tmp_path)
    assert written[:6] == [
        *("clean: three", "predicted three, 98%", "frame 1 of 5"),
        *("stadv, 0.8 px", "predicted five, 61%", "frame 1 of 5"),
    ]


def test_the_same_clips_give_the_same_bytes(tmp_path: Path) -> None:
    for draw in (draw_clips, draw_clip_animation):
        first, second = (draw(records(clip(channels=3)), tmp_path / name) for name in "ab")
        assert first is not None
        assert second is not None
        assert first.read_bytes() == second.read_bytes()
