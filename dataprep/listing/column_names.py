"""Column names by which the URL, the caption and the file of a row are recognised, case-insensitively, best first."""

from __future__ import annotations

# Spellings in public lists (LAION URL/TEXT, CommonPool and COYO url/text, CC12M url/caption).
URL_NAMES = ("url", "image_url", "img_url", "image", "link")
CAPTION_NAMES = ("caption", "text", "alt_text", "alt", "title", "description", "prompt")
FILE_NAMES = ("file_name", "filename", "file", "path", "image")  # of a captions table in a folder of images
