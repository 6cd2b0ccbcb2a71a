"""Work of extraction on a Ray cluster."""
