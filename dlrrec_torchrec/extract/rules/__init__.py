"""The offline provider's rules: words and patterns, no network."""
