"""Filters keep or drop annotated pairs, one class per filter; `registry.FILTERS` lists them."""
