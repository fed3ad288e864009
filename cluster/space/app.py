"""The page of ``glip serve`` as a Hugging Face Space: this one file, beside the two below.

requirements.txt of the Space:

    glip-self-training[serve,timm,pipeline] @ git+https://…          # where your copy of the project is
    # and onnxruntime where MODELS names a file of glip export

README.md of the Space begins with (``sdk: gradio`` runs a Python file; Gradio itself is not used):

    ---
    title: Find things by name
    sdk: gradio
    app_file: app.py
    models: [USER/NAME]
    ---

Variables of the Space: MODELS, hub ids or paths divided by blanks, NAME=ID where the page shall call one otherwise;
HOST and PORT (0.0.0.0 and 7860, as Spaces have them). Try it here: MODELS=models/round_2 HOST=127.0.0.1 python
cluster/space/app.py. One process answers, without Ray; limits are smaller than those of glip serve, for strangers come.
"""

from __future__ import annotations

import os

import uvicorn

from pipeline.cli import quiet_libraries, share_cores
from pipeline.serving.answering import Answerer, ModelPlace, named
from pipeline.serving.app import hosts_of, make_app
from pipeline.serving.limits import Limits
from pipeline.serving.local import LocalBackend

LIMITS = Limits(max_bytes=10_000_000, max_pixels=20_000_000, timeout_s=60.0, max_waiting=16, max_names=80)


def main() -> None:
    """Load the models and serve them."""
    share_cores()
    quiet_libraries()
    models = {name: Answerer(ModelPlace(source)) for name, source in named(os.environ["MODELS"].split()).items()}
    host, port = os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT", "7860"))
    uvicorn.run(make_app(LocalBackend(models), LIMITS, hosts_of(host)), host=host, port=port, log_level="warning")


if __name__ == "__main__":
    main()
