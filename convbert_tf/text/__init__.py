"""Strings to ids: vocabularies, the WordPiece tokenizer, preprocessing of raw strings."""
