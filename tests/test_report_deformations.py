"""Pictures of deformations show the flow that was recorded: where to, how far, and to what."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.quiver import Quiver
from PIL import Image, ImageDraw
from test_records import FLOW, LINF, example, synthetic
from test_report import LONG, assert_nothing_is_cut, drawn

from robustbench_gpm.deformation import warp
from robustbench_gpm.records import Example, Records
from robustbench_gpm.report import draw_animation, draw_deformations
from robustbench_gpm.report.animation import between

__all__ = ["drawn"]  # the fixture
Draw = Callable[[Records, Path], Path | None]
BOTH = pytest.mark.parametrize("draw", [draw_deformations, draw_animation])
VERMILION, BLACK = "#D55E00", "black"


def deformed(channels: int = 1, size: int = 8, seed: int = 0) -> Example:
    """An example whose image is the clean one warped by its flow, as an attack leaves it."""
    one = example("stadv", FLOW[4], channels, size, seed)
    assert one.flow is not None
    moved = warp(torch.from_numpy(one.clean)[None], torch.from_numpy(one.flow)[None])[0]
    return dataclasses.replace(one, adversarial=moved.clamp(0, 1).numpy())


def records(*examples: Example, **changes: Any) -> Records:
    return dataclasses.replace(synthetic(), examples=examples, **changes)


def frames(path: Path) -> list[np.ndarray]:
    """The pictures of an animation (H,W,3), 0 to 255."""
    with Image.open(path) as film:
        seen = []
        for number in range(film.n_frames):
            film.seek(number)
            seen.append(np.asarray(film.convert("RGB"), np.int64))
        return seen


@BOTH
def test_without_a_flow_there_is_no_file(tmp_path: Path, draw: Draw) -> None:
    still = example("pgd", LINF[3])
    for examples in ((), (still,)):
        assert draw(records(*examples), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_the_same_records_give_the_same_bytes(tmp_path: Path, draw: Draw) -> None:
    shown = records(deformed(3, 16), deformed(3, 16, seed=1))
    first, second = draw(shown, tmp_path / "a"), draw(shown, tmp_path / "b")
    assert first is not None
    assert second is not None
    assert first.read_bytes() == second.read_bytes()
    other = draw(records(deformed(3, 16, seed=2)), tmp_path / "c")
    assert other is not None
    assert first.read_bytes() != other.read_bytes()


@BOTH
def test_a_failing_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Draw
) -> None:
    path = draw(records(deformed()), tmp_path)
    assert path is not None
    before = path.read_bytes()

    def full_disk(self: object, target: Path, **kwargs: Any) -> None:
        Path(target).write_bytes(b"half a picture")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        draw(records(deformed(seed=1)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_row_is_the_image_its_flow_and_the_outcome(tmp_path: Path, drawn: list[Figure]) -> None:
    one = deformed()
    assert one.flow is not None
    path = draw_deformations(records(example("pgd", LINF[3]), one), tmp_path)
    assert path == tmp_path / "deformations.png"
    assert imread(path).shape[1] == 1800
    clean, arrows, lengths, after, change = drawn[0].axes  # the attack without a flow has no row
    np.testing.assert_array_equal(clean.images[0].get_array(), one.clean[0])
    np.testing.assert_array_equal(after.images[0].get_array(), one.adversarial[0])
    difference = (one.adversarial - one.clean)[0]
    np.testing.assert_array_equal(change.images[0].get_array(), difference)
    assert any(isinstance(artist, Quiver) for artist in arrows.collections)

    (heat,) = lengths.images
    expected = np.hypot(one.flow[0], one.flow[1])
    np.testing.assert_allclose(heat.get_array(), expected, rtol=1e-6)
    assert heat.get_clim() == pytest.approx((0, expected.max()))
    assert heat.get_cmap().name == "cividis"
    assert f"longest: {expected.max():.3g} px" in lengths.get_title()
    (bar,) = lengths.child_axes
    assert bar.get_ylabel() == "px"
    assert bar.get_ylim() == pytest.approx((0, expected.max()))


def test_arrows_go_where_the_pixels_come_from(tmp_path: Path, drawn: list[Figure]) -> None:
    """Right is right and down is down on the page, and that is where the warp reads."""
    flow = np.zeros((2, 8, 8), np.float32)
    flow[0, 2, 3], flow[1, 5, 6] = 1, 1  # (row 2, column 3) to the right, (row 5, column 6) down
    one = dataclasses.replace(deformed(), flow=flow)
    draw_deformations(records(one), tmp_path)
    panel = drawn[0].axes[1]
    (arrows,) = (artist for artist in panel.collections if isinstance(artist, Quiver))
    assert (arrows.angles, arrows.scale_units, arrows.pivot) == ("xy", "xy", "tail")
    found = {}
    for x, y, right, down in zip(arrows.X, arrows.Y, arrows.U, arrows.V, strict=True):
        if right or down:
            tail, head = panel.transData.transform([(x, y), (x + right, y + down)])
            found[int(y), int(x)] = np.sign(np.round(head - tail)).tolist()
    assert found == {(2, 3): [1, 0], (5, 6): [0, -1]}  # pixels of the page count upwards
    image = between(one, np.ones(1), "border")
    np.testing.assert_allclose(image[0], one.adversarial, atol=1e-6)
    moved = warp(torch.from_numpy(one.clean)[None], torch.from_numpy(flow)[None])[0].numpy()
    assert moved[0, 2, 3] == one.clean[0, 2, 4]
    assert moved[0, 5, 6] == one.clean[0, 6, 6]


def test_titles_say_class_verdict_confidence_and_budget(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    harmless = dataclasses.replace(deformed(seed=1), prediction=3, confidence=0.9)
    lost = dataclasses.replace(deformed(seed=2), clean_prediction=7, clean_confidence=0.4)
    draw_deformations(records(deformed(), harmless, lost), tmp_path)
    titles = [(p.get_title(), p.title.get_color()) for p in drawn[0].axes]
    assert titles[0] == ("clean: three\nright: three, 98%", BLACK)
    assert titles[3] == ("stadv, 0.8 px\nwrong: five, 61%", VERMILION)
    assert titles[8] == ("stadv, 0.8 px\nright: three, 90%", BLACK)
    assert titles[10] == ("clean: three\nwrong: seven, 40%", VERMILION)


def joined(name: str, channels: int = 3) -> Records:
    """Records of one attack with that name, and two examples of it."""
    base = synthetic(LONG * 2, ("stadv",), channels=channels)
    attack = dataclasses.replace(base.attacks[0], name=name)
    moved = tuple(dataclasses.replace(deformed(channels, 12, i), attack=name) for i in (0, 1))
    ferret = ("black-footed ferret, polecat, Mustela nigripes",) * 10
    return dataclasses.replace(base, attacks=(attack,), examples=moved, classes=ferret)


@pytest.mark.parametrize("name", ["stadv", "composed:flow-pgd@0.4+pgd-l2@0.5+another@8/255"])
def test_nothing_is_cut_and_no_title_meets_the_next(
    tmp_path: Path, drawn: list[Figure], name: str
) -> None:
    draw_deformations(joined(name), tmp_path)
    assert_nothing_is_cut(drawn[0])
    rows = np.reshape(drawn[0].axes, (-1, 5))
    for row in rows:
        boxes = [panel.title.get_window_extent() for panel in row]
        for left, right in itertools.pairwise(boxes):
            assert left.x1 < right.x0
        assert min(panel.title.get_fontsize() for panel in row) > 5
    for above, below in itertools.pairwise(rows):
        bottom = min(panel.get_window_extent().y0 for panel in above)
        assert max(panel.title.get_window_extent().y1 for panel in below) < bottom
    assert name in rows[0, 3].get_title().replace("\n", "")


@BOTH
def test_a_flow_of_nothing_is_drawn_too(tmp_path: Path, drawn: list[Figure], draw: Draw) -> None:
    calm = dataclasses.replace(deformed(), flow=np.zeros((2, 8, 8), np.float32))
    assert draw(records(calm), tmp_path) is not None
    if drawn:
        assert "nothing moved" in drawn[0].axes[2].get_title()


@pytest.mark.parametrize(("count", "size", "side"), [(1, 8, 192), (3, 32, 192), (6, 120, 240)])
def test_the_animation_has_its_frames_and_size(
    tmp_path: Path, count: int, size: int, side: int
) -> None:
    moved = (deformed(1, size, seed) for seed in range(count))
    path = draw_animation(records(*moved), tmp_path)
    assert path == tmp_path / "deformation.gif"
    with Image.open(path) as film:
        assert film.n_frames == 20
        assert film.info["loop"] == 0
        shown = min(count, 4)
        assert film.width == shown * (side + 8) + 8
        assert film.height > side + 4 * 18
        pauses = []
        for number in range(20):
            film.seek(number)
            pauses.append(film.info["duration"])
    assert pauses == [700, *[90] * 9, 700, *[90] * 9]


@pytest.mark.parametrize("channels", [1, 3])
def test_it_starts_clean_and_turns_at_the_deformed_image(tmp_path: Path, channels: int) -> None:
    one = deformed(channels)
    path = draw_animation(records(one), tmp_path, smooth=False)
    assert path is not None
    seen = frames(path)

    def read_back(frame: np.ndarray) -> np.ndarray:
        """The middle of each of the 8 x 8 squares of 24 x 24 dots, as an image (H,W,3)."""
        top = 8 + 3 * 18 + 4  # the margin and three lines of text
        return frame[top + 12 : top + 192 : 24, 8 + 12 : 8 + 192 : 24]

    for number, image in ((0, one.clean), (10, one.adversarial)):
        off = np.abs(read_back(seen[number]) - 255 * image.transpose(1, 2, 0))
        if channels == 1:
            assert off.max() <= 0.51  # greys are kept exactly
        else:
            assert off.mean() < 6  # colours are 256 for all frames
            assert off.max() < 40
    there, back = seen[1:10], seen[:10:-1]
    for a, b in zip(there, back, strict=True):
        np.testing.assert_array_equal(a, b)
    away = [np.abs(read_back(frame) - read_back(seen[0])).mean() for frame in seen[:11]]
    assert away[10] > 5
    assert away[2] < away[5] < away[10]


def test_on_the_way_the_flow_is_a_share_and_so_is_the_rest() -> None:
    """Two pixels to the right and 0.2 brighter are, halfway, one pixel and 0.1."""
    clean = deformed().clean * np.float32(0.5)
    flow = np.zeros((2, 8, 8), np.float32)
    flow[0] = 2

    def shifted(pixels: int) -> np.ndarray:
        columns = np.minimum(np.arange(8) + pixels, 7)  # beyond lies the edge's own pixel
        return clean[:, :, columns]

    one = dataclasses.replace(deformed(), clean=clean, flow=flow, adversarial=shifted(2) + 0.2)
    start, half, end = between(one, np.array([0.0, 0.5, 1.0]), "border")
    np.testing.assert_array_equal(start, clean)
    np.testing.assert_allclose(half, shifted(1) + 0.1, atol=1e-6)
    np.testing.assert_allclose(end, one.adversarial, atol=1e-6)


def test_what_lies_beyond_the_edge_is_chosen() -> None:
    flow = np.zeros((2, 8, 8), np.float32)
    flow[0] = 2
    clean = np.ones((1, 8, 8), np.float32)
    one = dataclasses.replace(deformed(), clean=clean, flow=flow, adversarial=clean)
    assert between(one, np.array([0.5]), "border").min() == 1
    black = between(one, np.array([0.5]), "zeros")[0, 0]
    np.testing.assert_allclose(black[:, :6], 1)  # neither has any rest there
    np.testing.assert_allclose(black[:, 6], 1, atol=1e-6)  # not yet beyond, half the rest, cut to 1
    np.testing.assert_allclose(black[:, 7], 0.5, atol=1e-6)  # beyond, and half the rest


def test_a_frame_says_how_far_the_pixels_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = np.zeros((2, 8, 8), np.float32)
    flow[:, 4, 4] = 3, -4
    written: list[str] = []
    honest = ImageDraw.ImageDraw.text

    def text(self: Any, place: Any, words: str, *args: Any, **kwargs: Any) -> None:
        written.append(words)
        honest(self, place, words, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw_animation(records(dataclasses.replace(deformed(), flow=flow)), tmp_path)
    told = [words for words in written if words.startswith("largest")]
    reached = [*np.arange(0, 4, 0.4), *np.arange(4, 0, -0.4)]
    assert told == [f"largest move: {pixels:.2f} px" for pixels in reached]
    assert written[:3] == ["stadv, 0.8 px", "right: three, 98%", "→ wrong: five, 61%"]


def test_several_attacks_share_the_animation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    from robustbench_gpm.report import animation

    honest = animation._tiles

    def tiles(one: Example, *args: Any, **kwargs: Any) -> Any:
        asked.append(one.attack)
        return honest(one, *args, **kwargs)

    monkeypatch.setattr(animation, "_tiles", tiles)
    base = synthetic(attacks=("pgd", "stadv", "fgr"))
    moved = [dataclasses.replace(deformed(seed=i), attack="stadv") for i in range(5)]
    moved += [dataclasses.replace(deformed(seed=i), attack="fgr") for i in range(5)]
    draw_animation(dataclasses.replace(base, examples=tuple(moved)), tmp_path)
    assert asked == ["stadv", "stadv", "fgr", "fgr"]
