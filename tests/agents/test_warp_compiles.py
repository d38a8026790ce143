"""Everything that the Warp PPO runs on a GPU compiles for one, without one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import warp as wp

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "warp_compile.py"
KERNELS = {
    "forward",
    "input_gradient",
    "weight_gradient",
    "take_step",
    "sample_gaussian",
    "sample_categorical",
    "draw_keys",
}


def test_every_module_compiles_for_a_gpu(tmp_path):
    """In a process of its own, because compiling for a GPU changes modules."""
    if 90 not in wp.get_cuda_supported_archs():
        pytest.skip("this build of Warp cannot compile for sm_90")
    given = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False, timeout=600)
    assert given.returncode == 0, given.stderr
    *lines, total = given.stdout.splitlines()
    assert total.endswith(f"all {len(lines)} modules")
    threads = {int(line.split()[2]) for line in lines}
    assert threads == {256}, given.stdout  # with one thread, tiles are unrolled, which takes minutes
    programs = [path.read_bytes() for path in tmp_path.rglob("*.sm90.*") if path.suffix in (".cubin", ".ptx")]
    assert len(programs) == len(lines)
    names = {name for program in programs for name in re.findall(rb"(\w+)_[0-9a-f]{8}_cuda_kernel", program)}
    assert {name.decode().rpartition("__")[2] for name in names} >= KERNELS
