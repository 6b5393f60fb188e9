"""Drafts of documents that the law asks for: what the system knows, and what a person must still say."""
