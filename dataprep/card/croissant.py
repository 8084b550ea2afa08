"""A dataset in Croissant 1.1, MLCommons' JSON-LD vocabulary for datasets, with its responsible-AI fields.

Only what the run knows is said; the rest is left out. File patterns are relative to the folder of the file, which is
the run folder.

Sources: Croissant 1.1 (http://mlcommons.org/croissant/1.1), Croissant RAI 1.0 (http://mlcommons.org/croissant/RAI/1.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataprep.card.facts import NOT_GIVEN, is_synthetic, list_web_sources
from dataprep.card.hub_metadata import list_main_languages
from dataprep.io.pack_format import pixels_column
from dataprep.io.source_column import SOURCE_COLUMN
from dataprep.io.wording import count_of

# The prefixes and terms that the specification asks for.
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{
        term: f"cr:{term}"
        for term in (
            *(
                "arrayShape",
                "citeAs",
                "column",
                "containedIn",
                "equivalentProperty",
                "extract",
                "field",
                "fileProperty",
            ),
            *("fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5"),
            *("parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate"),
            *("separator", "source", "subField", "transform"),
        )
    },
}
CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
PARQUET, TAR = "application/x-parquet", "application/x-tar"  # the names that Croissant's own reader knows
DOWNLOAD_COLUMNS = {
    "key": ("sc:Text", "shard and row number"),
    "url": ("sc:URL", "where the image is from"),
    "caption": ("sc:Text", "caption in the source"),
    "status": ("sc:Text", "success, failed_to_download or failed_to_resize"),
    "reason": ("sc:Text", "why there is no image"),
    "original_width": ("sc:Integer", "width as fetched, pixels"),
    "original_height": ("sc:Integer", "height as fetched, pixels"),
    "sha256": ("sc:Text", "SHA-256 of the stored image"),
}
PACK_COLUMNS = {
    "key": ("sc:Text", "key of the row in `download`"),
    "caption": ("sc:Text", "caption"),
    "split": ("sc:Text", "train or validation"),
    "original_side": ("sc:Integer", "shorter side as fetched, pixels"),
}


def build_croissant(
    facts: Mapping[str, Any],
    funnel: Sequence[Mapping[str, Any]],
    folders: Mapping[str, str],
    encodings: Mapping[int, str],
) -> dict[str, Any]:
    """Returns the JSON-LD document.

    Args:
        facts: result of `build_facts`.
        funnel: one dict per filter: filter, reason, dropped.
        folders: folder of the stages download and pack, relative to the run folder.
        encodings: resolution -> encoding of the packed pixels; raw pixels have no data type in Croissant and are left
            out.
    """
    about = facts["about"]
    kept = count_of(facts["kept"], "image-caption pair")
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": about["title"] or "imagen-ray dataset",
        "description": about["notes"] or f"{kept} kept of {count_of(facts['rows'], 'row')}.",
        "version": about["version"],
        "license": about["licence"] or _list_licences(facts),
        "isBasedOn": [_describe_source(source) for source in facts["sources"] if source["name"]],
        "url": about["url"],
        "citeAs": about["citation"],
        "datePublished": about["published"],
        "creator": {"@type": "Organization", "name": about["creator"]} if about["creator"] else None,
        "inLanguage": list_main_languages(facts),
        "keywords": ["text-to-image", "image-caption pairs"],
        **_describe_responsibility(facts, funnel),
        "distribution": _list_files(folders),
        "recordSet": _list_record_sets(encodings, len(facts["sources"]) > 1),
    }
    return {name: value for name, value in document.items() if value}


def _list_files(folders: Mapping[str, str]) -> list[dict[str, Any]]:
    rows = (
        ("download-table", folders["download"], "*.parquet", PARQUET, "one row per record of the source"),
        ("download-images", folders["download"], "*.tar", TAR, "images in webdataset's layout"),
        ("pack-table", folders["pack"], "*.parquet", PARQUET, "kept pairs with pixels at the training resolutions"),
    )
    return [
        {
            "@type": "cr:FileSet",
            "@id": name,
            "description": text,
            "encodingFormat": form,
            "includes": f"{folder}/{pattern}",
        }
        for name, folder, pattern, form, text in rows
    ]


def _list_licences(facts: Mapping[str, Any]) -> list[str]:
    """Returns the licences that the config gives to sources, if it gives one to each."""
    licences = [source.get("licence") for source in facts["sources"]]
    return sorted(set(licences)) if None not in licences else []


def _describe_source(source: Mapping[str, Any]) -> dict[str, Any]:
    weight = f", with weight {source['weight']:g} at training" if "weight" in source else ""
    known = {
        "@type": "sc:Dataset",
        "name": source["name"],
        "description": f"{source['source']} {source['path']}: {source['kept']:,} of "
        f"{count_of(source['rows'], 'row')} kept{weight}.",
        "license": [licence for licence in source["licences"] if licence != NOT_GIVEN],
    }
    return {name: value for name, value in known.items() if value}


def _list_record_sets(encodings: Mapping[int, str], several_sources: bool) -> list[dict[str, Any]]:
    pixels = {
        pixels_column(size): ("sc:ImageObject", f"image at {size} pixels, {encoding}")
        for size, encoding in encodings.items()
        if encoding != "raw"
    }
    source = {SOURCE_COLUMN: ("sc:Text", "name of the source")} if several_sources else {}
    rows, pairs = DOWNLOAD_COLUMNS | source, PACK_COLUMNS | source | pixels
    return [
        _describe_records("download", "Rows of the source and what came of them", "download-table", rows),
        _describe_records("pairs", "Image-caption pairs to train on", "pack-table", pairs),
    ]


def _describe_records(name: str, text: str, files: str, columns: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "description": text,
        "key": {"@id": f"{name}/key"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{column}",
                "description": meaning,
                "dataType": data_type,
                "source": {"fileSet": {"@id": files}, "extract": {"column": column}},
            }
            for column, (data_type, meaning) in columns.items()
        ],
    }


def _describe_responsibility(facts: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the fields of Croissant RAI that the run knows."""
    synthetic, web = is_synthetic(facts), bool(list_web_sources(facts))
    missing = ", ".join(f"{reason}: {count:,}" for reason, count in facts["reasons"].items())
    contact = f" Requests: {facts['about']['contact']}." if facts["about"]["contact"] else ""
    return {
        "rai:dataCollection": "Rendered by a program." if synthetic else _tell_collection(facts, web),
        "rai:dataCollectionType": ["Software Collection"] if synthetic else ["Web Scraping"] if web else ["Others"],
        "rai:dataCollectionMissingData": f"Rows without an image, by reason: {missing}." if missing else None,
        "rai:dataPreprocessingProtocol": [
            f"{step['filter']}: {count_of(step['dropped'], 'row')} dropped ({step['reason']})" for step in funnel
        ],
        "rai:machineAnnotationTools": [
            "py3langid (language of the caption)",
            "CLIP (similarity of image and caption)",
            "imagehash (perceptual hash)",
        ],
        "rai:personalSensitiveInformation": [
            "None: nothing in it is from a third party."
            if synthetic
            else "Not examined. Captions and images may show people."
        ],
        "rai:dataLimitations": [facts["about"]["notes"]] if facts["about"]["notes"] else None,
        "rai:dataReleaseMaintenancePlan": "The image of a URL is removed from every file on request, with its "
        f"byte-identical copies, captions and embeddings.{contact}",
    }


def _tell_collection(facts: Mapping[str, Any], web: bool) -> str:
    listed = f"Listed in {' and '.join(str(source.get('path')) for source in facts['sources'])}"
    if not web:
        return f"{listed}."
    refused = sum(facts["opt_outs"].values())
    fetched = [f"{source['name']} " for source in list_web_sources(facts) if source["name"]]
    return (
        f"{listed}, {'and '.join(fetched)}fetched from the web by URL; {count_of(refused, 'row')} left out since their "
        "owner opted out."
    )
