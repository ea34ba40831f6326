"""Print the peak memory of one run in its own process, without pages of files that are only mapped.

tests/run/test_estimate.py runs it with MODEL OUTPUT SETTINGS, where SETTINGS is JSON.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

peak = 0


def watch() -> None:
    global peak
    while True:
        fields = dict(
            line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        )
        peak = max(
            peak, sum(int(fields[name].split()[0]) * 1024 for name in ("Pss_Anon", "Pss_Shmem"))
        )
        time.sleep(0.02)


def main() -> None:
    threading.Thread(target=watch, daemon=True).start()
    from estune import ESConfig, ESTrainer
    from estune.tasks import get_task

    model, output, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    rows = get_task("conciseness").train(settings.pop("prompts"))
    config = ESConfig(
        output_dir=output, population_size=2, max_steps=1, disable_tqdm=True, **settings
    )
    ESTrainer(model, "conciseness_reward", config, rows).train()
    print("PEAK", peak)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
