"""Inside the WebUI: `panel`, `interception` and `dispatch` know the host, the rest does not."""
