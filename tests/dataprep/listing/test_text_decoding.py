"""Encodings of lists and caption files."""

from __future__ import annotations

import io

import pytest

from dataprep.io.errors import UserError
from dataprep.listing.account import Account
from dataprep.listing.text_decoding import DecodingError, decode_text, read_lines

WESTERN = [
    "un café à l’été",
    "Größe 3 m² – «Straße»",
    "“quoted” … 20 °C",
    "été",
    "São João, não",
    "à",
    "Île de Ré",
    "ça",
]
OTHERS = [
    ("gb18030", "红色的猫"),
    ("gb18030", "红"),
    ("shift_jis", "赤い猫が屋根の上"),
    ("big5", "紅色的貓"),
    ("euc_kr", "빨간 고양이"),
    ("cp1251", "красная кошка"),
    ("cp1251", "на столе"),
    ("koi8_r", "красная кошка"),
    ("cp1253", "κόκκινη γάτα"),
    ("cp1250", "żółta łódka"),
    ("cp1250", "čaša na stolu, življenje"),
    ("iso8859_2", "źródło wody"),
    ("mac_roman", "un café à Paris"),
    ("cp850", "das Mädchen hört"),
]


@pytest.mark.parametrize("text", WESTERN)
def test_windows_1252_is_recognised_and_utf_8_is_not_taken_for_it(text: str) -> None:
    assert decode_text(text.encode("cp1252")) == (text, True)
    assert decode_text(text.encode()) == (text, False)


@pytest.mark.parametrize(("encoding", "text"), OTHERS)
def test_other_encodings_are_refused_unless_named(encoding: str, text: str) -> None:
    with pytest.raises(DecodingError):
        decode_text(text.encode(encoding))
    with pytest.raises(DecodingError):
        decode_text(b"http://a.test/1.jpg," + text.encode(encoding))
    assert decode_text(text.encode(encoding), encoding) == (text, False)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_marks_and_wide_characters(encoding: str) -> None:
    text = "a red cat, ein roter Kater é"
    assert decode_text(text.encode(encoding)) == (text, False)
    lines = f"{text}\r\nsecond\n\nfourth".encode(encoding)
    read = list(read_lines("list", io.BytesIO(lines), None, Account()))
    assert [line.text for line in read] == [text, "second", "", "fourth"]
    assert [line.number for line in read] == [1, 2, 3, 4]


def test_damage_is_no_encoding() -> None:
    for data in (
        "图 and a caption".encode()[1:],
        b"a\0b",
        "ab".encode("utf-16")[:-1],
        "€uro 图片".encode() + b"\xe5\x9b",
    ):
        with pytest.raises(DecodingError):
            decode_text(data)


def test_lines_end_with_cr_in_old_files_alone() -> None:
    assert [line.text for line in read_lines("l", io.BytesIO(b"a\rb\rc"), None, Account())] == ["a", "b", "c"]
    assert [line.text for line in read_lines("l", io.BytesIO(b"a\rb\nc\r\n"), None, Account())] == ["a\rb", "c"]


def test_the_line_that_cannot_be_decoded_is_named() -> None:
    account = Account()
    good = "one\ncaf\xe9\n".encode("cp1252")
    assert [line.text for line in read_lines("l.csv", io.BytesIO(good), None, account)] == ["one", "café"]
    assert account.named == {"windows_1252": ["l.csv line 2"]}
    with pytest.raises(UserError, match=r"l\.csv: line 3 is not readable.*set listing\.encoding"):
        list(read_lines("l.csv", io.BytesIO(good + "кошка".encode("cp1251")), None, account))
    with pytest.raises(UserError, match=r"line 2 is not readable as ascii; correct listing\.encoding"):
        list(read_lines("l.csv", io.BytesIO(good), "ascii", account))
