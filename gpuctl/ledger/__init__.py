"""The book: what we intended, what the clouds confirmed, what it cost."""
