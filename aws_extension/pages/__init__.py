"""The pages: one code for the WebUI's tab and the stand-alone app. Host-free."""
