"""Filters on faces."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dataprep.filters.config import SelectConfig, make_filters
from dataprep.filters.faces import MaxFace, MaxFaceKeys, MaxFaces, MaxFacesKeys
from dataprep.io.errors import UserError
from dataprep.io.schemas import ANNOTATIONS, FACES

ROWS = pa.table(
    {"faces": pa.array([0, 1, 3, None], pa.int32()), "largest_face": pa.array([0, 0.2, 0.21, None], pa.float32())}
)


def test_rows_with_more_or_larger_faces_are_dropped_and_unknown_ones() -> None:
    assert MaxFaces(1).judge(ROWS)[0].tolist() == [True, True, False, False]
    assert MaxFaces(0).judge(ROWS)[0].tolist() == [True, False, False, False]
    assert MaxFace(0.2).judge(ROWS)[0].tolist() == [True, True, False, False]  # 0.2 is none of float32's numbers
    assert MaxFaces(1).judge(ROWS)[1] == "more than 1 face"


def test_they_are_off_by_default_and_need_the_columns() -> None:
    assert MaxFaces.from_config(MaxFacesKeys(), ()) is None and MaxFace.from_config(MaxFaceKeys(), ()) is None
    available = {*ANNOTATIONS.names, "clip_similarity"}
    for config in (SelectConfig(max_faces=2), SelectConfig(max_face=0.5)):
        with pytest.raises(UserError, match=r"select\.max_face.*set annotate\.faces"):
            make_filters(config, available, 0.0)
        make_filters(config, available | set(FACES.names), 0.0)
