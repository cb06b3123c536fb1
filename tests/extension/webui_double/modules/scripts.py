"""Script classes and their runner."""

AlwaysVisible = object()


class Script:
    filename = "extension/scripts/some.py"
    controls = None
    args_from = args_to = 0
    is_img2img = False

    def title(self):
        raise NotImplementedError

    def elem_id(self, name):
        tab = "img2img" if self.is_img2img else "txt2img"
        return f"script_{tab}_{self.title().lower()}_{name}"

    def process(self, p, *args):
        pass


class ScriptRunner:
    def __init__(self, alwayson, selectable=()):
        self.alwayson_scripts = list(alwayson)
        self.selectable_scripts = list(selectable)

    def run(self, p, *args):
        if not args[0]:
            return None
        return self.selectable_scripts[args[0] - 1].run(p)


def runner_for(p):
    return p.scripts
