"""The callbacks that extensions register."""

ui_tabs, unloaded, started = [], [], []


def on_ui_tabs(callback):
    ui_tabs.append(callback)


def on_script_unloaded(callback):
    unloaded.append(callback)


def on_app_started(callback):
    started.append(callback)


def script_unloaded_callback():
    for callback in list(unloaded):
        callback()
    unloaded.clear()
    ui_tabs.clear()
    started.clear()
