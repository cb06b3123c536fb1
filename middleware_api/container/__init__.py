"""The inference container: one program that turns invocations into pictures."""
