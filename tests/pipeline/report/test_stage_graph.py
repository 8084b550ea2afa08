"""The stage graph: layers, and edges that a longer path implies."""

from __future__ import annotations

from pipeline.report.sections.run import describe_stage
from pipeline.report.stage_graph import draw_stage_graph
from pipeline.store.artifact import Artifact, Manifest


def make_artifacts(**inputs: tuple[str, ...]) -> dict[str, Artifact]:
    found = {}
    for name, sources in inputs.items():
        stage = name.replace("_", ".")
        made = {source: source for source in sources}
        found[stage] = Artifact("/x", Manifest(stage, stage, made, {}, [], {"rows": 10**6}, 100.0, {}))
    return found


def test_graph_goes_down_without_implied_edges() -> None:
    data: dict[str, tuple[str, ...]] = {"listing": (), "download": ("listing",), "annotate": ("download",)}
    scored: dict[str, tuple[str, ...]] = {"clip": ("download",), "score": ("clip",)}
    joined = {"select": ("download", "annotate", "score"), "report": ("listing", "select")}
    drawn = draw_stage_graph(make_artifacts(**data, **scored, **joined), describe_stage)
    y = {node["stage"]: node["y"] for node in drawn["nodes"]}
    assert y["listing"] < y["download"] < y["clip"] < y["score"] < y["select"] < y["report"]
    assert len(drawn["paths"]) == 7  # not download to select, nor listing to report
    assert drawn["nodes"][0]["note"] == "1.00 M rows · 100.0 s"
    boxes = [(node["x"], node["y"]) for node in drawn["nodes"]]
    assert len(set(boxes)) == len(boxes)
    assert all(0 <= x <= drawn["width"] - node["width"] for (x, _), node in zip(boxes, drawn["nodes"], strict=True))
