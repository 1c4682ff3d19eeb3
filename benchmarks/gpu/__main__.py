"""What of the CUDA paths holds and how fast they are, on one GPU in at most eight minutes; each check by itself.

python -m benchmarks.gpu [--out DIR] [--seconds 450] [--device cuda|cpu] [--only NAME,NAME]
    [--limits 1]        (or: make gpu)

The most important checks come first; DIR/gpu.json is written after every one. Each has a limit, at which it is stopped
with what it has found so far; a check that does not come back then ends the script, up to 25 seconds after --seconds.
`--device cpu` rehearses all that a CPU can run of it, with 30 times as many seconds. Exit status: the number of checks
that failed, 99 where one did not come back; one left out or stopped for lack of time is named and fails nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu import arithmetic, graphs, processes, reading, speed
from benchmarks.gpu.checks import Bench, Check, run_all

# Of each check the seconds at most, on a GPU. In order of importance: the last ones are left out if time is short.
CHECKS: tuple[Check, ...] = (
    (5, arithmetic.stack),
    (90, arithmetic.steps_repeat_bit_for_bit),
    (150, processes.killed_chains_equal_undisturbed_ones),
    (70, speed.steps_against_supervised_ones),
    (40, graphs.steps_of_graphs_are_ordinary_ones),
    (90, graphs.steps_of_graphs_against_ordinary_ones),
    (100, processes.killed_chains_of_cuda_graphs_equal_undisturbed_ones),
    (30, speed.the_training_loop_against_a_bare_one),
    (25, arithmetic.k_center_picks_are_those_of_the_cpu),
    (20, arithmetic.loaders_give_the_same_bytes_beside_other_work),
    (30, arithmetic.first_losses_are_those_of_the_cpu),
    (30, speed.scans_against_bare_inference),
    (90, reading.ffcv_files_feed_the_card),
    (20, arithmetic.too_little_memory_halves_a_scan),
    (60, processes.two_processes_on_one_gpu),
    (20, processes.a_gpu_that_torch_does_not_find_is_named),
    (40, processes.tests_that_need_a_gpu),
    (10, processes.one_process_group),
    (5, arithmetic.bf16_upsampling_is_bilinear),
    (5, arithmetic.augmentation_is_that_of_the_cpu),
    (90, processes.local_sweeps_share_the_gpu),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_out"), help="folder of gpu.json (default gpu_out)")
    parser.add_argument("--seconds", type=float, default=450, help="for all checks (default 450)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    parser.add_argument("--only", default="", help="names of checks, separated by commas")
    parser.add_argument("--limits", type=float, default=1, help="times as long for each, e.g. 2 beside other work")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name]
    if unknown := set(names) - {function.__name__ for _, function in CHECKS}:
        known = ", ".join(function.__name__ for _, function in CHECKS)
        parser.error(f"--only={given.only}: {', '.join(sorted(unknown))} is unknown. Known: {known}.")
    with tempfile.TemporaryDirectory() as work:
        return run_all(CHECKS, Bench(given.device, Path(work)), given.out, given.seconds, names, given.limits)


if __name__ == "__main__":
    sys.exit(main())
