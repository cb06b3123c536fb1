"""Where the host keeps its files; the test sets it."""

data_path = ""
models_path = ""
