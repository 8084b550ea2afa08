"""What the audit counts."""

from __future__ import annotations

import pytest

from dataprep.card import audit
from dataprep.card.audit import AuditCounts, build_audit


def test_people_are_counted_once_a_caption_in_every_language() -> None:
    counts = AuditCounts()
    counts.add_captions(
        ["A woman and a Woman", "two men, one man", "une femme", "一个女人和一个男孩", "a red circle", "Mann"]
    )
    found = build_audit(counts, {})
    assert found["captions"] == 6
    assert found["people"] == {"women": 3, "men": 2, "girls": 0, "boys": 1, "children": 0, "old people": 0}


def test_a_term_within_another_word_is_not_a_person() -> None:
    counts = AuditCounts()
    counts.add_captions(["manga, womanish menu shed", "kindergarten", "he-man"])
    assert [group for group, number in build_audit(counts, {})["people"].items() if number] == ["men"]


def test_words_beside_a_group_are_those_that_stand_there_more_often_than_anywhere() -> None:
    counts = AuditCounts()
    counts.add_captions(["a nurse, a woman in the kitchen"] * 6 + ["a man at the wheel"] * 10 + ["a nurse"] * 2)
    counts.add_captions(["a woman at the wheel"] * 4)
    beside = build_audit(counts, {})["beside"]
    # women are in 10 of 22 captions: kitchen 6 of 6, 22/10 times as often; nurse 6 of 8, 1.65 times
    assert beside["women"][0] == {"word": "in", "captions": 6, "lift": 2.2}
    assert [(item["word"], item["lift"]) for item in beside["women"]] == [
        ("in", 2.2),
        ("kitchen", 2.2),
        ("nurse", 1.65),
    ]
    assert [item["word"] for item in beside["men"]] == ["at", "wheel"]  # "wheel" beside women too, but less often
    assert beside["girls"] == []


def test_countries_are_codes_and_faces_have_a_last_class() -> None:
    counts = AuditCounts()
    counts.add_faces([0, 0, 1, None, 4, 5, 9])
    found = build_audit(
        counts, {"a.example.de": 3, "b.de": 1, "c.fr": 9, "d.com": 99, "e.io": 5, "localhost": 1, "1.2.3.44": 7}
    )
    assert found["countries"] == {"fr": 9, "de": 4}
    assert found["faces"] == {"0": 2, "1": 1, "4": 1, "5 or more": 2}


def test_memory_is_bounded_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_WORDS", 4)
    counts = AuditCounts()
    counts.add_captions(["red circle", "red square", "red circle"])
    assert build_audit(counts, {})["exact"]
    counts.add_captions(["blue line", "red dot"])
    assert not build_audit(counts, {})["exact"] and counts.words == {"red": 4, "circle": 2}


def test_what_was_measured_is_counted_by_class_in_a_fixed_order() -> None:
    counts = AuditCounts()
    counts.expect_labels({"medium": ("a photo", "a drawing", "a map")})
    counts.add_measured(
        {
            "faces": [1, 0, 7],
            "text_area": [0.2, 0.0, None, 0.0099, 0.7, 0.01],
            "label_medium": ["a drawing", "a photo", None, "a drawing"],
            "label_place": ["indoors"],
            "aesthetic": [5.9, 4.0, None, 10.2, 5.0],
            "watermark": [0.5, 0.49, 0.0, 1.0],
            "clip_similarity": [0.3],
        }
    )
    found = build_audit(counts, {})
    assert found["faces"] == {"0": 1, "1": 1, "5 or more": 1}
    assert list(found["text"].items()) == [
        ("none", 1),
        ("below 1%", 1),
        ("from 1%", 1),
        ("from 5%", 0),
        ("from 20%", 1),
        ("from 50%", 1),
    ]
    medium = {"a photo": 1, "a drawing": 2, "a map": 0}  # a label of no image is named
    assert found["labels"] == {"medium": medium, "place": {"indoors": 1}}
    assert list(found["labels"]["medium"]) == list(medium)
    assert list(found["heads"]) == ["aesthetic", "watermark"]
    assert list(found["heads"]["aesthetic"].items()) == [("4", 1), ("5", 2), ("10", 1)]
    assert found["heads"]["watermark"] == {"below 0.2": 1, "from 0.2": 1, "from 0.5": 1, "from 0.8": 1}


def test_nothing_measured_is_nothing_said() -> None:
    found = build_audit(AuditCounts(), {})
    assert (found["faces"], found["text"], found["labels"], found["heads"]) == ({}, {}, {}, {})
