"""The data card: what a dataset is made of, as Markdown, JSON, Croissant, and a summary of training content."""
