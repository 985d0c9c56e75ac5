from __future__ import annotations

from io import BytesIO

from PIL import Image

from skelpipe.protocols.detection_metrics import Segment
from skelpipe.protocols.detection_segments import pack_segments
from skelpipe.report.bars import bars_figure, typical_recording


def test_bars_lie_where_segments_do() -> None:
    truths = [Segment("v", 1, 5, 20), Segment("v", 2, 30, 90)]
    predicted = [Segment("v", 2, 28, 80, 0.5)]
    figure = bars_figure(truths, predicted, ["$a$", "b"], frames=100, title="v")
    (axes,) = figure.axes
    drawn = [(bar.get_y() + 0.4, bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert drawn == [(1.0, 5, 15), (1.0, 30, 60), (0.0, 28, 52)]
    shades = [bar.get_facecolor() for bar in axes.patches]
    assert shades[1][:3] == shades[2][:3] != shades[0][:3]
    assert shades[2][3] < shades[1][3] == 1  # the less confident, the paler
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [r"\$a\$", "b"]
    assert axes.get_xlim() == (0, 100)


def test_the_recording_of_the_median_is_drawn_as_a_png() -> None:
    precisions = {"w": 9, "v": 5, "u": 1}
    record = {
        "recordings": [{"key": key, "frames": 50, "ap": ap} for key, ap in precisions.items()],
        "classes": [f"class {number}" for number in range(20)],
    }
    truths = [Segment("v", number + 1, 2 * number, 2 * number + 2) for number in range(20)]
    drawn = typical_recording(record, pack_segments([], truths))
    assert drawn == typical_recording(record, pack_segments([], [*truths, Segment("w", 1, 0, 9)]))
    assert drawn != typical_recording(record, pack_segments([], truths[1:]))
    with Image.open(BytesIO(drawn)) as image:
        assert image.format == "PNG"
        assert image.width > 1000
