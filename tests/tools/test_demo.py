"""The demo, with few records: it runs, its checks hold, and it says so."""

import re

import numpy as np

import xtree
from xtree.tools import demo
from xtree.tools.demo_writer import BATCH, batch
from xtree.tools.map_labels import label_boxes


def test_the_demo_runs_and_everything_agrees(tmp_path):
    said = []
    result = demo.run(tmp_path / "out", boxes=20_000, kills=1, say=lambda text="": said.append(text))
    text = "\n".join(said)
    assert result["ok"], text
    assert result["places"]["in_window"] > 5
    assert result["million"]["records"] == 20_000
    assert [one["lost"] for one in result["crash"]["rounds"]] == [0]
    assert "Vienna" in text
    assert "Everything agreed" in text
    assert (tmp_path / "out" / "map.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_second_run_into_the_same_directory_starts_afresh(tmp_path):
    for _ in range(2):
        result = demo.run(tmp_path, boxes=1_000, kills=1, say=lambda text="": None)
        assert result["ok"]


def test_the_check_after_a_kill_notices_a_lost_batch_and_a_half_one(tmp_path):
    with xtree.open(tmp_path / "lost", dims=2) as tree:
        for number in range(3):
            tree.insert_many(*batch(number))
    assert demo.inspect_crashed(tmp_path / "lost", 3)["exact"]
    assert demo.inspect_crashed(tmp_path / "lost", 2)["exact"]
    lost = demo.inspect_crashed(tmp_path / "lost", 5)
    assert (lost["lost"], lost["exact"]) == (2, False)
    with xtree.open(tmp_path / "lost") as tree:
        ids, boxes = batch(2)
        assert tree.delete(int(ids[0]), boxes[0])
        assert len(tree) == 3 * BATCH - 1
    assert not demo.inspect_crashed(tmp_path / "lost", 3)["exact"]


def test_the_picture_shows_every_city_of_the_window_and_is_well_formed(tmp_path):
    from xml.etree import ElementTree

    land, towns = xtree.data.countries(), xtree.data.cities()
    inside = demo.intersecting(towns.boxes, demo.WINDOW)
    demo.draw(tmp_path / "map.svg", land, towns, inside)
    text = (tmp_path / "map.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert len(re.findall("<circle", text)) == len(towns.ids) + len(inside)
    assert all(towns.names[i] in text for i in inside.tolist())


def test_the_picture_has_coastlines_and_no_label_on_another(tmp_path):
    land, towns = xtree.data.countries(), xtree.data.cities()
    inside = demo.intersecting(towns.boxes, demo.WINDOW)
    demo.draw(tmp_path / "map.svg", land, towns, inside)
    text = (tmp_path / "map.svg").read_text(encoding="utf-8")
    assert text.count("<polyline") > 5
    found = re.findall(r'<text x="([-0-9.]+)" y="([-0-9.]+)" .*?font-size="(\d+)" .*?textLength="([0-9.]+)"', text)
    assert len(found) == len(inside) == text.count("textLength")
    labels = np.array([(float(x), float(y) - 0.8 * int(size), float(x) + float(width), float(y) + 0.2 * int(size))
                       for x, y, size, width in found])  # fmt: skip
    assert xtree.XTree.from_boxes(labels).count(labels).tolist() == [1] * len(labels)


def test_crowded_labels_find_places_of_their_own_beside_their_points(random):
    points = random.random((60, 2)) * 300 + 50
    dots = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    boxes = np.array(label_boxes(points, ["a label"] * 60, 11, (0, 0, 400, 400), dots))
    assert xtree.XTree.from_boxes(boxes).count(boxes).tolist() == [1] * 60
    assert not xtree.XTree.from_boxes(np.array(dots)).count(boxes).any()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 400).all()
    away = np.maximum(np.maximum(boxes[:, :2] - points, points - boxes[:, 2:]), 0)
    assert np.hypot(*away.T).max() < 140


def test_brute_force_counts_touching_as_intersecting():
    boxes = np.array([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 4.0, 4.0]])
    assert demo.intersecting(boxes, (1.0, 1.0, 1.0, 1.0)).tolist() == [0, 1]
