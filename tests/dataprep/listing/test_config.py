"""The config of the listing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dataprep.listing.config import ListingConfig
from dataprep.listing.public_lists import PUBLIC_LISTS

WEB = {"source": "table", "path": "list.csv", "weight": 7, "licence": "cc-by-4.0", "captions": ["long"]}
OWN = {"source": "folder", "path": "photos", "weight": 3}


def several(**changes: Any) -> dict[str, Any]:
    return {"sources": {"web": WEB, "own": OWN | changes}}


def test_config_errors() -> None:
    with pytest.raises(ValidationError, match="set path to the folder"):
        ListingConfig(source="folder")
    with pytest.raises(ValidationError, match="set source to table or folder"):
        ListingConfig(path="list.csv")
    with pytest.raises(ValidationError):
        ListingConfig(rows_per_shard=10_001)


def test_one_source_is_the_short_form_of_several() -> None:
    keys = {"source": "table", "path": "list.csv", "url_column": "u", "limit": 5}
    one = ListingConfig.model_validate(keys)
    many = ListingConfig.model_validate({"sources": {"a": keys}})
    assert one.list_sources() == {"": one} and one.source_weights() is None and many.source == "several"
    assert all(getattr(many.list_sources()["a"], key) == value for key, value in keys.items())


def test_weights_and_what_is_known_of_sources() -> None:
    config = ListingConfig.model_validate(several())
    assert config.source_weights() == {"web": 7, "own": 3}
    assert config.list_sources()["web"].captions == {"caption": 1, "long": 1}
    listed = config.without_training()
    assert listed.source_weights() is None and listed.sources["web"].licence is None
    assert listed == ListingConfig.model_validate(several() | {}).without_training()
    assert ListingConfig.model_validate(config.model_dump(mode="json"), strict=False) == config  # as in a manifest


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (several(weight=None), "sources.own.weight is not set, other weights are; give all or none"),
        (several() | {"limit": 5}, "limit is set beside `sources`; set it in each"),
        (several() | {"source": "table", "path": "x"}, "source is 'table' and sources has 2 entries"),
        ({"source": "several"}, "source is 'several' and sources has 0 entries"),
        ({"sources": {"My Set": OWN}}, "sources.My Set: a source is named by lower-case letters"),
        (several(weight=0), "greater than 0"),
        (several(source="scenes"), "Input should be 'table', 'folder'"),
        (several(captions={}), "no caption is left to train on"),
        (several(captions={"long": -1}), "greater than 0"),
        (
            {"source": "folder", "path": "x", "split": "train"},
            "split is set while source is 'folder'; it is of dataset",
        ),
        ({"source": "table", "path": "x", "image_member": "jpg"}, "image_member .* it is of webdataset"),
        (
            {"source": "public", "path": "laion-6b"},
            "no public list of this name; take one of relaion2B-en",
        ),
        ({"source": "public"}, "set path to the name of the list"),
    ],
)
def test_several_sources_that_do_not_fit(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ListingConfig.model_validate(tree)


@pytest.mark.parametrize(
    "path",
    [
        "laion2B-en/*.parquet",
        "s3://bucket/laion2b-multi/",
        "hf://datasets/laion/laion400m",
        "/data/LAION-5B/part-00000.parquet",
        "laion1B-nolang",
        "laion2B-en-aesthetic",
        "hf://datasets/laion/laion-art",
        "laion_high_resolution.parquet",
    ],
)
def test_a_withdrawn_list_is_refused_unless_the_config_insists(path: str) -> None:
    with pytest.raises(ValidationError, match=r"withdrew .* December 2023, after links .* relaion2B-en-research-safe"):
        ListingConfig(source="table", path=path)
    with pytest.raises(ValidationError, match="a list that was withdrawn"):
        ListingConfig.model_validate(several(path=path))
    assert ListingConfig(source="table", path=path, withdrawn="allow").path == path


@pytest.mark.parametrize("path", ["relaion2B-en-research-safe/*.parquet", "Re-LAION-5B", "laion/artworks", "my.csv"])
def test_other_lists_are_not(path: str) -> None:
    assert ListingConfig(source="table", path=path).path == path


@pytest.mark.parametrize("name", PUBLIC_LISTS)
def test_a_public_list_by_its_name(name: str) -> None:
    (source,) = ListingConfig(source="public", path=name).list_sources().values()
    assert (source.source, source.path) == ("dataset", f"hf://datasets/laion/{name}")
    assert (source.layout, source.licence) == ("laion", None)  # that of the list is not that of its images
    own = ListingConfig(source="public", path=name, layout="coyo", licence="mine").locate()
    assert (own.layout, own.licence) == ("coyo", "mine")
