"""Vocabulary files: classes with their embeddings, the rules for them, and the formats of other projects."""
