"""Rules that keep or drop annotated pairs, one class a rule, grouped by what they look at."""
