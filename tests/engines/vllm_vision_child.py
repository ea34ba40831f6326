"""Members that see, on both engines, in a process of its own.

    python tests/engines/vllm_vision_child.py FOLDER

vLLM's transformers backend changes transformers' classes, which other tests build. The last line of
the output is JSON: the completions of each member on the transformers engine and on vLLM. Run by
test_vllm_vision.py.
"""

import json
import sys
from pathlib import Path

from both_engines import MEMBERS
from seeing import make, seen_rows
from vllm_child import SETTINGS

from estune import ESConfig
from estune.engines.device import engine_dtype
from estune.engines.transformers import open_engine
from estune.engines.vllm import VLLMEngine
from estune.tasks.rows import rows_of
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta


def main(folder: str) -> None:
    checkpoint = open_checkpoint(make("llava", Path(folder), hidden_size=128, head_dim=32))
    known = layout(checkpoint)
    own = {"vllm_max_model_length": 256, "vllm_model_impl": "transformers"}
    config = ESConfig(**SETTINGS | own)
    prompts = [row["prompt"] for row in rows_of(seen_rows(6), "rows")]
    theta = Theta.load(checkpoint, known.in_model, share=True)
    dtype = engine_dtype(config)

    def answers(engine) -> list[list[str]]:
        found = []
        for member in MEMBERS[:3]:
            engine.load(theta, member)
            completions = engine.generate(prompts, max_completion_length=8)
            found.append([completion.text for completion in completions])
        return found

    # The reference answers first, with transformers' own classes.
    wanted = answers(open_engine(checkpoint.folder, known, config, "cpu", dtype))
    print(json.dumps([wanted, answers(VLLMEngine(checkpoint, known, config, "cpu", dtype))]))


main(sys.argv[1])
