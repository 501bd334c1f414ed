"""What can be seen in the pictures: by their pixels, and by where the axes end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from vlm_lora_plugin.data.statistics import DataSurvey
from vlm_lora_plugin.data.survey import RowFacts
from vlm_lora_plugin.reporting import data_report
from vlm_lora_plugin.reporting.curves import draw_curves, finish, from_zero, new_figure, overlapping, save, set_title
from vlm_lora_plugin.reporting.loss_picture import draw_loss
from vlm_lora_plugin.reporting.run_pictures import draw_memory, draw_rates

FRAME = 0.02  # share of the height within which a curve would be taken for the frame


def pixels(figure, axes=None):
    """The picture as it is seen; of one panel, what lies inside its frame."""
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    if axes is None:
        return image
    box = axes.get_window_extent()
    height = image.shape[0]
    return image[int(height - box.y1) + 2 : int(height - box.y0) - 2, int(box.x0) + 2 : int(box.x1) - 2]


def seen(image, colour, tolerance=30):
    """How many pixels have a colour."""
    wanted = np.array(to_rgb(colour)) * 255
    return int((np.abs(image.astype(int) - wanted).max(axis=-1) <= tolerance).sum())


def panel(curves, styles=None):
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    draw_curves(axes, curves, styles)
    from_zero(axes)
    finish(axes, "value")
    return figure, axes


def assert_every_curve_shows(figure, axes):
    image = pixels(figure, axes)
    for line in axes.lines:
        assert seen(image, line.get_color()) > 15, line.get_label()


values = st.floats(min_value=0, max_value=1e4, allow_nan=False).map(lambda value: round(value, 6))
flat = st.tuples(values, st.floats(0, 1e-3)).map(lambda pair: lambda step: pair[0] * (1 + pair[1] * (step % 2)))


@settings(max_examples=6)
@given(
    forms=st.lists(flat, min_size=1, max_size=4),
    doubled=st.booleans(),
    first=st.integers(1, 1000),
    count=st.integers(1, 60),
)
@example(forms=[lambda step: 0.0], doubled=True, first=1, count=3)
@example(forms=[lambda step: 2.302, lambda step: 2.3021], doubled=False, first=1, count=2)
def test_flat_and_equal_curves_show_and_steps_are_whole(forms, doubled, first, count):
    forms = forms + forms[:1] * doubled
    points = {str(n): [(step, form(step)) for step in range(first, first + count)] for n, form in enumerate(forms)}
    figure, axes = panel(points)
    assert_every_curve_shows(figure, axes)
    bottom, top = axes.get_ylim()
    for line in axes.lines:
        for value in line.get_ydata():
            assert FRAME < (value - bottom) / (top - bottom) < 1 - FRAME
    left, right = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)


def test_curves_that_meet_for_a_part_of_their_way_both_show_there():
    warming = [(step, step * 1e-5) for step in range(1, 41)]
    other = [(step, min(step, 20) * 1e-5) for step in range(1, 41)]
    apart = [(step, 1e-3) for step in range(1, 41)]
    assert sorted(overlapping({"a": warming, "b": other, "c": apart})) == [["a", "b"], ["c"]]
    figure, axes = panel({"a": warming, "b": other})
    assert_every_curve_shows(figure, axes)


def test_crossing_curves_stay_solid():
    up, down = [(step, float(step)) for step in range(10)], [(step, 9.0 - step) for step in range(10)]
    _, axes = panel({"up": up, "down": down})
    assert {line.get_linestyle() for line in axes.lines} == {"-"}


def test_names_are_shown_as_they_are_written(tmp_path):
    figure = new_figure(4, 3)
    axes = figure.add_subplot()
    draw_curves(axes, {"_mine": [(1, 1.0)], "$a_{": [(1, 2.0)]})
    set_title(axes, "a $b_{ folder 模型")
    finish(axes, "y")
    save(figure, tmp_path / "p.png")  # neither refused as a formula nor warned about
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == ["_mine", "$a_{"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, instead of files."""
    found = []
    for module in ("loss_picture", "run_pictures", "data_report"):
        monkeypatch.setattr(f"vlm_lora_plugin.reporting.{module}.save", lambda figure, picture: found.append(figure))
    return found


def log(steps, **values):
    return [{"step": step, **values} for step in range(1, steps + 1)]


def test_the_loss_of_a_run_that_learns_nothing_shows(drawn):
    draw_loss([*log(3, loss=2.3026), {"step": 3, "eval_loss": 2.3026}], Path("x.png"), title="t")
    (axes,) = drawn[0].axes
    assert_every_curve_shows(drawn[0], axes)


def test_equal_rates_both_show(drawn):
    draw_rates(log(3, learning_rate={"vision.lora": 1e-4, "language.lora": 1e-4}), Path("x.png"), title="t")
    learning, speed = drawn[0].axes
    assert len(learning.lines) == 2
    assert_every_curve_shows(drawn[0], learning)
    assert not speed.lines


def test_rates_of_zero_show(drawn):
    draw_rates(log(2, learning_rate={"vision.lora": 0.0}, tokens_per_second=9.0), Path("x.png"), title="t")
    for axes in drawn[0].axes:
        assert_every_curve_shows(drawn[0], axes)


def test_memory_that_does_not_change_shows(drawn):
    lines = log(5, host_memory_peak_gib=0.45, host_memory_gib=0.45)
    lines[-1]["host_memory_peak_gib"] = 0.4501
    draw_memory(lines, Path("x.png"), title="t")
    (axes,) = drawn[0].axes
    assert len(axes.lines) == 2
    assert_every_curve_shows(drawn[0], axes)


def checked(tokens, sizes=(), max_length=2048):
    rows = [RowFacts(f"d:{i}", n, n // 2, False, tuple(sizes)) for i, n in enumerate(tokens)]
    return SimpleNamespace(survey=DataSurvey().add(rows), max_length=max_length, data=Path("$d_{.jsonl"))


@settings(max_examples=6)
@given(low=st.integers(1, 3000), spread=st.integers(0, 3000), count=st.integers(1, 50))
@example(low=20, spread=9, count=12)
def test_the_histogram_of_tokens_fills_its_panel(low, spread, count):
    tokens = [low + (spread * i) // max(count - 1, 1) for i in range(count)]
    figure = figure_of(checked(tokens))
    axes = figure.axes[0]
    left, right = axes.get_xlim()
    assert right - left <= 1.6 * (max(tokens) - min(tokens) + 1) + 2
    assert sum(bar.get_height() for bar in axes.patches) == count
    assert all(bar.get_width() >= 0.99 for bar in axes.patches)
    assert seen(pixels(figure, axes), data_report.COLOUR) > 300


def figure_of(report):
    found = []
    before, data_report.save = data_report.save, lambda figure, picture: found.append(figure)
    try:
        data_report.draw_report(report, Path("x.png"))
    finally:
        data_report.save = before
    return found[0]


def test_the_limit_is_drawn_where_it_lies_in_the_picture_and_named_elsewhere():
    near, far = figure_of(checked([90, 100, 95], max_length=100)), figure_of(checked([20, 25]))
    assert "outside" not in near.axes[0].get_legend().get_texts()[0].get_text()
    assert far.axes[0].get_legend().get_texts()[0].get_text() == "data.max_length 2,048, outside"
    assert seen(pixels(near, near.axes[0]), "#c0392b", 60) > 100


def test_a_panel_of_nothing_says_so():
    figure = figure_of(checked([20, 25]))
    assert [text.get_text() for text in figure.axes[2].texts] == ["none"]


def test_pictures_are_written(tmp_path):
    draw_loss(log(3, loss=1.0), tmp_path / "loss.png", title="模型 $x_{")
    data_report.draw_report(checked([20, 25], [(30, 20)]), tmp_path / "data.png")
    for name, size in (("loss", (960, 540)), ("data", (1440, 432))):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == size
