"""SWING: exact neighbours of users and items from a bipartite graph. Stands alone, without torch."""
