"""All filters by name, in the order of the funnel."""

from __future__ import annotations

from dataprep.filters.base import Filter
from dataprep.filters.caption import AlphaShare, Boilerplate, CaptionLength, CaptionWords, Language
from dataprep.filters.embedding_duplicates import EmbeddingDuplicates
from dataprep.filters.exact_duplicates import DuplicatePair, ExactDuplicate, RepeatedCaption
from dataprep.filters.faces import MaxFace, MaxFaces
from dataprep.filters.image import Area, Downloaded, FileSize, MaxAspect, MinSide
from dataprep.filters.near_duplicates import NearDuplicates
from dataprep.filters.predictions import HEAD_FILTERS, Aesthetic, NsfwLabel
from dataprep.filters.similarity import MinSimilarity, TopSimilarity
from dataprep.filters.text_area import MaxTextArea

# A new filter is one class in a file of its own and one line here. Row filters run before all set filters, cheap ones
# first. Duplicates are last, so that the first occurrence among images that passed everything else is kept.
FILTERS: dict[str, type[Filter]] = {
    "downloaded": Downloaded,
    "max_aspect": MaxAspect,
    "min_side": MinSide,
    "area": Area,
    "file_size": FileSize,
    "boilerplate": Boilerplate,
    "caption_chars": CaptionLength,
    "caption_words": CaptionWords,
    "alpha_share": AlphaShare,
    "language": Language,
    "faces": MaxFaces,
    "largest_face": MaxFace,
    "text_area": MaxTextArea,
    "nsfw_label": NsfwLabel,
    **HEAD_FILTERS,
    "aesthetic": Aesthetic,
    "min_similarity": MinSimilarity,
    "top_similarity": TopSimilarity,
    "duplicate_pair": DuplicatePair,
    "repeated_caption": RepeatedCaption,
    "exact_duplicate": ExactDuplicate,
    "near_duplicate": NearDuplicates,
    "embedding_duplicate": EmbeddingDuplicates,
}
