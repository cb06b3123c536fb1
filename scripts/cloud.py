"""The WebUI's way in: it registers each `Script` class that it finds here, so only one is named."""

from aws_extension.webui import panel

CloudPanel = panel.CloudPanel
panel.register()
