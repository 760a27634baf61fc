#!/usr/bin/env python3
"""Expected values of the methods that learn from feedback, on the small batch of rl.json: feedback.json.

    make_feedback_golden.py > feedback.json     values, and d loss / d log-prob, each compared with a central difference

o and l are "old" and "logp" of the batch, q is its "ref". A loss is the mean over all tokens in it; "_seq_mean": over
all responses the mean over the tokens of each, TRL's loss_type grpo. Formulas:
critique_grpo arXiv 2506.03106; rltf_sd 2602.02482; sdpo 2601.20802 and TRL's experimental sdpo; opd verl and MiniLLM,
2306.08543."""
import json
import os
import sys
from math import exp

HERE = os.path.dirname(os.path.abspath(__file__))
IN = json.load(open(os.path.join(HERE, "rl.json")))["inputs"]
LOGP, OLD, REF, MASK = IN["logp"], IN["old"], IN["ref"], IN["mask"]
B, T = len(MASK), len(MASK[0])
TOKENS = sum(map(sum, MASK))
REWARD = [1.0, 0.0, 0.0]         # of the three responses; the last is y1, the answer after feedback


def clip(x, low, high):
    return min(max(x, low), high)


def ppo(l, o, a, low=0.2, high=0.2):
    r = exp(clip(l - o, -20, 20))
    plain, cut = -a * r, -a * clip(r, 1 - low, 1 + high)
    return (plain, -a * r) if plain >= cut else (cut, 0.0)


def luffy(l, a, gamma=0.1):
    p = exp(l)
    return -a * p / (p + gamma), -a * p * gamma / (p + gamma) ** 2


def sdpo(l, o, q, c=2.0, frozen=None):
    """sg(l - q) l min(exp(sg(l - o)), c); frozen: where sg() was taken."""
    f = l if frozen is None else frozen
    w = (f - q) * min(exp(clip(f - o, -20, 20)), c)
    return w * l, w


def batch(fn, name, tokens=TOKENS, used=None, seq_mean=False):
    """Token mean over the rows used, and its gradient, compared with a difference in which sg() stays."""
    loss, gradient, h = 0.0, [], 1e-6
    for i in range(B):
        row, share = [], B * sum(MASK[i]) if seq_mean else tokens
        for t in range(T):
            if not MASK[i][t] or (used and i not in used):
                row.append(0.0)
                continue
            l = LOGP[i][t]
            value, slope = fn(i, t, l, l)
            number = (fn(i, t, l + h, l)[0] - fn(i, t, l - h, l)[0]) / (2 * h)
            if abs(number - slope) > 1e-5 * (1 + abs(slope)):
                sys.exit("gradient of %s, row %d, token %d: %g, by difference %g" % (name, i, t, slope, number))
            loss += value / share
            row.append(slope / share)
        gradient.append(row)
    return {"loss": loss, "dloss_dlogp": gradient}


def later(i, t, gamma):
    """MiniLLM: sum over k >= t of gamma^(k - t) (q - o)."""
    n = sum(MASK[i])
    return sum(gamma ** (k - t) * (REF[i][k] - OLD[i][k]) for k in range(t, n))


def blend(i, t, l, frozen, weight=0.5, own=range(B)):
    """(1 - weight) PPO + weight SDPO; rows that are not own have no q."""
    policy, distilled = ppo(l, OLD[i][t], IN["adv"][i]), sdpo(l, OLD[i][t], REF[i][t], frozen=frozen)
    return tuple((1 - weight) * a + (weight * b if i in own else 0.0) for a, b in zip(policy, distilled))


OWN = [0, 1]                     # rows with a sibling or feedback, where not all have one


def make():
    mean = sum(REWARD) / B
    critique = [r - mean for r in REWARD]
    first = sum(REWARD[:2]) / 2
    rltf = [r - first for r in REWARD]
    adv = IN["adv"]
    n_own = sum(sum(MASK[i]) for i in OWN)
    two_rows = lambda i, t, l, f: blend(i, t, l, f, own=OWN)
    return {
        "inputs": {"reward": REWARD, "refined_row": 2},
        "critique_grpo": dict(batch(lambda i, t, l, f: luffy(l, critique[i]) if i == 2 else ppo(l, OLD[i][t], critique[i]),
                                    "critique_grpo"), advantages=critique),
        "rltf_sd": dict(batch(lambda i, t, l, f: (-rltf[i] * l, -rltf[i]) if i == 2 else ppo(l, OLD[i][t], rltf[i]),
                              "rltf_sd"), advantages=rltf),
        "sdpo": batch(lambda i, t, l, f: sdpo(l, OLD[i][t], REF[i][t], frozen=f), "sdpo"),
        "sdpo_two_rows": batch(lambda i, t, l, f: sdpo(l, OLD[i][t], REF[i][t], frozen=f), "sdpo", n_own, OWN),
        "sdpo_two_rows_seq_mean": batch(lambda i, t, l, f: blend(i, t, l, f, 1.0, OWN), "sdpo", seq_mean=True),
        "sdpo_clip_1.1": batch(lambda i, t, l, f: sdpo(l, OLD[i][t], REF[i][t], 1.1, f), "sdpo"),
        "sdpo_weight_0.5": batch(blend, "sdpo"),
        "sdpo_weight_0.5_two_rows": batch(two_rows, "sdpo"),
        "sdpo_weight_0.5_two_rows_seq_mean": batch(two_rows, "sdpo", seq_mean=True),
        "srpo_row_2_grpo": batch(lambda i, t, l, f: ppo(l, OLD[i][t], adv[i]) if i == 2 else
                                 sdpo(l, OLD[i][t], REF[i][t], frozen=f), "srpo"),
        "opd": batch(lambda i, t, l, f: ppo(l, OLD[i][t], REF[i][t] - OLD[i][t]), "opd"),
        "opd_gamma_0.5": batch(lambda i, t, l, f: ppo(l, OLD[i][t], later(i, t, 0.5)), "opd"),
        "raw_ratio": (lambda r: {"mean": sum(r) / len(r), "min": min(r), "max": max(r),
                                 "outside": sum(x < 0.9 or x > 1.1 for x in r) / len(r)})(
            [exp(OLD[i][t] - IN["sampler"][i][t]) for i in range(B) for t in range(T) if MASK[i][t]])}


if __name__ == "__main__":
    json.dump(make(), sys.stdout, indent=1, allow_nan=False)
    print()
