"""The batch of files, which imports what it calls by name."""

from PIL import Image

from modules import shared
from modules.processing import process_images
from modules.scripts import runner_for


def process_batch(p, input, output_dir, inpaint_mask_dir, args, to_scale=False):
    results = None
    shared.state.job_count = len(input) * p.n_iter
    for path in input:
        if shared.state.interrupted:
            break
        p.init_images = [Image.open(path).convert("RGB")] * p.batch_size
        processed = runner_for(p).run(p, *args)
        if processed is None:
            processed = process_images(p)
        if results is None:
            results = processed
        else:
            results.images.extend(processed.images)
            results.infotexts.extend(processed.infotexts)
    return results
