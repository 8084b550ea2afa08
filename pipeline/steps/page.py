"""The stages that tell: the data card, and everything that was made on one page."""

from __future__ import annotations

from dataprep import storage
from pipeline.context import Context
from pipeline.report.build import pages
from pipeline.report.card import card_files

DATA = ("listing", "download", "annotate", "score", "select", "pack", "embed")
# What the page shows besides training, samples and evaluation.
REPORTED = ("listing", "download", "annotate", "encoder", "clip", "score", "select", "pack", "embed", "card")


def card(ctx: Context) -> None:
    """What the data set is made of, as Markdown and JSON."""
    for name, text in card_files(ctx.inputs, ctx.config["card"]).items():
        storage.write_bytes(ctx.path(name), text.encode())


def report(ctx: Context) -> None:
    """One HTML file and a Markdown summary; the metrics stand beside them."""
    for name, text in pages(ctx.inputs, ctx.run.record(), ctx.run.events()).items():
        storage.write_bytes(ctx.path(name), text.encode())
    storage.write_json(ctx.path("metrics.json"), storage.read_json(ctx.inputs["evaluate"].path("metrics.json")))
