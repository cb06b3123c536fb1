"""Where the host keeps its files; the test sets it."""

data_path = ""
