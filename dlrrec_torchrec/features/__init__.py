"""What is computed of users, items and pairs, the same for preparation and serving."""
