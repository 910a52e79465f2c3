"""Runs a script as one of several CPU processes under a file of accelerate_configs/, in float32.

    torchrun --nproc_per_node 2 tests/sharding.py zero1.yaml SCRIPT [ARGUMENTS ...]

`accelerate launch` starts one process where there is no GPU, so its settings are read here, by its own functions.
accelerate turns FSDP on for a list of device types that the CPU is not in, though torch can split weights there: that
one condition is met by hand.
"""

import os
import runpy
import sys
from pathlib import Path

from accelerate.commands import launch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

CONFIGS = Path(__file__).resolve().parents[1] / "accelerate_configs"


def settings_of(file: str) -> dict[str, str]:
    """The variables that `accelerate launch --config_file` would hand to each process."""
    given = ["--config_file", str(CONFIGS / file), "--mixed_precision", "no", "--main_process_port", "0", "script.py"]
    found = []
    launch.deepspeed_launcher = lambda args: found.append(prepare_deepspeed_cmd_env(args)[1])
    launch.multi_gpu_launcher = lambda args: found.append(prepare_multi_gpu_env(args))
    launch.launch_command(launch.launch_command_parser().parse_args(given))
    return {name: value for name, value in found[0].items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def turn_fsdp_on() -> None:
    initialize = AcceleratorState.__init__

    def with_fsdp(self, *arguments, fsdp_plugin=None, **options):
        initialize(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_fsdp


if __name__ == "__main__":
    file, script = sys.argv[1:3]
    os.environ.update(settings_of(file))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        turn_fsdp_on()
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")
