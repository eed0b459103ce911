"""Do two processes see disjoint sets and end with equal weights?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ptrag_sc

SCRIPT = """
import json, os, sys, torch, scvi, ptrag_sc
from screens import KEYS, SMALL, TRAIN, make_screen
from ptrag_sc.data import RandomSets

drawn, original = [], RandomSets._draw
def spy(self, condition, epoch, visit):
    if self.fresh:
        drawn.append((self.seed, epoch, int(condition)))
    return original(self, condition, epoch, visit)
RandomSets._draw = spy
adata = make_screen()
ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
scvi.settings.seed = 0
model = ptrag_sc.PTRAG(adata, **{**SMALL, **json.loads(sys.argv[2])})
model.train(2, **TRAIN, devices=2, strategy="ddp")
model.train(1, **TRAIN, devices=2, strategy="ddp")
torch.save((model.module.state_dict(), drawn), os.path.join(sys.argv[1], os.environ.get("LOCAL_RANK", "0") + ".pt"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"memory": "response", "retrieval": "attention"}])
def test_two_processes_share_the_conditions(tmp_path, options):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    folders = Path(__file__).parents[1], Path(ptrag_sc.__file__).parents[1]  # the package that is tested here
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), json.dumps(options)]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path)
    (first, drawn_first), (second, drawn_second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert set(drawn_first).isdisjoint(drawn_second)
    assert len(drawn_first) == len(drawn_second) == 27  # nine of eighteen conditions in each of two epochs and one more
    assert {drawn[0] for drawn in drawn_first} == {0, 2}  # the second training draws other sets, alike on both
