#!/usr/bin/env python3
"""tests/golden/feedback.json beside TRL's own functions, in double precision; says "skip" where torch or trl is missing.
The last line is "N passed, N failed"."""
import json
import os
import sys
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "golden"))
warnings.simplefilter("ignore")
try:
    import torch
    import trl
    from trl.experimental.sdpo.loss_utils import (apply_importance_sampling_clipping,
                                                  compute_sampled_token_self_distillation_loss)
except ImportError as missing:
    print("skip   test_trl: %s" % missing)
    print("0 passed, 0 failed")
    sys.exit(0)
import make_feedback_golden as golden

WANT = json.load(open(os.path.join(HERE, "golden", "feedback.json")))
MASK = torch.tensor(golden.MASK, dtype=torch.float64)


def rows(values):
    return torch.tensor(values, dtype=torch.float64)


def logits(log_probs):
    """Two tokens, of which the first has this log-prob."""
    l = torch.clamp(log_probs, max=-1e-12)
    return torch.stack([l, torch.log(-torch.expm1(l))], -1)


def sdpo_difference(name, clip):
    """Of loss and gradient; TRL's function of sampled tokens, then its clipped ratio, token mean."""
    l = rows(golden.LOGP).requires_grad_(True)
    ids = torch.zeros(MASK.shape, dtype=torch.long)
    loss = compute_sampled_token_self_distillation_loss(logits(l), logits(rows(golden.REF)), ids, distillation_alpha=1.0)
    loss = apply_importance_sampling_clipping(loss, l, rows(golden.OLD), clip)
    loss = (loss * MASK).sum() / MASK.sum()
    loss.backward()
    return max(abs(loss.item() - WANT[name]["loss"]), (l.grad * MASK - rows(WANT[name]["dloss_dlogp"])).abs().max().item())


failed = 0
for name, clip in (("sdpo", 2.0), ("sdpo_clip_1.1", 1.1)):
    difference = sdpo_difference(name, clip)
    failed += not difference <= 1e-6
    print("%s %s: TRL %s, largest difference %.1e" % ("ok  " if difference <= 1e-6 else "FAIL", name, trl.__version__, difference))
print("%d passed, %d failed" % (2 - failed, failed))
sys.exit(failed > 0)
