"""Deploying the middleware on AWS."""
