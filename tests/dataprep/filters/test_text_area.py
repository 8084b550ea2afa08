"""The filter on text in images."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dataprep.filters.config import SelectConfig, make_filters
from dataprep.filters.text_area import MaxTextArea, MaxTextAreaKeys
from dataprep.io.errors import UserError
from dataprep.io.schemas import ANNOTATIONS, TEXT


def test_rows_with_more_text_are_dropped_and_unknown_ones() -> None:
    rows = pa.table({"text_area": pa.array([0, 0.1, 0.11, 1, None], pa.float32())})
    kept, reason = MaxTextArea(0.1).judge(rows)
    assert kept.tolist() == [True, True, False, False, False]  # 0.1 is none of float32's numbers
    assert reason == "text covers more than 0.1 of the image"
    assert MaxTextArea(0).judge(rows)[0].tolist() == [True, False, False, False, False]


def test_it_is_off_by_default_and_needs_the_column() -> None:
    assert MaxTextArea.from_config(MaxTextAreaKeys(), ()) is None
    available = {*ANNOTATIONS.names, "clip_similarity"}
    with pytest.raises(UserError, match=r"select\.max_text_area: needs the column text_area.*set annotate\.text"):
        make_filters(SelectConfig(max_text_area=0.2), available, 0.0)
    assert "text_area" in make_filters(SelectConfig(max_text_area=0.2), available | set(TEXT.names), 0.0)
