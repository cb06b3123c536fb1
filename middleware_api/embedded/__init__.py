"""The whole middleware on one machine: SQLite, a folder, worker processes."""
