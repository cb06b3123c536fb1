"""The client half: API client, uploader, pages, and the WebUI's host glue."""
