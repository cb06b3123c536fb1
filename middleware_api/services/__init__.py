"""What the middleware does, without a word of HTTP or of where it runs."""
