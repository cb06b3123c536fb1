"""The HTTP contract over the services."""
