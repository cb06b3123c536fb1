"""The accordion that is a checkbox."""

import gradio as gr

from gradio.events import Dependency

class InputAccordion(gr.Checkbox):
    def __init__(self, value, **kwargs):
        super().__init__(
            value, visible=False, **{k: v for k, v in kwargs.items() if k != "elem_id"}
        )
        self.accordion = gr.Accordion(**kwargs)

    def __enter__(self):
        self.accordion.__enter__()
        return self

    def __exit__(self, *args):
        self.accordion.__exit__(*args)

    def get_block_name(self):
        return "checkbox"