"""The pair of a model and a guide: what it did when it ran, its log terms, and whether it keeps its contract."""
