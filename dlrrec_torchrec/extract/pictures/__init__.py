"""Pictures of reviews and items: opened within limits, and put into words."""
