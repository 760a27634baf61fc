#!/usr/bin/env python3
"""tests/golden/feedback.json beside TRL's own functions, in double precision; says "skip" where torch or trl is missing.
The last line is "N passed, N failed"."""
import collections
import json
import os
import sys
import types
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "golden"))
warnings.simplefilter("ignore")
try:
    import torch
    import trl
    from trl.experimental.sdpo.loss_utils import (apply_importance_sampling_clipping,
                                                  compute_sampled_token_self_distillation_loss)
    from trl.experimental.sdpo.sdpo_trainer import DistillationLogits, SDPOTrainer
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


def trainer_difference(want, weight, loss_type):
    """The same of the loss of TRL's trainer, with these log-probs for its two forward passes. Row 2 has no q."""
    l = rows(golden.LOGP).requires_grad_(True)
    ids = torch.zeros(MASK.shape, dtype=torch.long)
    own = MASK * torch.tensor([[float(i in golden.OWN)] for i in range(golden.B)])
    both = DistillationLogits(ids, MASK, own, logits(l), logits(rows(golden.REF)))
    trainer = object.__new__(SDPOTrainer)
    vars(trainer).update(
        args=types.SimpleNamespace(distillation_weight=weight, distillation_mode="sampled_token", distillation_alpha=1.0,
                                   distillation_is_clip=2.0),
        loss_type=loss_type, importance_sampling_level="token", epsilon_low=0.2, epsilon_high=0.2, use_teacher_server=False,
        current_gradient_accumulation_steps=1, model=types.SimpleNamespace(training=True), teacher_model=None,
        accelerator=types.SimpleNamespace(gather=lambda x: x), _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _compute_teacher_student_logits=lambda *given: both, _log_self_distillation_metric=lambda *given: None)
    batch = {"completion_ids": ids, "completion_mask": MASK, "old_per_token_logps": rows(golden.OLD),
             "advantages": rows(golden.IN["adv"])}
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return max(abs(loss.item() - want["loss"]), (l.grad * MASK - rows(want["dloss_dlogp"])).abs().max().item())


def of_two_means():
    """What TRL does by default: half the policy loss, over all tokens, and half SDPO, over all responses the mean of each."""
    policy = golden.batch(lambda i, t, l, f: golden.blend(i, t, l, f, 0.0), "policy")
    distilled = WANT["sdpo_two_rows_seq_mean"]
    halves = [[(a + b) / 2 for a, b in zip(*pair)] for pair in zip(policy["dloss_dlogp"], distilled["dloss_dlogp"])]
    return {"loss": (policy["loss"] + distilled["loss"]) / 2, "dloss_dlogp": halves}


one, half = "sdpo_two_rows_seq_mean", "sdpo_weight_0.5_two_rows_seq_mean"
cases = [("sdpo", sdpo_difference("sdpo", 2.0)), ("sdpo_clip_1.1", sdpo_difference("sdpo_clip_1.1", 1.1)),
         (one, trainer_difference(WANT[one], 1.0, "grpo")), (half, trainer_difference(WANT[half], 0.5, "grpo")),
         ("distillation_weight 0.5 under loss_type dapo", trainer_difference(of_two_means(), 0.5, "dapo"))]
failed = 0
for name, difference in cases:
    failed += not difference <= 1e-6
    print("%s %s: TRL %s, largest difference %.1e" % ("ok  " if difference <= 1e-6 else "FAIL", name, trl.__version__, difference))
print("%d passed, %d failed" % (len(cases) - failed, failed))
sys.exit(failed > 0)
